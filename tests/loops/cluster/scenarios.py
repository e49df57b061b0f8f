"""What workers are made to do: each scenario is played by two workers, and by one process with two replicas.

A scenario takes a strategy and returns what it found, made of numbers, strings and arrays.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from loops.cluster import Cluster
from loops.tasks.replicas import local_variables
from tests.loops import tiny

N, BATCH = 97, 32  # the last batch of one example leaves the second worker without any

_MODULES = ("of_tasks", "of_one_worker", "of_changes", "of_kills")
_scenarios: dict[str, Callable[..., dict[str, Any]]] = {}


def scenario(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    _scenarios[function.__name__] = function
    return function


def play(name: str, strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Plays a scenario: the name of a function, or `<feed>-<technique>` of the matrix.

    Args:
        name: which; arguments may follow, behind slashes.
        strategy: under which models are made.
        folder: for files; two workers share it.
    """
    keras.utils.clear_session(free_memory=False)
    name, *arguments = name.split("/")
    if "-" in name:
        loop = loop_of_case(*name.split("-"), strategy)
        loop.run(epochs=3)
        return found(loop)
    for module in _MODULES:
        importlib.import_module(f"tests.loops.cluster.{module}")
    return _scenarios[name](strategy, folder, *arguments)


# The matrix.

FEEDS = ("arrays", "dataset", "generator")
TECHNIQUES = ("sgd", "adam", "mixed", "accumulation", "ema", "plateau", "stopping", "norm")


def feed_of(kind: str, data: Any) -> loops.feeds.Feed:
    """The same batches in other forms; the arrays are shuffled."""
    if kind == "arrays":
        return loops.ArrayFeed(data, BATCH, shuffle=True, seed=5)
    if kind == "dataset":
        return loops.DatasetFeed(tf.data.Dataset.from_tensor_slices(data).shuffle(50, seed=3).batch(BATCH))

    def batches(pass_index: int) -> Any:
        order = np.random.default_rng(pass_index).permutation(len(data[0]))
        for i in range(0, len(order), BATCH):
            yield tuple(part[order[i : i + BATCH]] for part in data)

    return loops.GeneratorFeed(batches)


def _optimizer(technique: str) -> Any:
    if technique == "sgd":
        return keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    more: dict[str, Any] = {}
    if technique == "accumulation":
        more = {"gradient_accumulation_steps": 2}
    elif technique == "ema":
        more = {"use_ema": True, "ema_momentum": 0.8}
    adam = keras.optimizers.Adam(0.05, **more)
    return keras.optimizers.LossScaleOptimizer(adam, initial_scale=2.0**12, dynamic_growth_steps=3) if technique == "mixed" else adam


def model_of(*, norm: bool = False, dtype: Any = None, dropout: float = 0.0) -> keras.Model:
    keras.utils.set_random_seed(1)
    layers: list[Any] = [keras.Input([tiny.N_FEATURES]), keras.layers.Dense(5, "tanh", dtype=dtype)]
    if norm:
        layers.append(keras.layers.BatchNormalization())
    if dropout:
        layers.append(keras.layers.Dropout(dropout, seed=1))
    return keras.Sequential([*layers, keras.layers.Dense(tiny.N_CLASSES, dtype=dtype), keras.layers.Activation("softmax", dtype="float32")])


def loop_of_case(feed: str, technique: str, strategy: tf.distribute.Strategy, *, added: Any = (), **settings: Any) -> loops.TrainLoop:
    """A loop with everything that a technique adds."""
    x, y = tiny.data(N)
    if technique == "mixed":
        x[3] *= 3e4  # overflows in half precision, on the worker that gets this example
    with strategy.scope():
        model = model_of(norm=technique == "norm", dtype="mixed_float16" if technique == "mixed" else None)
        task = loops.SupervisedTask(
            model,
            loss="sparse_categorical_crossentropy",
            optimizer=_optimizer(technique),
            metrics=["accuracy", "sparse_top_k_categorical_accuracy"],
        )
    added = list(added)
    if technique == "plateau":
        added += [hooks.ReduceLROnPlateau("val_loss", patience=1, min_delta=10.0)]
    elif technique == "stopping":
        added += [hooks.EarlyStopping("val_loss", patience=1, min_delta=10.0, restore_best_weights=True)]
    evaluate = {"val": loops.ArrayFeed((x[4:40], y[4:40]), 16)}
    settings = {"clip": 0.5 if technique in ("sgd", "mixed") else None, "compile": "graph", **settings}
    return loops.TrainLoop(task, feed_of(feed, (x, y)), added, evaluate=evaluate, strategy=strategy, **settings)


def found(loop: loops.TrainLoop, **more: Any) -> dict[str, Any]:
    """What a run has come to: the values of this process, of its first replica."""
    tracked = loop.task.tracked
    return {
        "outcome": loop.outcome,
        "step": loop.progress.step,
        "history": arrays_of(loop.history),
        "model": [local(variable) for variable in tracked.model_variables() if variable.trainable],
        "own": [copies(variable) for variable in tracked.model_variables() if not variable.trainable],
        "optimizer": [local(variable) for variable in tracked.optimizer_variables()],
        "rates": {name: float(rate) for name, rate in loop.learning_rate.items()},
        **more,
    }


def arrays_of(history: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(values, np.float64) for name, values in history.history.items()}


def copies(variable: Any) -> list[np.ndarray]:
    """The values on all replicas of this process."""
    return [np.asarray(one.numpy()) for one in local_variables([variable])]


def local(variable: Any) -> np.ndarray:
    """The value of a variable in this process, read without a collective."""
    return np.asarray(local_variables([variable])[0].numpy())


def worker_of(strategy: tf.distribute.Strategy) -> int:
    return Cluster.of(strategy).index


def classifier() -> loops.Task:
    return tiny.Classifier(keras.optimizers.Adam(0.05))


def loop_of(strategy: tf.distribute.Strategy, make: Callable[[], loops.Task], added: Any = (), **settings: Any) -> loops.TrainLoop:
    x, y = tiny.data(N)
    with strategy.scope():
        task = make()
    feed = settings.pop("feed", None) or loops.ArrayFeed((x, y), BATCH)
    evaluate = settings.pop("evaluate", {"val": loops.ArrayFeed((x[:41], y[:41]), 16)})
    return loops.TrainLoop(task, feed, added, evaluate=evaluate, strategy=strategy, **{"compile": "graph", **settings})
