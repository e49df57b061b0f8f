"""What several worker processes cost: our loop beside one written by hand, and the price of each thing that workers tell each other.

`scripts/benchmark_workers.py` runs it in each of the processes.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from loops.cluster import Agreement, Cluster

__all__ = ["Model", "boundary", "collectives", "contenders", "milliseconds", "rates"]

_INPUTS, _CLASSES, _STEPS = 784, 10, 200  # of a pass


@dataclasses.dataclass(frozen=True)
class Model:
    """A perceptron and its data, made in the scope of a strategy.

    Attributes:
        strategy: of all workers.
        hidden: units of the hidden layers.
        batch: examples in a batch, of all workers together.
    """

    strategy: tf.distribute.Strategy
    hidden: Sequence[int]
    batch: int

    def make(self) -> tuple[keras.Model, keras.optimizers.Optimizer]:
        """The model and an Adam, from a fixed seed."""
        keras.utils.set_random_seed(1)
        with self.strategy.scope():
            layers = [keras.layers.Dense(units, activation="relu") for units in self.hidden]
            model = keras.Sequential([keras.Input([_INPUTS]), *layers, keras.layers.Dense(_CLASSES)])
            optimizer = keras.optimizers.Adam(1e-3)
            optimizer.build(model.trainable_variables)
        return model, optimizer

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and classes of a pass."""
        random, n = np.random.default_rng(0), _STEPS * self.batch
        return random.normal(size=[n, _INPUTS]).astype(np.float32), random.integers(0, _CLASSES, n).astype(np.int32)


def by_hand(model: Model) -> Callable[[int], None]:
    """A loop as TensorFlow's guides write it: steps within one function, the loss of each summed over the workers."""
    strategy, (net, optimizer) = model.strategy, model.make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    data = tf.data.Dataset.from_tensor_slices(model.data()).repeat().batch(model.batch, drop_remainder=True)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = iter(strategy.experimental_distribute_dataset(data.with_options(options)))

    def step(batch: Any) -> tf.Tensor:
        x, y = batch
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(loss(y, net(x, training=True))) / model.batch
        optimizer.apply_gradients(zip(tape.gradient(value, net.trainable_variables), net.trainable_variables, strict=True))
        return value

    @tf.function
    def steps(n: tf.Tensor) -> tf.Tensor:
        total = 0.0
        for _ in tf.range(n):
            total += strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(step, args=(next(batches),)), axis=None)
        return total / tf.cast(n, tf.float32)

    return lambda n: steps(tf.constant(n)).numpy()


def ours(model: Model, *, data: str = "arrays", with_hooks: pathlib.Path | None = None) -> loops.TrainLoop:
    """Our loop on the same.

    Args:
        model: what is trained.
        data: "arrays" or "tf.data".
        with_hooks: None, or the folder in which early stopping, best weights, TensorBoard of each step, CSV log and progress bar write.
    """
    net, optimizer = model.make()
    with model.strategy.scope():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        task = loops.SupervisedTask(net, loss=loss, optimizer=optimizer)
    feed: loops.Feed = loops.ArrayFeed(model.data(), batch_size=model.batch)
    if data == "tf.data":
        feed = loops.DatasetFeed(tf.data.Dataset.from_tensor_slices(model.data()).repeat().batch(model.batch, drop_remainder=True))
    acting: list[hooks.Hook] = []
    if with_hooks is not None:
        acting = [
            hooks.EarlyStopping("loss", patience=1_000_000),
            hooks.ModelCheckpoint(with_hooks / "best.weights.h5", "loss", save_best_only=True, save_weights_only=True),
            hooks.TensorBoard(with_hooks, update_freq="batch"),
            hooks.CSVLogger(with_hooks / "history.csv"),
        ]
    return loops.TrainLoop(task, feed, hooks=acting, strategy=model.strategy, compile="graph", steps_per_epoch=_STEPS)


def contenders(model: Model, folder: pathlib.Path) -> tuple[dict[str, Callable[[int], None]], loops.TrainLoop]:
    """Name -> function that does so many steps, each traced and warm; and one of our loops."""

    def steps(loop: loops.TrainLoop) -> Callable[[int], None]:
        return lambda n: loop.run(steps=loop.progress.step + n) and None

    plain = ours(model)
    made = {
        "by hand": by_hand(model),
        "loops": steps(plain),
        "loops, tf.data": steps(ours(model, data="tf.data")),
        "loops, hooks": steps(ours(model, with_hooks=folder)),
    }
    for do in made.values():
        do(_STEPS + 1)  # also the turn of a pass
    return made, plain


def rates(made: dict[str, Callable[[int], None]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Steps per second of each contender in each round. They take turns, and begin in another order each time."""
    found: dict[str, list[float]] = {name: [] for name in made}
    names = list(made)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.perf_counter()
            made[name](steps)
            found[name].append(steps / (time.perf_counter() - begun))
    return found


def collectives(graph: tf.Graph) -> list[tuple[str, int, int]]:
    """What a traced step sends: dtype, elements and bytes of each collective."""
    found = []
    for operation in graph.get_operations():
        if operation.type.startswith("CollectiveReduce"):
            tensor = operation.inputs[0]
            elements = tensor.shape.num_elements()
            found.append((tensor.dtype.name, elements, elements * tensor.dtype.size))
    return found


def milliseconds(act: Callable[[], Any], times: int = 30) -> float:
    """The median time of a call that all workers make."""
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(taken)


def boundary(loop: loops.TrainLoop) -> dict[str, float]:
    """Milliseconds of each thing that workers do together between calls."""
    cluster = Cluster.of(loop.strategy)
    agreement = Agreement(cluster, time.monotonic, lambda: (False, False))
    one = float(loop.progress.step)
    return {
        "agreement before a call": milliseconds(lambda: agreement.before_call(1, settle=False)),
        "whether the state is finite": milliseconds(lambda: cluster.all(True)),
        "metrics of the epoch": milliseconds(lambda: loop.task.results("train", {}, {})),
        "what hooks asked for": milliseconds(lambda: cluster.table([0.0, 0.0, 0.0, 0.0])),
        "comparing settings (start of a run)": milliseconds(lambda: cluster.gather_json({"step": one, "settings": "x" * 2000}), 10),
        "a run of one step": milliseconds(lambda: loop.run(steps=loop.progress.step + 1), 10),
    }
