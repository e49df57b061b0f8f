"""The study of deep perceptrons: five nets, what reaches their layers, and the figures that compare them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ml_collections import config_dict

from loops import testing
from research import runner, study
from research.configs import deep_mlp as config_file
from research.studies import deep_mlp
from research.study import InputError


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


def kinds(variant, depth=2):
    model = deep_mlp.make_model((8, 8), 10, variant=variant, depth=depth, units=5)
    return [type(layer).__name__ if not isinstance(layer, keras.layers.Dense) else layer.activation.__name__ for layer in model.layers]


def test_the_hidden_layers_are_what_the_variant_says():
    assert kinds("plain") == ["Flatten", "relu", "relu", "softmax"]
    assert kinds("batch_norm_after") == ["Flatten", *["relu", "BatchNormalization"] * 2, "softmax"]
    assert kinds("batch_norm_before") == ["Flatten", *["linear", "BatchNormalization", "ReLU"] * 2, "softmax"]
    assert kinds("selu") == ["Flatten", "selu", "selu", "softmax"]
    assert kinds("alpha_dropout") == ["Flatten", "selu", "selu", "AlphaDropout", "softmax"]


def test_selu_keeps_the_scale_of_the_signal_and_plain_layers_lose_it():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 64)).astype("float32")

    def last_hidden(variant):
        model = deep_mlp.make_model((64,), 10, variant=variant)
        return keras.Model(model.inputs[0], model.get_layer("hidden_20").output)(x).numpy()

    assert 0.5 < last_hidden("selu").std() < 2
    assert last_hidden("plain").std() < 0.01


def test_variants_are_trained_one_after_the_other_and_compared(tmp_path, monkeypatch, capsys):
    made = config(depth=2, units=4, epochs=1, batch_size=256, look_every="2 steps")
    assert tuple(study.build(made).parts) == deep_mlp.VARIANTS
    monkeypatch.setattr(deep_mlp, "VARIANTS", ("batch_norm_before", "alpha_dropout"))
    runs = runner.train(study.build(made), made, workdir=tmp_path, compile="eager")
    assert tuple(runs) == deep_mlp.VARIANTS
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"gradient_norms.png", "loss.png", "val_accuracy.png"}
    for name in runs:
        assert {"gradient_norms.png", "confusion_matrix.png"} <= {path.name for path in (tmp_path / name / "plots").iterdir()}
        # The gradients of every layer.
        tags = testing.read_events(tmp_path / name)["train"]
        assert sum("kernel/gradient_histogram" in tag for tag in tags) == 3
    table = capsys.readouterr().out.rpartition("gradient at step 2")[2]
    for name, run in runs.items():
        assert f"{run.test['accuracy']:.4f}" in next(line for line in table.splitlines() if line.startswith(name))


@pytest.mark.parametrize(("changes", "said"), [({"variant": "resnet"}, "'resnet'"), ({"dataset": "diabetes"}, "regression")])
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
