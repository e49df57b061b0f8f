"""Scenarios of tasks: reductions, outputs, sparse gradients, shared state, steps that are not finite, and what Keras users call."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops.engine.kept_programs import KeptPrograms
from tests.loops import tiny
from tests.loops.cluster.scenarios import BATCH, N, arrays_of, found, local, loop_of, model_of, scenario, worker_of

# Tasks of one's own, and what steps may return.


class Noisy(tiny.Classifier):
    """Draws by seeds that differ from replica to replica, and returns every kind of reduction."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        x, y = batch
        noise = tf.random.stateless_normal(tf.shape(x), self.seed(), stddev=0.1)
        with tf.GradientTape() as tape:
            y_pred = self.model(x + noise, training=True)
            loss = self.loss(y, y_pred)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        self.accuracy.update_state(y, y_pred)
        count = tf.cast(tf.shape(x)[0], tf.float32)
        return {
            "loss": loss,
            "accuracy": self.accuracy,
            "seen": loops.Sum(count),
            "last": loops.Last(loss),
            "mean": loops.Mean(loss, count),
        }

    def eval_step(self, batch: Any) -> dict[str, Any]:
        x, y = batch
        y_pred = self.model(x, training=False)
        collected = {"y": loops.Collect(y), "p": loops.Collect({"a": y_pred, "n": tf.shape(x)[0]})}
        return {"loss": self.loss(y, y_pred), **collected}

    def eval_end(self, collected: dict[str, Any]) -> dict[str, Any]:
        right = (collected["p"]["a"].argmax(1) == collected["y"]).mean()
        return {"right": right, "order": float((collected["y"] * np.arange(len(collected["y"]))).sum()), "n": collected["p"]["n"].sum()}


@scenario
def own_task(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Reductions, collected outputs and seeds; a second `run` goes on."""
    loop = loop_of(strategy, lambda: Noisy(keras.optimizers.Adam(0.05)), clip=1.0)
    loop.run(epochs=1)
    loop.run(epochs=2)
    return found(loop)


@scenario
def collectives(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """How many collectives the graphs of the steps hold."""
    loop = loop_of(strategy, lambda: tiny.Classifier(random=True), clip=1.0)
    loop.run(steps=2)
    x, y = tiny.data(40)
    loops.EvalLoop(loop.task, strategy=strategy).run(loops.ArrayFeed((x, y), 20))
    loops.PredictLoop(loop.task, strategy=strategy).run(loops.ArrayFeed(x, 20))
    steps = [program.step for program in KeptPrograms.of(loop.task)]
    return {step.method.removesuffix("_step"): collectives_in(step.graph) for step in steps if step.graph is not None}


def collectives_in(graph: tf.Graph) -> dict[str, int]:
    """Number of nodes by kind, in a graph and the functions that it calls."""
    definition = graph.as_graph_def()
    kinds = [node.op for nodes in (definition.node, *(f.node_def for f in definition.library.function)) for node in nodes]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds)) if "Collective" in kind or "Nccl" in kind}


@scenario
def embedding(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Sparse gradients: of an embedding under Adam."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 50, [N, 4]), rng.integers(0, 3, N)

    def make() -> loops.Task:
        keras.utils.set_random_seed(1)
        layers = [keras.Input([4], dtype="int32"), keras.layers.Embedding(50, 6), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
        return loops.SupervisedTask(keras.Sequential(layers), loss="sparse_categorical_crossentropy", optimizer=keras.optimizers.Adam(0.05))

    loop = loop_of(strategy, make, feed=loops.ArrayFeed((x, y), BATCH), evaluate=None, clip=0.5)
    loop.run(epochs=2)
    return found(loop)


class WithCenters(tiny.Classifier):
    def __init__(self) -> None:
        from layers import CenterLoss

        super().__init__(keras.optimizers.SGD(0.1))
        keras.utils.set_random_seed(3)
        self.model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(4)])
        self.head = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, "softmax")])
        self.centers = CenterLoss(num_classes=3, strength=0.1)
        self.centers.build((None, 4), (None,))

    def train_step(self, batch: Any) -> dict[str, Any]:
        x, y = batch
        with tf.GradientTape() as tape:
            embedded = self.centers(self.model(x), y, training=True)
            loss = self.loss(y, self.head(embedded)) + self.losses_of(self.centers)
        self.minimize(loss, tape, self.optimizer, [*self.model.trainable_variables, *self.head.trainable_variables])
        return {"loss": loss, "distance": self.centers.metrics[0]}

    def eval_step(self, batch: Any) -> dict[str, Any]:
        x, y = batch
        return {"loss": self.loss(y, self.head(self.model(x)))}


@scenario
def centers(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """A layer whose state is moved by the examples of all replicas."""
    x, y = tiny.data(96)
    loop = loop_of(strategy, WithCenters, feed=loops.ArrayFeed((x, y), 32))
    loop.run(epochs=2)
    return found(loop)


# Steps that are not finite.


def _nonfinite(strategy: tf.distribute.Strategy, **settings: Any) -> loops.TrainLoop:
    x, y = tiny.data(N)
    x[80] = np.nan  # in the third batch; part of the second worker
    return loop_of(
        strategy, lambda: tiny.Classifier(keras.optimizers.Adam(0.05), random=True), feed=loops.ArrayFeed((x, y), BATCH), **settings
    )


@scenario
def nonfinite_skip(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    loop = _nonfinite(strategy, on_nonfinite="skip")
    loop.run(epochs=2)
    return found(loop)


@scenario
def nonfinite_rollback(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    loop = _nonfinite(strategy, on_nonfinite=loops.OnNonFinite("rollback", budget=9, learning_rate_factor=0.5))
    loop.run(epochs=2)
    return found(loop)


@scenario
def nonfinite_raise(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    loop = _nonfinite(strategy)
    try:
        loop.run(epochs=2)
    except loops.NonFiniteError as error:
        return found(loop, says=str(error)[:40])
    return {}


# What Keras users call.


@scenario
def fit(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """`loops.fit` with Keras callbacks that decide, weights, a validation split; `loops.evaluate` and `loops.predict` on its model."""
    x, y = tiny.data(N)
    weights = np.random.default_rng(1).uniform(0.5, 2.0, N).astype("float32")
    with strategy.scope():
        model = model_of(dropout=0.2)
        model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=10.0),
        keras.callbacks.EarlyStopping("val_loss", patience=3, min_delta=10.0, restore_best_weights=True),
    ]
    history = loops.fit(
        model, x, y, sample_weight=weights, epochs=6, batch_size=16, validation_split=0.2, callbacks=callbacks, verbose=0, compile="graph"
    )
    return {
        "history": arrays_of(history),
        "weights": [local(variable) for variable in model.weights],
        "evaluated": {name: float(value) for name, value in loops.evaluate(model, x, y, batch_size=16).items()},
        "predicted": loops.predict(model, x, batch_size=16, verbose=0),
    }


@scenario
def callbacks_that_write(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Keras callbacks that write files, each worker with a folder of its own."""
    own = folder / f"files-{strategy.num_replicas_in_sync}-{worker_of(strategy)}"
    x, y = tiny.data(N)
    with strategy.scope():
        model = model_of()
        model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    own.mkdir(exist_ok=True)
    callbacks = [
        keras.callbacks.ModelCheckpoint(own / "{epoch}.keras"),
        keras.callbacks.ModelCheckpoint(
            own / "best.weights.h5", monitor="val_loss", save_best_only=True, save_weights_only=True, save_freq=2
        ),
        keras.callbacks.CSVLogger(own / "log.csv"),
        keras.callbacks.TensorBoard(own / "board", update_freq="batch"),
    ]
    history = loops.fit(model, x, y, epochs=2, batch_size=16, callbacks=callbacks, verbose=0, compile="graph", validation_split=0.2)
    loops.evaluate(model, x, y, callbacks=[keras.callbacks.ProgbarLogger()], verbose=1)
    return {
        "history": arrays_of(history),
        "files": sorted(path.name for path in own.iterdir()),
    }
