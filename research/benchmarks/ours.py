"""`loops` as a contender in `scripts/benchmark.py`."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from research.benchmarks.contender import Contender, Terminal, Timed
from research.benchmarks.workloads import Workload

__all__ = ["Ours"]

_LONG = 10**6  # epochs: so many that compiling pays


class _ClockHook(hooks.Hook):
    every = None
    phase = hooks.Phase.SAVE  # the last, as it is also the last in the list

    def on_train_begin(self, loop: loops.TrainLoop) -> None:
        self.begun: float | None = None

    def on_epoch_begin(self, loop: loops.TrainLoop) -> None:
        self.begun = self.begun or time.perf_counter()

    def on_epoch_end(self, loop: loops.TrainLoop, logs: Any) -> None:
        self.ended = time.perf_counter()


class _Look(hooks.Hook):
    every = "10 steps"

    def on_window_end(self, loop: loops.TrainLoop, window: Any) -> None:
        """Does nothing: what is measured is what a look costs."""


class _WithBuffer(loops.KerasTask):
    """Writes the inputs of every step to a replay buffer, one variable that is much larger than what a step touches."""

    megabytes = 200

    def __init__(self, model: keras.Model):
        super().__init__(model)
        width = int(np.prod(model.input_shape[1:]))
        self._rows = self.megabytes * 250_000 // width
        self.buffer = tf.Variable(tf.zeros([self._rows, width]), trainable=False)

    def train_step(self, batch: Any) -> Any:
        inputs = tf.reshape(tf.cast(batch[0], tf.float32), [-1, self.buffer.shape[1]])
        count = tf.shape(inputs, tf.int64)[0]
        rows = (self.step * count + tf.range(count)) % self._rows
        self.buffer.scatter_nd_update(rows[:, None], inputs)
        return super().train_step(batch)


class _EndAfterFirstEpoch(hooks.Hook):
    """Ends a run whose target is far away: the rule of compile="auto" looks at the length of the first run, and its choice stands."""

    every = None
    acted = False

    def on_epoch_end(self, loop: loops.TrainLoop, logs: Any) -> None:
        if not self.acted:
            loop.stop("the first epoch has ended")
        self.acted = True


@dataclasses.dataclass
class Ours(Contender):
    """What `loops.fit` runs.

    Attributes:
        compile: as in `loops.TrainLoop`; "auto" gets the mode that it takes for a long run.
        hooks: whether to train with early stopping, best weights, each step's scalars in TensorBoard, CSV log and progress bar.
        on_nonfinite: as in `loops.TrainLoop`; "ignore" is what Keras does.
        snapshots: whether the whole state is saved after every epoch; only with hooks.
        buffer: whether the task has a replay buffer of 200 MB, into which each step writes its batch, and a hook looks every 10 steps.
    """

    compile: str
    hooks: bool = False
    on_nonfinite: str = "ignore"
    snapshots: bool = False
    buffer: bool = False

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        if workload.source == "arrays":
            feed: loops.Feed = loops.ArrayFeed(workload.data(), workload.batch_size, shuffle=True)
        else:
            feed = loops.DatasetFeed(workload.dataset())
        self._clock, self._workload = _ClockHook(), workload
        self._model = workload.model()
        self._loop = loops.TrainLoop(
            (_WithBuffer if self.buffer else loops.KerasTask)(self._model),
            feed,
            [
                *(self._hooks(directory) if self.hooks else []),
                *([_Look()] if self.buffer else []),
                *([_EndAfterFirstEpoch()] if self.compile == "auto" else []),
                self._clock,
            ],
            workdir=directory / "run" if self.snapshots else None,
            compile=self.compile,
            on_nonfinite=self.on_nonfinite,
        )
        self._loop.run(epochs=_LONG if self.compile == "auto" else 1)

    @property
    def mode(self) -> str | None:
        return self._loop.mode

    def run(self, epochs: int) -> Timed:
        done, before = len(self._loop.history.epoch), self._loop.progress.step
        self._loop.run(epochs=done + epochs)
        assert self._clock.begun is not None and self._loop.progress.step == before + epochs * self._workload.steps
        return Timed(epochs * self._workload.steps, self._clock.ended - self._clock.begun)

    def evaluate(self, x: Any, y: Any) -> None:
        loops.evaluate(self._model, x, y, batch_size=self._workload.batch_size, compile=self.compile)

    def predict(self, x: Any) -> None:
        loops.predict(self._model, x, batch_size=self._workload.batch_size, compile=self.compile)

    def new_model(self, workload: Workload) -> keras.Model:
        return workload.model()

    def fit(self, model: keras.Model, x: Any, y: Any, **arguments: Any) -> None:
        loops.fit(model, x, y, compile=self.compile, **arguments)

    def _hooks(self, directory: pathlib.Path) -> list[hooks.Hook]:
        return [
            hooks.EarlyStopping("loss", patience=1_000_000),
            hooks.ModelCheckpoint(directory / "best.weights.h5", "loss", save_best_only=True, save_weights_only=True),
            hooks.TensorBoard(directory, update_freq="batch"),
            hooks.CSVLogger(directory / "history.csv"),
            hooks.ProgressBar(stream=Terminal()),
        ]
