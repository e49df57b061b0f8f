"""The study of partial updates: some layers learn less often than others, some weights never; and other weights are loaded on a condition.

Config: `research/configs/partial_updates.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

import loops
from loops import hooks
from research.report import metrics_table
from research.studies.classification import make_model
from research.study import Comparison, InputError, Run, Runs, Study, from_config, in_scope
from research.supervised import classifier, load_classes, make_optimizer, supervised_study

__all__ = ["Biases", "PartialUpdates", "build"]


class PartialUpdates(loops.Task):
    """A classifier whose layers are each updated every so many steps, by an optimizer of their own.

        layer i learns at step s (counted from 0) if s % every_i == 0, and never if every_i is 0

    The gradient is that of the step; what is not updated keeps every bit, as do the slots and counts of its optimizer.

    Args:
        model: a model with softmax outputs.
        optimizers: name of a layer -> its optimizer.
        every: name of a layer -> steps from one update to the next.
    """

    def __init__(self, model: keras.Model, optimizers: Mapping[str, keras.optimizers.Optimizer], every: Mapping[str, int]):
        super().__init__()
        self.model = model
        self.optimizers_of = dict(optimizers)
        self.every = dict(every)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        x, y = batch
        with tf.GradientTape() as tape:
            y_pred = self.model(x, training=True)
            loss = self.compute_loss("sparse_categorical_crossentropy", y, y_pred)
        learning = [self.model.get_layer(name) for name, n in self.every.items() if n]
        gradients = tape.gradient(loss, [layer.trainable_variables for layer in learning])
        updates = {}
        for layer, its_gradients in zip(learning, gradients, strict=True):
            due = self.step % self.every[layer.name] == 0
            self.apply_gradients(its_gradients, layer.trainable_variables, self.optimizers_of[layer.name], when=due)
            updates[f"updates_{layer.name}"] = loops.Sum(tf.cast(due, tf.float32))
        self.accuracy.update_state(y, y_pred)
        return {"loss": loss, "accuracy": self.accuracy, **updates}

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        x, y = batch
        y_pred = self.model(x, training=False)
        self.accuracy.update_state(y, y_pred)
        return {"loss": self.compute_loss("sparse_categorical_crossentropy", y, y_pred), "accuracy": self.accuracy}

    def predict_step(self, x: Any) -> Any:
        return self.model(x, training=False)


class Biases(PartialUpdates):
    """A classifier of which only the biases learn: the choice is made by the list of variables.

    Args:
        model: a model with softmax outputs.
        optimizer: the optimizer.

    References:
        Ben Zaken et al. 2021, BitFit: simple parameter-efficient fine-tuning, arXiv:2106.10199.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer):
        super().__init__(model, {}, {})
        self.optimizer = optimizer

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        x, y = batch
        with tf.GradientTape() as tape:
            y_pred = self.model(x, training=True)
            loss = self.compute_loss("sparse_categorical_crossentropy", y, y_pred)
        self.minimize(loss, tape, self.optimizer, [v for v in self.model.trainable_variables if v.name == "bias"])
        self.accuracy.update_state(y, y_pred)
        return {"loss": loss, "accuracy": self.accuracy}


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the comparison of "policy", "biases" and "switch"; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set without classes, or rhythms that do not fit the layers.
    """
    data = load_classes(config, data_dir)
    if len(config.every) != len(config.hidden) + 1 or min(config.every) < 0 or not any(config.every):
        raise InputError(f"config.every needs a number of steps, or 0, for each of {len(config.hidden) + 1} layers; got {config.every}.")

    def model_of(name: str) -> keras.Model:
        model = make_model(data.train.x.shape[1:], len(data.class_names), hidden=config.hidden)
        return keras.Model(model.inputs[0], model.outputs[0], name=name)

    def study(task: loops.Task, title: str, description: str, *, begins_with: Sequence[Any], more: Sequence[Any] = ()) -> Study:
        remembered = Remembered(begins_with)
        return supervised_study(
            data,
            lambda: task,
            config=config,
            seed=seed,
            strategy=strategy,
            evaluation_batch=256,
            monitor=None,
            hooks=(hooks.TensorBoard(update_freq=1), remembered, *more),
            title=title,
            description=description,
            after=remembered.lines,
            preprocessing=data.scaling,
        )

    def policy(before: Mapping[str, Run]) -> Study:
        with from_config(), in_scope(strategy):
            model = model_of("policy")
            names = [layer.name for layer in model.layers if layer.weights]
            every = dict(zip(names, config.every, strict=True))
            task = PartialUpdates(model, {name: make_optimizer(config.optimizer) for name in names if every[name]}, every)
        rhythm = ", ".join(f"{name} every {n} steps" if n else f"{name} never" for name, n in every.items())
        return study(task, "by a policy", f"policy: {rhythm}.", begins_with=model.get_weights())

    def biases(before: Mapping[str, Run]) -> Study:
        with in_scope(strategy):
            model = model_of("biases")
            model.set_weights(before["policy"].study.model.get_weights())
            task = Biases(model, make_optimizer(config.optimizer))
        return study(task, "biases alone", "biases: goes on from there, and all kernels stay as they are.", begins_with=model.get_weights())

    def switch(before: Mapping[str, Run]) -> Study:
        with in_scope(strategy):
            model = model_of("switch")
            task = classifier(model, {**config.optimizer, "learning_rate": config.slow})
        other = before["policy"].study.model.get_weights()
        load = hooks.LoadWeights(other, "loss", patience=config.stagnation, min_delta=config.min_delta)
        return study(
            task, "a switch", f"switch: learning rate {config.slow:g}, until other weights are loaded.", begins_with=other, more=[load]
        )

    def conclude(runs: Runs) -> list[str]:
        return metrics_table({name: run.test for name, run in runs.items()}).splitlines()

    return Comparison(
        parts={"policy": policy, "biases": biases, "switch": switch},
        conclude=conclude,
        description=f"{data.description} Part of the parameters, and other weights.",
    )


class Remembered(hooks.Hook):
    """Knows weights, and says at the end which of the model's still have their bits.

    Args:
        weights: arrays in the order of `model.weights`.
    """

    every = None

    def __init__(self, weights: Sequence[Any]):
        self.weights = [w.copy() for w in weights]

    def untouched(self, model: keras.Model) -> list[str]:
        """Paths of the weights that are the same, bit for bit."""
        return [v.path for v, w in zip(model.weights, self.weights, strict=True) if v.numpy().tobytes() == w.tobytes()]

    def lines(self, run: Run) -> list[str]:
        """What a study prints when it has ended."""
        same = self.untouched(run.study.model)
        lines = [f"Bitwise what they were at first: {', '.join(same) or 'no weights'}."]
        for name, values in run.history.history.items():
            if name.startswith("updates_"):
                lines.append(f"{name.removeprefix('updates_')}: {int(sum(values)):,} updates in {run.loop.progress.step:,} steps.")
        loaded = run.history.history.get("weights_loaded", [])
        if any(loaded):
            at = loaded.index(1)
            before, after = (run.history.history["loss"][i] for i in (at - 1, at))
            steps = run.loop.progress.step // len(loaded)
            lines = [f"Other weights were loaded after step {at * steps:,}, before epoch {at + 1}: loss {before:.3f} -> {after:.3f}."]
        return lines
