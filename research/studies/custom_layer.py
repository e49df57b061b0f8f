"""The custom layer study: a layer with weights, config and output shape of its own, in a model that is saved and loaded.

Config: `research/configs/custom_layer.py`. For layers that many studies share see the package `layers` and `docs/writing_layers.md`.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from research.study import InputError, Run, Study
from research.supervised import classifier, load_classes, supervised_study

__all__ = ["RadialBasis", "build", "make_model", "save_and_load"]


@keras.saving.register_keras_serializable(package="research")
class RadialBasis(keras.layers.Layer):
    """Near which of its centres is the input? `y_j = exp(-softplus(width_j) |x - centre_j|^2)`, for inputs `[B, features]`.

    Args:
        units: number of centres, and of outputs.

    Example:
        >>> RadialBasis(3)(np.zeros([2, 5], "float32")).shape
        TensorShape([2, 3])
    """

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape: Sequence[int | None]) -> None:
        self.centres = self.add_weight(shape=[input_shape[-1], self.units], initializer="random_uniform", name="centres")
        self.width = self.add_weight(shape=[self.units], initializer="zeros", name="width")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        squared_norms = tf.reduce_sum(inputs**2, -1, keepdims=True) + tf.reduce_sum(self.centres**2, 0)
        distances = squared_norms - 2 * tf.matmul(inputs, self.centres)
        return tf.exp(-tf.nn.softplus(self.width) * distances)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*input_shape[:-1], self.units)


def make_model(input_shape: Sequence[int], classes: int, *, units: int) -> keras.Model:
    """A radial basis function network: flattened inputs, one `RadialBasis`, softmax.

    Args:
        input_shape: shape of one example.
        classes: number of classes.
        units: centres.
    """
    layers = [keras.Input(tuple(input_shape)), keras.layers.Flatten(), RadialBasis(units, name="basis")]
    return keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax", name="probabilities")], name="radial_basis_network")


def save_and_load(model: keras.Model, path: str | os.PathLike[str]) -> keras.Model:
    """Saves a whole model, config and weights, and gives what is loaded from the file.

    Args:
        model: the model.
        path: where to save, ending in ".keras".
    """
    model.save(path)
    return keras.models.load_model(path)


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set without classes, or sizes that fit no model.
    """
    data = load_classes(config, data_dir)
    if config.units < 1:
        raise InputError(f"config.units is {config.units}; the layer needs 1 centre or more.")

    def task() -> loops.Task:
        return classifier(make_model(data.train.x.shape[1:], len(data.class_names), units=config.units), config.optimizer)

    def after(run: Run) -> list[str]:
        with tempfile.TemporaryDirectory() as temporary:
            path = pathlib.Path(temporary) / "model.keras"
            loaded = save_and_load(run.study.model, path)
            kilobytes = path.stat().st_size / 1024
        outputs, again = (loops.predict(m, data.test.x, batch_size=config.batch_size, compile="graph") for m in (run.study.model, loaded))
        layer = loaded.get_layer("basis")
        shapes = f"{layer.compute_output_shape((None, *layer.input.shape[1:]))} said, {tuple(layer.output.shape)} seen"
        return [
            f"Saved as model.keras ({kilobytes:.0f} kB) and loaded: {type(layer).__name__}, {layer.count_params():,} weights.",
            f"Outputs of the loaded model on {len(outputs):,} test examples: "
            + ("the same bits." if np.array_equal(outputs, again) else f"they differ by up to {np.abs(outputs - again).max():g}."),
            f"Shape of the layer's output: {shapes}.",
        ]

    return supervised_study(
        data,
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        title=f"{config.dataset}, {config.units} radial basis functions",
        description=f"{data.description} A layer of {config.units} radial basis functions.",
        after=after,
        preprocessing=data.scaling,
    )
