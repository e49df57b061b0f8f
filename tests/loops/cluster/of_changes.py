"""Scenarios of modes, of data in other forms, and of what changes while a run goes on."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny
from tests.loops.cluster.scenarios import BATCH, N, arrays_of, classifier, found, local, loop_of, model_of, scenario, worker_of


def _random() -> loops.Task:
    return tiny.Classifier(keras.optimizers.Adam(0.05), random=True)


@scenario
def eager(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    x, y = tiny.data(N)
    x[80] = np.nan
    loop = loop_of(strategy, _random, feed=loops.ArrayFeed((x, y), BATCH), compile="eager", on_nonfinite="skip")
    loop.run(epochs=2)
    return found(loop)


@scenario
def xla(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    loop = loop_of(strategy, classifier, compile="xla", clip=1.0)
    loop.run(epochs=2)
    return found(loop)


@scenario
def changing(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """A frozen layer is set free, then the feed is another one, then model and optimizer."""
    x, y = tiny.data(N)

    class Changes(hooks.Hook):
        phase = hooks.Phase.DECIDE

        def on_epoch_end(self, loop: hooks.Loop, logs: Any) -> None:
            if loop.progress.epoch == 0:
                loop.task.model.layers[0].trainable = True
            elif loop.progress.epoch == 1:
                loop.feed = loops.ArrayFeed((x[:50], y[:50]), 16)
            elif loop.progress.epoch == 2:
                with strategy.scope():
                    loop.task.model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(tiny.N_CLASSES, "softmax")])
                    loop.task.optimizer = keras.optimizers.SGD(0.1)

    def make() -> loops.Task:
        task = classifier()
        task.model.layers[0].trainable = False
        return task

    loop = loop_of(strategy, make, [Changes()])
    loop.run(epochs=4)
    return found(loop)


@scenario
def schedule_of_feeds(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    x, y = tiny.data(N)
    later = loops.DatasetFeed(tf.data.Dataset.from_tensor_slices((x, y)).batch(32))
    loop = loop_of(strategy, classifier, feed=loops.FeedSchedule({0: loops.ArrayFeed((x[:40], y[:40]), 16), 1: later}))
    loop.run(epochs=3)
    return found(loop)


@scenario
def cut_epochs(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """`steps_per_epoch` over data that never ends, of unknown length, and of a PyDataset."""
    x, y = tiny.data(N)
    endless = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(BATCH)
    unknown = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda a, b: a[0] > -0.5).batch(BATCH)

    class Own(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            return x[index * BATCH : (index + 1) * BATCH], y[index * BATCH : (index + 1) * BATCH]

    results = {}
    feeds = {"endless": loops.DatasetFeed(endless), "unknown": loops.DatasetFeed(unknown), "python": loops.PyDatasetFeed(Own())}
    for name, feed in feeds.items():
        loop = loop_of(strategy, classifier, feed=feed, steps_per_epoch=3, evaluate=None)
        loop.run(epochs=3)
        results[name] = found(loop)
    return results


class Words(loops.Task):
    """Counts words by their hash."""

    def __init__(self) -> None:
        super().__init__()
        keras.utils.set_random_seed(1)
        self.model = keras.Sequential([keras.Input([8]), keras.layers.Dense(1, "sigmoid")])
        self.optimizer = keras.optimizers.SGD(0.5)

    def loss(self, batch: Any) -> Any:
        words, y = batch
        ids = tf.cast(tf.strings.to_hash_bucket_fast(words, 8), tf.int32)
        features = tf.reduce_sum(tf.one_hot(ids.to_tensor(default_value=-1), 8), 1)
        return self.compute_loss("binary_crossentropy", y[:, None], self.model(features))

    def train_step(self, batch: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = self.loss(batch)
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}

    def eval_step(self, batch: Any) -> dict[str, Any]:
        return {"loss": self.loss(batch)}


@scenario
def ragged_strings(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    words = tf.ragged.constant([["a"] * (1 + i % 3) + ["b"] * (i % 2) for i in range(50)])
    feed = loops.DatasetFeed(tf.data.Dataset.from_tensor_slices((words, np.arange(50) % 2)).batch(16))
    loop = loop_of(strategy, Words, feed=feed, evaluate={"val": feed})
    loop.run(epochs=2)
    return found(loop)


@scenario
def array_metric(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """A metric with several values, in a run and outside of one."""
    x, y = tiny.data(N)
    hot = keras.utils.to_categorical(y, 3)
    with strategy.scope():
        model = model_of()
        metrics = [keras.metrics.F1Score(average=None), keras.metrics.AUC()]
        model.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy", metrics=metrics)
    history = loops.fit(model, x, hot, epochs=2, batch_size=32, verbose=0, compile="graph", validation_data=(x[:20], hot[:20]))
    logs = loops.evaluate(model, x, hot, batch_size=32)
    return {"history": arrays_of(history), "evaluated": {name: np.asarray(value, np.float64) for name, value in logs.items()}}


@scenario
def best_weights(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Averages that are swapped in, weights that are restored, and all that a workdir brings."""
    x, y = tiny.data(N)
    with strategy.scope():
        model = model_of(norm=True)
        optimizer = keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.8)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    callbacks = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
    ]
    own = folder / f"best-{worker_of(strategy)}-{type(strategy).__name__}"
    added = [hooks.TensorBoard(own, histogram_freq=1)]
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 32, "validation_split": 0.2, "verbose": 0, "compile": "graph"}
    history = loops.fit(model, x, y, callbacks=callbacks, workdir=own, hooks=added, **settings)
    return {"history": arrays_of(history), "weights": [local(v) for v in model.weights], "wrote": own.exists() or worker_of(strategy) > 0}


@scenario
def data_service(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """A `tf.data` service as source: a dispatcher and a worker in each process, each with the same pipeline."""
    x, y = tiny.data(N)
    dispatcher = tf.data.experimental.service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = tf.data.experimental.service.WorkerServer(tf.data.experimental.service.WorkerConfig(dispatcher_address=address))
    pipeline = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    pipeline = pipeline.apply(tf.data.experimental.service.distribute(processing_mode="parallel_epochs", service=dispatcher.target))
    loop = loop_of(strategy, classifier, feed=loops.DatasetFeed(pipeline))
    loop.run(epochs=2)
    result = found(loop)
    del worker, dispatcher
    return result
