"""Scenarios in which one worker does what the other does not."""

from __future__ import annotations

import pathlib
import signal
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from loops.cluster import Cluster
from tests.loops import tiny
from tests.loops.cluster.scenarios import BATCH, N, arrays_of, classifier, found, loop_of, model_of, scenario, worker_of


class OnWorker(hooks.Hook):
    """Acts on one worker at one step."""

    every, phase = "1 step", hooks.Phase.DECIDE

    def __init__(self, strategy: tf.distribute.Strategy, worker: int, step: int, act: Callable[[Any], Any]):
        several = Cluster.of(strategy).several  # a process by itself acts for all
        self._acts, self._step, self._act = not several or worker_of(strategy) == worker, step, act

    def on_window_end(self, loop: hooks.Loop, window: Any) -> None:
        if self._acts and loop.progress.step == self._step:
            self._act(loop)


class OfChief(hooks.Hook):
    """Acts when an epoch ends, in the phase RECORD: on the chief only."""

    def __init__(self, act: Callable[[Any], Any]):
        self._act = act

    def on_epoch_end(self, loop: hooks.Loop, logs: Any) -> None:
        self._act(loop)


@scenario
def stop_on_one(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    loop = loop_of(strategy, classifier, [OnWorker(strategy, 1, 3, lambda loop: loop.stop("enough", end_epoch=True))])
    loop.run(epochs=5)
    return found(loop, reason=loop.stop_reason)


@scenario
def interrupt_one(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Ctrl-C on one worker only; a hook of the chief reads the logs of its last window."""
    seen: list[Any] = []

    class Last(hooks.Hook):
        every, final_window = "100 steps", True

        def on_window_end(self, loop: hooks.Loop, window: Any) -> None:
            seen.append((loop.progress.step, sorted(window.logs)))

    raises = OnWorker(strategy, 1, 5, lambda loop: signal.raise_signal(signal.SIGINT))
    loop = loop_of(strategy, classifier, [raises, Last()])
    loop.run(epochs=50)
    interrupted = found(loop)
    loop.run(steps=9)
    return {"interrupted": interrupted, "then": found(loop), "looks": len(seen) if worker_of(strategy) == 0 else 2}


@scenario
def by_time(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Hooks that count seconds, on clocks that run differently."""
    looks: list[int] = []

    class Seconds(hooks.Hook):
        every, phase = "1 second", hooks.Phase.DECIDE

        def on_window_end(self, loop: hooks.Loop, window: Any) -> None:
            looks.append(loop.progress.step)

    class Often(hooks.Hook):
        every, phase = "0.5 seconds", hooks.Phase.RECORD

        def on_window_end(self, loop: hooks.Loop, window: Any) -> None:
            loop.log("looked", loop.progress.step)

    loop = loop_of(strategy, classifier, [Seconds(), Often()])
    now = [100.0 * worker_of(strategy)]

    def clock() -> float:
        now[0] += 0.01 * (1 + worker_of(strategy))
        return now[0]

    loop.clock = clock
    loop.run(epochs=8)
    result = found(loop, looks=looks)
    result["history"].pop("looked", None)
    return result


@scenario
def logs_of_the_chief(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """What a hook of the chief logs is followed by a monitor on all workers."""

    class Logs(hooks.Hook):
        every = "2 steps"

        def on_window_end(self, loop: hooks.Loop, window: Any) -> None:
            loop.log("mine", float(loop.progress.step))

    loop = loop_of(strategy, classifier, [Logs(), hooks.ReduceLROnPlateau("mine", mode="min", patience=1)])
    loop.run(epochs=4)
    return found(loop)


def refused(act: Callable[[], Any]) -> str:
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@scenario
def changes_of_one(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """What a hook changes on its own worker only is found before the next step."""
    x, y = tiny.data(N)

    def rate(loop: Any) -> None:
        loop.learning_rate = 0.01

    def feed(loop: Any) -> None:
        loop.feed = loops.ArrayFeed((x, y), BATCH)

    def weights(loop: Any) -> None:
        loop.task.model.layers[0].bias.assign(np.ones(5))

    said = {}
    for name, act in {"rate": rate, "feed": feed, "weights": weights}.items():
        loop = loop_of(strategy, classifier, [OfChief(act)], evaluate=None)
        said[name] = refused(lambda loop=loop: loop.run(epochs=3))
    return said


@scenario
def evaluates_alone(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """A hook of the chief evaluates; nothing can be exchanged afterwards."""
    x, y = tiny.data(N)
    loop = loop_of(strategy, classifier, [OfChief(lambda loop: loop.evaluate(loops.ArrayFeed((x, y)), "own"))])
    return {"said": refused(lambda: loop.run(epochs=2))}


@scenario
def raises_alone(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """A hook fails on one worker; nothing can be exchanged afterwards."""

    def fail(loop: Any) -> None:
        raise KeyError("lost my keys")

    loop = loop_of(strategy, classifier, [OnWorker(strategy, 1, 3, fail)])
    return {"said": refused(lambda: loop.run(epochs=2))}


@scenario
def mismatches(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """What must not differ between workers is refused before the first step."""
    x, y = tiny.data(N)
    worker = worker_of(strategy)
    other = x.copy()
    other[0] += worker

    def run(feed: Any = None, added: Any = (), epochs: int = 1, **settings: Any) -> str:
        loop = loop_of(strategy, classifier, added, feed=feed or loops.ArrayFeed((x, y), BATCH), evaluate=None, **settings)
        return refused(lambda: loop.run(epochs=epochs))

    return {
        "batch_size": run(loops.ArrayFeed((x, y), BATCH - worker)),
        "data": run(loops.ArrayFeed((other, y), BATCH)),
        "dataset": run(loops.DatasetFeed(tf.data.Dataset.from_tensor_slices((other, y)).batch(BATCH))),
        "seed": run(seed=worker),
        "clip": run(clip=1.0 + worker),
        "compile": run(**{"compile": ["graph", "eager"][worker]}),
        "hooks": run(added=[hooks.LambdaHook(on_epoch_end=lambda loop, logs: None)] * worker),
        "epochs": run(epochs=1 + worker),
        "workdir": run(workdir=folder / "mismatch" if worker else None),
    }


@scenario
def uneven_data(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    x, y = tiny.data(N)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    ends = lambda i, *_: i < N - 40 * worker_of(strategy)  # noqa: E731
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).enumerate().take_while(ends).map(lambda i, batch: batch)
    loop = loop_of(strategy, classifier, feed=loops.DatasetFeed(dataset.batch(16).with_options(options)), evaluate=None)
    return {"said": refused(lambda: loop.run(epochs=1))}


@scenario
def watched_on_the_chief(strategy: tf.distribute.Strategy, folder: pathlib.Path) -> dict[str, Any]:
    """Callbacks of an evaluation and a prediction on one worker only, which end it; a hook of the chief that watches evaluations."""
    x, y = tiny.data(N)
    with strategy.scope():
        model = model_of()
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    chief = worker_of(strategy) == 0
    seen: list[Any] = []

    class Stops(keras.callbacks.Callback):
        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((batch, sorted(logs or {})))
            self.model.stop_evaluating = batch == 2

        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_predicting = batch == 1

    callbacks = [Stops()] if chief else []
    logs = loops.evaluate(model, x, y, batch_size=16, callbacks=callbacks, verbose=int(chief))
    outputs = loops.predict(model, x, batch_size=16, callbacks=callbacks, verbose=int(chief))
    hook = hooks.LambdaHook(on_evaluate_batch=lambda batch, logs, last: seen.append(sorted(logs())))
    data = {"validation_data": (x, y), "validation_batch_size": 32}
    history = loops.fit(model, x, y, batch_size=32, epochs=1, hooks=[hook], verbose=0, compile="graph", **data)
    return {"evaluated": logs, "predicted": outputs, "history": arrays_of(history), "seen": bool(seen) or not chief}
