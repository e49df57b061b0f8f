"""The classification study: a multi-layer perceptron on images or tables, what normalising its inputs does, and where it errs.

Config: `research/configs/classification.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from research.data import datasets
from research.pictures import figures
from research.study import Run, Study
from research.supervised import classifier, load_classes, supervised_study

__all__ = ["build", "make_model", "show_predictions"]

_MISTAKES_SHOWN = 30


def make_model(input_shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (300, 100), activation: str = "relu") -> keras.Model:
    """A perceptron: flattened inputs, fully connected hidden layers, softmax.

    Args:
        input_shape: shape of one example, without the batch dimension.
        classes: number of classes.
        hidden: units of each hidden layer.
        activation: activation of the hidden layers.

    Returns:
        A model that maps float32 `[B, *input_shape]` to class probabilities `[B, classes]`.

    Example:
        >>> make_model((28, 28), 10).count_params()
        266610
    """
    layers = [keras.Input(tuple(input_shape)), keras.layers.Flatten()]
    layers += [keras.layers.Dense(units, activation=activation) for units in hidden]
    return keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax")], name="classifier")


def show_predictions(run: Run, test: datasets.Split, class_names: Sequence[str]) -> list[str]:
    """Draws which classes were taken for which (`confusion_matrix`) and, of images, some that were mistaken (`mistakes`).

    Args:
        run: a study whose model gives class probabilities or logits `[B, classes]`.
        test: the examples to show it by, inputs as the model takes them.
        class_names: name of each class index.

    Returns:
        A line on the mistake that is made most often.
    """
    scores = loops.PredictLoop(run.study.task, strategy=run.loop.strategy).run(loops.ArrayFeed(test.x, batch_size=256))
    predicted = np.argmax(scores, axis=-1)
    run.picture("confusion_matrix", figures.confusion_matrix(test.y, predicted, class_names, title=f"{run.study.title}: test set"))
    wrong = np.flatnonzero(predicted != test.y)
    if not len(wrong):
        return ["No mistake on the test set."]
    if test.x.ndim > 2:
        chosen = wrong[:_MISTAKES_SHOWN]
        titles = [f"{class_names[predicted[i]]}?\n{class_names[test.y[i]]}" for i in chosen]
        title = f"{len(wrong):,} of {len(test.y):,} mistaken: what it said, and what it is"
        run.picture("mistakes", figures.image_grid(test.x[chosen], titles=titles, title=title))
    pairs, counts = np.unique(np.stack([test.y[wrong], predicted[wrong]]), axis=1, return_counts=True)
    most = int(np.argmax(counts))
    true, taken = (class_names[i] for i in pairs[:, most])
    return [f"The most frequent mistake: {true} taken for {taken}, {counts[most]} of {np.sum(test.y == pairs[0, most]):,} times."]


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set, normalisation or optimizer that does not exist, or sizes that fit no model or batch.
    """
    data = load_classes(config, data_dir)

    def task() -> loops.Task:
        shape, classes = data.train.x.shape[1:], len(data.class_names)
        return classifier(make_model(shape, classes, hidden=config.hidden, activation=config.activation), config.optimizer)

    return supervised_study(
        data,
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        title=f"{config.dataset} ({config.normalize}), {config.optimizer.name} {config.optimizer.learning_rate:g}",
        description=f"{data.description} Inputs: {config.normalize}.",
        after=lambda run: show_predictions(run, data.test, data.class_names),
        preprocessing=data.scaling,
    )
