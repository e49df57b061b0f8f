"""The tape study: a loop written by hand around `tf.GradientTape`, run eagerly, and the same step compiled by a `TrainLoop`.

Config: `research/configs/mnist_tape.py`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from research.data import datasets
from research.pictures import figures
from research.report import metrics_table
from research.study import InputError, Run, Study
from research.supervised import make_optimizer, supervised_study

__all__ = ["TapeTask", "Timed", "batches_of", "build", "compare", "make_model", "train_by_hand"]


def make_model(shape: Sequence[int], classes: int) -> keras.Model:
    """Two convolutions of 16 filters, the mean over all places, a linear layer.

    Args:
        shape: shape of an image, `[height, width]`.
        classes: number of classes.

    Returns:
        A model that maps float32 `[B, height, width]` to logits `[B, classes]`.

    Example:
        >>> make_model((28, 28), 10).count_params()
        2650
    """
    return keras.Sequential(
        [
            keras.Input(tuple(shape)),
            keras.layers.Reshape((*shape, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(classes),
        ],
        name="tape",
    )


def train_by_hand(model: keras.Model, optimizer: keras.optimizers.Optimizer, batches: Iterable[Any]) -> list[float]:
    """The loop as one writes it first: eager, a step at a time, the shapes asserted and the loss fetched at every step.

    Args:
        model: what `make_model` gives.
        optimizer: a Keras optimizer.
        batches: pairs of images `[B, height, width]` and labels `[B]`.

    Returns:
        The loss of each step.
    """
    loss_object = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss_history = []
    for images, labels in batches:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            tf.debugging.assert_equal(logits.shape, (labels.shape[0], model.output_shape[-1]))
            loss = loss_object(labels, logits)
        loss_history.append(float(loss.numpy().mean()))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss_history


class TapeTask(loops.Task):
    """The same step as a task: the lines between `for` and the fetch, and what to report.

    The assert costs nothing here: shapes of batches of fixed size are known while the step is traced, and checked there, once.

    Args:
        model: what `make_model` gives.
        optimizer: a Keras optimizer.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer):
        super().__init__()
        self.model, self.optimizer = model, optimizer
        self.loss_object = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        images, labels = batch
        with tf.GradientTape() as tape:
            logits = self.model(images, training=True)
            tf.debugging.assert_equal(logits.shape, (labels.shape[0], self.model.output_shape[-1]))
            loss = self.compute_loss(self.loss_object, labels, logits)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        self.accuracy.update_state(labels, logits)
        return {"loss": loss, "accuracy": self.accuracy}

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        images, labels = batch
        logits = self.model(images, training=False)
        self.accuracy.update_state(labels, logits)
        return {"loss": self.compute_loss(self.loss_object, labels, logits), "accuracy": self.accuracy}

    def predict_step(self, x: Any) -> Any:
        return self.model(x, training=False)


def batches_of(feed: loops.Feed) -> Iterator[Any]:
    """The batches of a feed's passes, one by one and without end, as a loop by hand takes them."""
    passes = 0
    while True:
        for block in feed.blocks(loops.Position(passes)):
            for i in range(block.n):
                yield tf.nest.map_structure(lambda stacked, i=i: stacked[i], block.tensors)
        passes += 1


@dataclasses.dataclass(frozen=True)
class Timed:
    """What training some steps gave.

    Attributes:
        losses: of each step.
        rate: steps per second, compilation left out.
    """

    losses: np.ndarray
    rate: float


def compare(config: Any, train: datasets.Split, classes: int, *, seed: int) -> dict[str, Timed]:
    """Trains the same new model on the same batches by hand, in an eager `TrainLoop`, and in a compiled one.

    Args:
        config: fields `batch_size`, `optimizer`, and `compare` (`steps`, and `warm_up` steps before them that are not timed).
        train: images and labels.
        classes: number of classes.
        seed: seed of weights and of the order of the data.

    Returns:
        Name of the way -> losses and speed.
    """
    warm_up, steps = config.compare.warm_up, config.compare.steps

    def begin() -> tuple[keras.Model, keras.optimizers.Optimizer, loops.Feed]:
        keras.utils.set_random_seed(seed)
        model = make_model(train.x.shape[1:], classes)
        feed = loops.ArrayFeed(train, batch_size=config.batch_size, shuffle=True, seed=seed, drop_remainder=True)
        return model, make_optimizer(config.optimizer), feed

    def by_hand() -> Timed:
        model, optimizer, feed = begin()
        batches = batches_of(feed)
        losses = train_by_hand(model, optimizer, (next(batches) for _ in range(warm_up)))
        begun = time.perf_counter()
        losses += train_by_hand(model, optimizer, (next(batches) for _ in range(steps)))
        return Timed(np.asarray(losses), steps / (time.perf_counter() - begun))

    def in_loop(compile: str) -> Timed:
        model, optimizer, feed = begin()
        record = _Losses()
        loop = loops.TrainLoop(TapeTask(model, optimizer), feed, hooks=[record], compile=compile, seed=seed)
        loop.run(steps=warm_up)
        begun = time.perf_counter()
        loop.run(steps=warm_up + steps)
        return Timed(np.concatenate(record.losses), steps / (time.perf_counter() - begun))

    return {"by hand, eager": by_hand(), "TrainLoop, eager": in_loop("eager"), "TrainLoop, compiled": in_loop("graph")}


class _Losses(hooks.Hook):
    """Keeps the loss of every step."""

    final_window = True

    def __init__(self) -> None:
        self.losses: list[np.ndarray] = []

    def on_window_end(self, loop: loops.TrainLoop, window: loops.Window) -> None:
        self.losses.append(window.trace["loss"])


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    Raises:
        InputError: if the data is not of images with classes, or a size fits no model or batch.
    """
    data = datasets.load(config.dataset, normalization="minmax", data_dir=data_dir)
    if data.train.x.ndim != 3 or not data.class_names:
        raise InputError(f"{config.dataset} holds no images with classes; choose digits, mnist or fashion_mnist as config.dataset.")
    classes = len(data.class_names)

    def task() -> loops.Task:
        return TapeTask(make_model(data.train.x.shape[1:], classes), make_optimizer(config.optimizer))

    def after(run: Run) -> list[str]:
        predicted = loops.PredictLoop(run.study.task).run(loops.ArrayFeed(data.test.x, batch_size=500)).argmax(-1)
        run.picture("confusion_matrix", figures.confusion_matrix(data.test.y, predicted, data.class_names))
        return _lines(compare(config, data.train, classes, seed=seed))

    return supervised_study(
        data,
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        drop_remainder=True,
        title=f"{config.dataset}, two convolutions",
        description=f"{data.description} Batches of {config.batch_size}, what is left over of a pass is left out.",
        after=after,
        preprocessing=data.scaling,
    )


def _lines(results: Mapping[str, Timed]) -> list[str]:
    reference = results["by hand, eager"]
    rows = {
        name: {
            "first loss": timed.losses[0],
            "last loss": timed.losses[-1],
            "largest difference": np.abs(timed.losses - reference.losses).max(),
            "steps/s": timed.rate,
            "speed-up": timed.rate / reference.rate,
        }
        for name, timed in results.items()
    }
    return [f"The same {len(reference.losses)} steps from the same weights:", metrics_table(rows)]
