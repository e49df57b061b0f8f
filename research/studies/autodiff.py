"""The automatic differentiation study: a classifier that is also taught to depend little on its inputs, and what tapes say about it.

The penalty is a derivative itself, so a training step differentiates twice. The functions of tapes are in
`research/formulas/derivatives.py`, the formulas that check them in `research/formulas/closed_forms.py`. Config:
`research/configs/autodiff.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from research.data import datasets
from research.formulas import closed_forms, derivatives
from research.pictures import figures
from research.report import metrics_table
from research.study import Comparison, InputError, Run, Runs, Study
from research.supervised import load_classes, make_optimizer, supervised_study

__all__ = ["PenalizedTask", "build", "make_model"]

_EXAMPLES = 250
_PICTURED = 8


def make_model(input_shape: Sequence[int], classes: int, *, hidden: Sequence[int], activation: str) -> keras.Model:
    """A perceptron that maps float32 `[B, *input_shape]` to logits `[B, classes]`."""
    layers = [keras.Input(tuple(input_shape)), keras.layers.Flatten()]
    layers += [keras.layers.Dense(units, activation=activation) for units in hidden]
    return keras.Sequential([*layers, keras.layers.Dense(classes)], name="classifier")


class PenalizedTask(loops.Task):
    """Classifies with small slopes: the loss and `penalty` times the mean over examples of `|d loss / d x|^2` are minimised together.

    Args:
        model: from inputs to logits.
        optimizer: what updates it.
        penalty: weight of the squared slopes, 0 or more.
        shift: how far evaluation moves each input in the direction in which its loss rises most, in units of the inputs.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, *, penalty: float, shift: float):
        super().__init__()
        self.model, self.optimizer = model, optimizer
        self.penalty, self.shift = penalty, shift

    def losses(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The cross-entropy of every example, `[B]`, in nats."""
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=self.model(x))

    def slopes(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """The derivative of every example's loss by its inputs, `[B, ...]`."""
        with tf.GradientTape() as tape:
            tape.watch(x)
            losses = self.losses(x, y)
        return tape.gradient(losses, x)

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.losses(x, y))
            slope = derivatives.squared_input_gradient(lambda inputs: self.losses(inputs, y), x) if self.penalty else tf.zeros([])
            total = loss + self.penalty * slope
        self.minimize(total, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss, "squared_slope": slope} if self.penalty else {"loss": loss}

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        x, y = batch
        slopes = self.slopes(x, y)
        found = {
            "loss": tf.reduce_mean(self.losses(x, y)),
            "squared_slope": tf.reduce_mean(tf.reduce_sum(slopes**2, list(range(1, len(x.shape))))),
        }
        for name, inputs in (("accuracy", x), ("shifted_accuracy", x + self.shift * tf.sign(slopes))):
            right = tf.argmax(self.model(inputs), -1, y.dtype) == y
            found[name] = tf.reduce_mean(tf.cast(right, tf.float32))
        return found


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the study: the same classifier twice, without and with the penalty; for the arguments see `research.study.build`.

    Raises:
        InputError: for data without classes, a negative penalty, or sizes that fit no model or batch.
    """
    data = load_classes(config, data_dir)
    if not config.penalty > 0:
        raise InputError(f"config.penalty is {config.penalty}; the part that has no penalty is made anyway, so give one above 0.")

    def part(_: Mapping[str, Run], *, penalty: float) -> Study:
        def task() -> loops.Task:
            model = make_model(data.train.x.shape[1:], len(data.class_names), hidden=config.hidden, activation=config.activation)
            return PenalizedTask(model, make_optimizer(config.optimizer), penalty=penalty, shift=config.shift)

        return supervised_study(
            data,
            task,
            config=config,
            seed=seed,
            strategy=strategy,
            title=f"{config.dataset}, penalty {penalty:g}",
            description=f"{data.description} Inputs: {config.normalize}. Squared slopes are weighted by {penalty:g}.",
            preprocessing=data.scaling,
        )

    return Comparison(
        parts={"plain": functools.partial(part, penalty=0.0), "penalized": functools.partial(part, penalty=config.penalty)},
        conclude=functools.partial(_conclude, data=data),
        description=f"{data.description} Trained on the loss alone, and with {config.penalty:g} times the squared slope by the inputs.",
    )


def _conclude(runs: Runs, *, data: datasets.Dataset) -> list[str]:
    rows = {name: {**run.test, **_second_look(run, data)} for name, run in runs.items()}
    shown = data.test.x[:_PICTURED]
    if shown.ndim == 3:
        labels = tf.constant(data.test.y[:_PICTURED])
        slopes = [np.abs(run.study.task.slopes(tf.constant(shown), labels).numpy()) for run in runs.values()]
        titles = [f"{title} {data.class_names[y]}" for title in ("", *(f"{name}:" for name in runs)) for y in data.test.y[:_PICTURED]]
        brightest = [images / images.max(axis=(1, 2), keepdims=True) for images in (shown - shown.min(), *slopes)]
        runs.picture("slopes", figures.image_grid(np.concatenate(brightest), columns=_PICTURED, titles=titles))
    return ["On the test set, and of the training loss:", "", metrics_table(rows), "", *closed_forms.table(closed_forms.checks())]


def _second_look(run: Run, data: datasets.Dataset) -> dict[str, float]:
    """What second derivatives and per-example gradients say about the weights that were learnt."""
    task = run.study.task
    x, y = (tf.constant(part[:_EXAMPLES]) for part in data.train)
    variables = run.study.model.trainable_variables
    curvature = derivatives.largest_curvature(lambda: tf.reduce_mean(task.losses(x, y)), variables)

    @tf.function
    def gradient_of_each() -> Any:
        return derivatives.per_example_gradients(lambda: task.losses(x, y), variables)

    sizes = tf.sqrt(tf.add_n([tf.reduce_sum(g**2, list(range(1, len(g.shape)))) for g in gradient_of_each()])).numpy()
    return {"curvature": float(curvature), "largest_gradient": float(sizes.max()), "median_gradient": float(np.median(sizes))}
