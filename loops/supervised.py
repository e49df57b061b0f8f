"""Model, loss, optimizer, metrics: the task that most people begin with."""

from __future__ import annotations

from typing import Any

import keras

from loops.keras_task import KerasTask

__all__ = ["SupervisedTask"]


class SupervisedTask(KerasTask):
    """Learns to predict targets from inputs, batches being `(x, y)` or `(x, y, sample_weight)`.

    Args:
        model: a `keras.Model`; it is compiled with what follows.
        loss: loss, its name, or a structure of these, one for each output.
        optimizer: optimizer or its name.
        metrics: metrics as `keras.Model.compile` takes them.
        weighted_metrics: metrics that sample weights apply to.
        loss_weights: weights of the losses of several outputs.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, activation="softmax")])
        >>> task = SupervisedTask(model, loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        loss: Any,
        optimizer: Any = "adam",
        metrics: Any = None,
        weighted_metrics: Any = None,
        loss_weights: Any = None,
    ):
        if isinstance(model, keras.Model):
            model.compile(
                optimizer=optimizer,
                loss=loss,
                metrics=metrics,
                weighted_metrics=weighted_metrics,
                loss_weights=loss_weights,
                jit_compile=False,
            )
        super().__init__(model)
