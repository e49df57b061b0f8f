"""An exported model predicts what the study's model does, from inputs as they are stored."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import config_dict

from loops import Position
from research import study
from research.configs import (
    callbacks,
    char_gru,
    classification,
    custom_layer,
    custom_losses,
    functional_graphs,
    imbalanced,
    mnist_tape,
    partial_updates,
    transfer,
)
from research.exports import fresh_process
from research.exports.inputs import example_inputs, prepared
from research.exports.write import FORMS, NotPossible, write
from research.study import InputError


def small(module=classification, **changes) -> config_dict.ConfigDict:
    made = module.get_config()
    made.update_from_flattened_dict({"epochs": 1, **changes})
    return made


def with_model(model: keras.Model) -> study.Study:
    """A study of which only the model matters."""
    return dataclasses.replace(study.build(small()), model=model, preprocessing=None)


@pytest.mark.parametrize(
    ("module", "part", "changes"),
    [
        (callbacks, None, {}),
        (custom_layer, None, {"units": 10}),
        (custom_losses, "subclass", {}),
        (custom_losses, "layer", {}),
        (functional_graphs, "residual-2", {"width": 8}),
        (imbalanced, "tf_data", {}),
        (mnist_tape, None, {}),
        (partial_updates, "policy", {}),
        (transfer, "source-0", {}),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else "").rpartition(".")[2],
)
def test_a_study_of_scaled_inputs_prepares_them_as_they_are_stored(module, part, changes):
    made, expected = scaled_study(module, part, **changes)
    raw = example_inputs(made)
    np.testing.assert_allclose(raw, np.rint(raw), atol=1e-5, err_msg="digits are stored as whole numbers")
    assert 15 < raw.max() < 17
    np.testing.assert_allclose(made.model(prepared(made, tf.constant(raw))), expected[: len(raw)], rtol=1e-4, atol=1e-5)


def scaled_study(module, part, **changes):
    """A study, or a part of a comparison, and what its model makes of its first test batch."""
    settings = small(module, **changes)
    if "normalize" in settings:
        settings.normalize = "zscore"
    built = study.build(settings)
    made = built if part is None else built.make(part, {}, seed=0)
    scaled = next(iter(made.test.blocks(Position()))).tensors[0]
    return made, made.model(tf.nest.map_structure(lambda stacked: stacked[0], scaled))


def test_the_saved_model_prepares_its_inputs_too(tmp_path):
    # Of all studies this one's preparation does most: it adds a second input.
    made, expected = scaled_study(custom_losses, "layer")
    raw = example_inputs(made)
    path = write(made, tmp_path, ["saved_model"])["saved_model"]
    served = tf.saved_model.load(str(path)).signatures["serving_default"](inputs=tf.constant(raw))["predictions"]
    np.testing.assert_allclose(served, expected[: len(raw)], rtol=1e-4, atol=1e-5)


def test_a_model_with_several_inputs_and_outputs_is_served_by_their_names(tmp_path):
    made = study.build(small(char_gru, units=8, embedding=4))
    path = write(made, tmp_path, ["saved_model"])["saved_model"]
    x = example_inputs(made, 3)
    assert [a.shape for a in x] == [(3, 8), (3, 8)] and x[0].dtype == np.int32
    serving = tf.saved_model.load(str(path)).signatures["serving_default"]
    outputs = serving(characters=tf.constant(x[0]), state=tf.constant(x[1]))
    for i, expected in enumerate(made.model([tf.constant(a) for a in x])):
        np.testing.assert_allclose(outputs[f"predictions_{i}"], expected, rtol=1e-5, atol=1e-6)
    assert (
        fresh_process.compare(
            [np.asarray(t) for t in made.model([tf.constant(a) for a in x])], fresh_process._serve(str(path), ["characters", "state"], x)
        )
        < 1e-5
    )


class Columns:
    """A preprocessing with a table of words in it, which has to come along."""

    def __init__(self):
        self.lookup = keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")

    def __call__(self, columns):
        return tf.concat([tf.cast(self.lookup(columns["colour"]), tf.float32), columns["weight"][:, None]], -1)


def test_tables_of_the_preprocessing_are_served_too(tmp_path):
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    columns = {"colour": np.array(["green", "blue", "red"]), "weight": np.array([1.0, 2.0, 3.0], "float32")}
    made = dataclasses.replace(with_model(model), preprocessing=Columns(), examples=columns)
    write(made, tmp_path, ["saved_model"])
    words = np.array([[0, 0, 1, 1], [1, 0, 0, 2], [0, 1, 0, 3]], "float32")
    serving = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    served = serving(**{name: tf.constant(column) for name, column in columns.items()})["predictions"]
    np.testing.assert_allclose(served, model(words), rtol=1e-5)
    # The same by way of the file that the process of `check` reads, which holds no objects.
    fresh_process.save(tmp_path / "given.npz", [tf.constant(column) for column in columns.values()], [served])
    inputs, expected = fresh_process._read(str(tmp_path / "given.npz"))
    found = fresh_process._serve(str(tmp_path / "saved_model"), list(columns), inputs)
    assert fresh_process.compare(expected, found) <= fresh_process.TOLERANCE


def test_a_preprocessing_without_examples_is_refused(tmp_path):
    with pytest.raises(InputError, match="no examples"):
        write(dataclasses.replace(with_model(keras.Sequential([keras.Input([4])])), preprocessing=Columns()), tmp_path, ["saved_model"])


def test_a_lambda_layer_is_exported_as_numbers_and_as_a_program_only(tmp_path):
    lambda_model = keras.Sequential([keras.Input([2]), keras.layers.Lambda(lambda x: x + 1, name="plus"), keras.layers.Dense(1)])
    written = write(with_model(lambda_model), tmp_path, FORMS)
    refused = {form: str(reason) for form, reason in written.items() if isinstance(reason, NotPossible)}
    assert set(refused) == {"architecture", "keras", "h5"} and all("'plus'" in reason for reason in refused.values())
