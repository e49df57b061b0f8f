"""The battery over all of Keras's layers: what it reports is true. Each fault that it finds in Keras stands below, with its cause."""

from __future__ import annotations

import keras
import pytest

from layers.testing import PROPERTIES, BrokenLayer, check_layer
from tests.layers.keras_layers import ALIASES, CASES, LEFT_OUT, k

PICTURES = "TensorFlow has no gradient of ImageProjectiveTransformV3 in bfloat16"
MIXED = "adds float32 to what the policy makes float64, which TensorFlow refuses"

#: Layer -> property -> what is wrong in Keras 3.15.1.
FAULTS: dict[str, dict[str, str]] = {
    "AugMix": {
        "config": "draws from another generator than its own, so that no seed repeats it",
        "function": "the same",
        "seeds": "the same",
        "gradient": MIXED,
        "policies": PICTURES,
    },
    "AutoContrast": {"extremes": "divides by the contrast of a picture of one colour"},
    "CategoryEncoding": {"config": "get_config lacks `sparse`", "policies": "outputs are float32 under mixed_float16"},
    "CutMix": {"policies": "mixes bfloat16 with float32"},
    "Equalization": dict.fromkeys(
        ("loss_count", "keras_file", "weights_file", "copies", "export"), "returns its symbolic input: a functional model has a cycle"
    ),
    "MelSpectrogram": {"gradient": MIXED, "policies": MIXED},
    "RandAugment": {"gradient": MIXED, "policies": PICTURES},
    "RandomCrop": {"output_spec": "does not crop at training=False", "policies": "outputs are float32 under mixed_float16 then"},
    "RandomElasticTransform": {"xla": "a shape depends on what is drawn"},
    "RandomPerspective": {"policies": PICTURES},
    "RandomRotation": {"gradient": MIXED, "policies": PICTURES},
    "RandomShear": {
        "policies": PICTURES,
        **dict.fromkeys(("config", "keras_file", "copies"), "its own config, with a factor of (-0.0, 0.0), is refused by its constructor"),
    },
    "RandomTranslation": {"policies": PICTURES},
    "RandomZoom": {"policies": PICTURES},
    "SimpleRNN": {"config": "`activity_regularizer` is not handed on, and lost"},
    "SpectralNormalization": {"gradient": "lacks the term of sigma", "frozen": "changes its kernel when it is frozen"},
    "STFTSpectrogram": {"policies": "refuses bfloat16 in the call only", "extremes": "the gradient overflows in float16"},
    "TimeDistributed": {"unknown_dimensions": "takes the batch for time where both are unknown"},
    "UnitNormalization": {"extremes": "divides by 0 for float16 zeros"},
}

#: The same for what shows with some of the numbers that a layer draws.
RESAMPLED = "the gradient of ImageProjectiveTransformV3 is that of the inverse transformation, near the derivative only"
AT_TIMES: dict[str, dict[str, str]] = {
    "AugMix": {"extremes": "as AutoContrast, which it applies"},
    "RandAugment": {"extremes": "as AutoContrast, which it applies"},
    "RandomHue": {"gradient": "there is none, though the output depends on the input"},
    **dict.fromkeys(("RandomPerspective", "RandomShear", "RandomTranslation", "RandomZoom"), {"gradient": RESAMPLED}),
}

#: One of each family for every run; `pytest -m matrix` has the others, and the properties that take longest.
SAMPLE = ["Attention", "BatchNormalization", "CategoryEncoding", "Concatenate", "Dropout", "Masking", "MaxPooling3D"]
LONG = ("xla", "training", "export")


def found_in(name, **settings):
    case = CASES[name]
    try:
        check_layer(case.factory, case.inputs, **case.settings, **settings)
    except BrokenLayer as error:
        return error.broken
    return {}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_keras_layers_gives_no_false_alarm(name):
    found = found_in(name, skip=dict.fromkeys(LONG, "checked by pytest -m matrix"))
    assert {*found} == {*FAULTS.get(name, {})}, found


@pytest.mark.matrix
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_no_layer_of_keras_gives_a_false_alarm(name):
    found = found_in(name)
    assert {*found} - {*AT_TIMES.get(name, {})} == {*FAULTS.get(name, {})}, found


def test_every_layer_of_keras_has_a_case_or_a_reason_why_not():
    kinds = {name for name in dir(k) if isinstance(getattr(k, name), type)}
    assert kinds - ALIASES == {*CASES} | {*LEFT_OUT}
    assert not {*CASES} & {*LEFT_OUT}
    assert {*FAULTS} <= {*CASES} and {p for faults in FAULTS.values() for p in faults} <= {*PROPERTIES}


def test_faults_that_were_looked_into_are_there():
    """Two of the list, without the battery: where Keras mends them, the list has to shrink."""
    assert keras.layers.SimpleRNN(2, activity_regularizer="l2").get_config()["activity_regularizer"] is None
    assert "sparse" not in keras.layers.CategoryEncoding(num_tokens=3, sparse=True).get_config()
