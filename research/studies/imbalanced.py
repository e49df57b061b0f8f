"""The study of rare classes: what class weights do for them, and that sample weights and weights in a `tf.data` pipeline do the same.

Config: `research/configs/imbalanced.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from research.data import datasets
from research.pictures import figures
from research.report import metrics_table
from research.studies.classification import make_model
from research.study import Comparison, InputError, Run, Runs, Study, from_config, in_scope
from research.supervised import make_optimizer

__all__ = ["RecallOf", "balanced_weights", "build", "make_rare"]

VALIDATION_SPLIT = 0.1


@keras.saving.register_keras_serializable("research")
class RecallOf(keras.metrics.Metric):
    """Of the examples of some classes, the share whose class was found.

    Args:
        classes: the classes.
        name: name of the metric.

    Example:
        >>> metric = RecallOf([1, 2])
        >>> metric.update_state([0, 1, 2, 2], [[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]])
        >>> round(float(metric.result()), 4)
        0.3333
    """

    def __init__(self, classes: Sequence[int], name: str = "recall", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.classes = tuple(int(c) for c in classes)
        self.found = self.add_variable(shape=(), initializer="zeros", name="found")
        self.asked = self.add_variable(shape=(), initializer="zeros", name="asked")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        labels = tf.reshape(tf.cast(y_true, tf.int64), [-1])
        weights = tf.cast(tf.reduce_any(labels[:, None] == tf.constant(self.classes, tf.int64), -1), self.dtype)
        if sample_weight is not None:
            weights *= tf.reshape(tf.cast(sample_weight, self.dtype), [-1])
        right = tf.cast(labels == tf.argmax(y_pred, -1), self.dtype)
        self.asked.assign_add(tf.reduce_sum(weights))
        self.found.assign_add(tf.reduce_sum(weights * right))

    def result(self) -> Any:
        return tf.math.divide_no_nan(tf.convert_to_tensor(self.found), tf.convert_to_tensor(self.asked))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": self.classes}


def make_rare(split: datasets.Split, rare: Sequence[int], keep: float) -> datasets.Split:
    """Leaves out most examples of some classes, and puts what is left into a fixed random order.

    Args:
        split: inputs and classes.
        rare: classes to make rare.
        keep: share of their examples to keep; at least two of each are kept.

    Returns:
        Inputs and classes; those of the rare classes that were first are kept.
    """
    kept = [np.flatnonzero(~np.isin(split.y, rare))]
    for label in rare:
        rows = np.flatnonzero(split.y == label)
        kept.append(rows[: max(2, round(keep * len(rows)))])
    order = np.random.RandomState(0).permutation(np.concatenate(kept))
    return datasets.Split(split.x[order], split.y[order])


def balanced_weights(labels: np.ndarray) -> dict[int, float]:
    """A weight for each class with which all classes weigh the same: examples / (classes * examples of the class).

    Example:
        >>> balanced_weights(np.array([0, 0, 0, 1]))
        {0: 0.6666666666666666, 1: 2.0}
    """
    classes, counts = np.unique(labels, return_counts=True)
    return {int(label): len(labels) / (len(classes) * int(count)) for label, count in zip(classes, counts, strict=True)}


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the comparison: one run without weights, three with the same weights given in three ways; see `research.study.build`.

    Raises:
        InputError: for data without classes, classes that it does not have, or a size that fits no model or batch.
    """
    data = datasets.load(config.dataset, normalization=config.normalize, data_dir=data_dir)
    if unknown := sorted(set(config.rare) - set(range(len(data.class_names)))):
        raise InputError(f"config.rare names class {unknown[0]}, but {config.dataset} has {len(data.class_names)} classes, from 0.")
    if not 0 < config.keep <= 1:
        raise InputError(f"config.keep is {config.keep}; it is the share of the examples of a rare class to keep, between 0 and 1.")
    whole = datasets.Split(np.concatenate([data.train.x, data.val.x]), np.concatenate([data.train.y, data.val.y]))
    x, y = make_rare(whole, config.rare, config.keep)
    # What `validation_split` does: the last examples, as they stand, are for validation.
    n = int(len(x) * (1 - VALIDATION_SPLIT))
    weights = balanced_weights(y[:n])
    weight_of_each = np.array([weights[int(label)] for label in y[:n]], "float32")

    def make_task() -> loops.SupervisedTask:
        model = make_model(x.shape[1:], len(data.class_names), hidden=config.hidden)
        metrics = ["accuracy", RecallOf(config.rare, name="rare_recall")]
        return loops.SupervisedTask(
            model, loss="sparse_categorical_crossentropy", optimizer=make_optimizer(config.optimizer), metrics=metrics
        )

    def part(how: str) -> Study:
        with from_config():
            with in_scope(strategy):
                task = make_task()
            train: loops.Feed
            if how == "tf_data":
                dataset = tf.data.Dataset.from_tensor_slices((x[:n], y[:n], weight_of_each))
                train = loops.DatasetFeed(dataset.batch(config.batch_size).prefetch(2))
            else:
                given = {"class_weight": {"class_weight": weights}, "sample_weight": {"sample_weight": weight_of_each}}
                train = loops.ArrayFeed((x[:n], y[:n]), batch_size=config.batch_size, **given.get(how, {}))
            val, test = (loops.ArrayFeed(split, batch_size=config.batch_size) for split in ((x[n:], y[n:]), data.test))

        def after(run: Run) -> list[str]:
            predicted = loops.PredictLoop(run.study.task).run(loops.ArrayFeed(data.test.x, batch_size=500)).argmax(-1)
            run.picture("confusion_matrix", figures.confusion_matrix(data.test.y, predicted, data.class_names))
            recalls = {label: float(np.mean(predicted[data.test.y == label] == label)) for label in config.rare}
            return [f"Recall of {data.class_names[label]}: {recall:.3f}" for label, recall in recalls.items()]

        return Study(
            task=task,
            model=task.model,
            train=train,
            evaluate={"val": val},
            test=test,
            monitor=None,
            title=f"{config.dataset} with rare classes, {how.replace('_', ' ')}",
            description="No weights." if how == "plain" else f"Weights given as {how}.",
            after=after,
            preprocessing=data.scaling,
        )

    def by_fit(runs: Runs) -> keras.Model:
        """The same as the part `class_weight`, by the front for compiled models."""
        keras.utils.set_random_seed(seed)
        with in_scope(strategy):
            model = make_task().model
        loops.fit(
            model,
            x,
            y,
            batch_size=config.batch_size,
            epochs=config.epochs,
            validation_split=VALIDATION_SPLIT,
            class_weight=weights,
            shuffle=False,
            seed=seed,
            compile=runs["class_weight"].loop.mode,
            workdir=None if runs.workdir is None else runs.workdir / "fit",
            verbose=0,
        )
        return model

    rare = ", ".join(data.class_names[label] for label in config.rare)
    return Comparison(
        parts={how: lambda _, how=how: part(how) for how in ("plain", "class_weight", "sample_weight", "tf_data")},
        conclude=lambda runs: _conclude(runs, by_fit(runs), config.rare),
        description=f"{data.description} Of the classes {rare} only {config.keep:.0%} are kept for training; the test set is whole. "
        f"The last {VALIDATION_SPLIT:.0%} of what is left are for validation.",
    )


def _conclude(runs: Mapping[str, Run], by_fit: keras.Model, rare: Sequence[int]) -> list[str]:
    weighted = runs["class_weight"].study.model.get_weights()
    rows = {name: {k: run.test[k] for k in ("loss", "accuracy", "rare_recall")} for name, run in runs.items()}
    lines = [f"On the test set; rare_recall is over the classes {', '.join(map(str, rare))}:", metrics_table(rows), ""]
    others = {name: run.study.model for name, run in runs.items() if name not in ("plain", "class_weight")}
    for name, model in {**others, "loops.fit with validation_split and class_weight": by_fit}.items():
        apart = max(float(np.abs(a - b).max()) for a, b in zip(model.get_weights(), weighted, strict=True))
        lines.append(
            f"{name}: " + ("the same weights as class_weight, bit for bit." if apart == 0 else f"weights differ by up to {apart:.1e}.")
        )
    return lines
