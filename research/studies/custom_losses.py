"""A loss of one's own in three ways: as a function, as a subclass of `keras.losses.Loss`, and in a layer that calls `add_loss`.

Config: `research/configs/custom_losses.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import layers
import loops
from research.report import metrics_table
from research.studies.classification import make_model
from research.study import Comparison, Runs, Study
from research.supervised import Parts, load_classes, make_optimizer, supervised_study

__all__ = ["FocalLoss", "FocalLossLayer", "build", "focal_loss", "with_loss_layer"]


def focal_loss(y_true: Any, y_pred: Any, gamma: float = 2.0) -> tf.Tensor:
    """Cross-entropy in which an example counts the less the better it is predicted: `-(1 - p)^gamma log p`.

    The first way. A function that takes targets and predictions is a loss; Keras takes the mean over the examples.

    Args:
        y_true: classes, `[B]` or `[B, 1]`.
        y_pred: probabilities `[B, classes]`.
        gamma: how much less; 0 is the cross-entropy.

    Returns:
        `[B]`.

    References:
        Lin et al. 2017, Focal loss for dense object detection, arXiv:1708.02002.

    Example:
        >>> focal_loss([0], [[0.5, 0.5]]).numpy().round(4)  # log 2 / 4
        array([0.1733], dtype=float32)
    """
    y_pred = tf.convert_to_tensor(y_pred)
    classes = tf.reshape(tf.cast(y_true, tf.int32), [-1])
    # Keras's own bound for probabilities, so that no logarithm is infinite.
    p = tf.clip_by_value(tf.gather(y_pred, classes, batch_dims=1), keras.config.epsilon(), 1 - keras.config.epsilon())
    return -((1 - p) ** gamma) * tf.math.log(p)


@keras.saving.register_keras_serializable("research")
class FocalLoss(keras.losses.Loss):
    """The second way: a loss with a parameter.

    Args:
        gamma: as in `focal_loss`.
    """

    def __init__(self, gamma: float = 2.0, name: str = "focal_loss", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.gamma = gamma

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        return focal_loss(y_true, y_pred, self.gamma)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma}


@keras.saving.register_keras_serializable("research")
class FocalLossLayer(layers.Layer):
    """The third way: a layer that is given targets and predictions, adds the loss, and hands on the predictions.

    Args:
        gamma: as in `focal_loss`.
    """

    def __init__(self, gamma: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.gamma = gamma

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        self.add_loss(tf.reduce_mean(focal_loss(y_true, y_pred, self.gamma)))
        return y_pred

    def compute_output_shape(self, y_true_shape: Any, y_pred_shape: Any) -> Any:
        return y_pred_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "gamma": self.gamma}


def with_loss_layer(classifier: keras.Model, gamma: float) -> keras.Model:
    """The classifier with its loss inside: a model of images and labels that is compiled without a loss.

    Args:
        classifier: maps images to probabilities.
        gamma: as in `focal_loss`.

    Returns:
        A model that maps a pair of images and labels to the same probabilities. `classifier` shares its weights, and needs no labels.
    """
    labels = keras.Input([], dtype="int32", name="labels")
    predictions = FocalLossLayer(gamma, name="loss")(labels, classifier.outputs[0])
    return keras.Model([*classifier.inputs, labels], predictions)


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the comparison: three runs that differ in how the loss is given; for the arguments see `research.study.build`.

    Raises:
        InputError: for data without classes, or a size that fits no model or batch.
    """
    data = load_classes(config, data_dir)

    def unlabelled(x: Any) -> Any:
        # Predictions do not depend on the labels that the model with its loss inside takes: any will do.
        return [data.scaling(x), tf.zeros(tf.shape(x)[:1], tf.int32)]

    def part(loss: Any, *, in_layer: bool = False) -> Study:
        def task() -> loops.Task:
            model = make_model(data.train.x.shape[1:], len(data.class_names), hidden=config.hidden)
            model = with_loss_layer(model, config.gamma) if in_layer else model
            return loops.SupervisedTask(model, loss=loss, optimizer=make_optimizer(config.optimizer), metrics=["accuracy"])

        parts = [((split.x, split.y) if in_layer else split.x, split.y) for split in (data.train, data.val, data.test)]
        return supervised_study(
            Parts(*parts),
            task,
            config=config,
            seed=seed,
            strategy=strategy,
            monitor=None,
            title=f"{config.dataset}, focal loss with gamma {config.gamma:g}",
            description="The loss is in a layer." if in_layer else f"The loss is a {type(loss).__name__}.",
            preprocessing=unlabelled if in_layer else data.scaling,
            examples=data.scaling.inverse(data.test.x[:16]),
        )

    def function(y_true: Any, y_pred: Any) -> tf.Tensor:
        return focal_loss(y_true, y_pred, config.gamma)

    return Comparison(
        parts={
            "function": lambda _: part(function),
            "subclass": lambda _: part(FocalLoss(config.gamma)),
            "layer": lambda _: part(None, in_layer=True),
        },
        conclude=_conclude,
        description=f"{data.description} Focal loss, gamma {config.gamma:g}, given in three ways.",
    )


def _conclude(runs: Runs) -> list[str]:
    """Shows how far the runs are from the first: 0 is the same bits."""
    first = runs["function"]
    rows: dict[str, Mapping[str, Any]] = {}
    for name, run in runs.items():
        rows[name] = {
            "test loss": run.test["loss"],
            "test accuracy": run.test["accuracy"],
            "largest difference of a loss": np.abs(np.subtract(run.history.history["loss"], first.history.history["loss"])).max(),
            "of a val_loss": np.abs(np.subtract(run.history.history["val_loss"], first.history.history["val_loss"])).max(),
            "of a weight": max(
                np.abs(a - b).max() for a, b in zip(run.study.model.get_weights(), first.study.model.get_weights(), strict=True)
            ),
        }
    return ["Differences are from the run with the function, over all epochs; 0: the same bits.", metrics_table(rows)]
