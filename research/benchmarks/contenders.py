"""Who trains in `scripts/benchmark.py`: `model.fit`, loops written by hand, and `loops`. The script shows it.

A contender is set up once (that compiles), then asked again and again to train whole epochs. It times itself from the beginning of its
first epoch to the end of its last, so that what is done once per call (copying the data, opening files) counts for nobody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from research.benchmarks.workloads import Workload

__all__ = ["CONTENDERS", "Contender", "Timed"]


@dataclasses.dataclass(frozen=True)
class Timed:
    """Steps that were done, and the seconds that they took."""

    steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds


class Contender:
    """One way to train a workload.

    Attributes:
        stock_xla: whether it compiles with XLA, and gives it convolutions as they are.
    """

    stock_xla: bool = False

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        """Makes the model and compiles all that will run; `directory` is for files that the run writes."""
        raise NotImplementedError

    def run(self, epochs: int) -> Timed:
        """Trains `epochs` more epochs."""
        raise NotImplementedError


# model.fit


class _Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ended = time.perf_counter()


@dataclasses.dataclass
class Fit(Contender):
    """`model.fit`.

    Attributes:
        steps_per_execution, jit_compile: as in `keras.Model.compile`.
        callbacks: whether to train with the callbacks that do what the hooks of `Ours` do.
    """

    steps_per_execution: int = 1
    jit_compile: bool | str = "auto"
    callbacks: bool = False

    def __post_init__(self) -> None:
        self.stock_xla = self.jit_compile is True

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        self._workload, self._directory = workload, directory
        self._model = workload.model(steps_per_execution=self.steps_per_execution, jit_compile=self.jit_compile)
        self._data = workload.data()
        self.run(1)

    def run(self, epochs: int) -> Timed:
        clock = _Clock()
        given = [*self._callbacks(), clock] if self.callbacks else [clock]
        with contextlib.redirect_stdout(_Terminal()):
            self._model.fit(*self._data, batch_size=self._workload.batch_size, epochs=epochs, verbose=int(self.callbacks), callbacks=given)
        return Timed(epochs * self._workload.steps, clock.ended - clock.begun)

    def _callbacks(self) -> list[keras.callbacks.Callback]:
        kc, folder = keras.callbacks, self._directory
        return [
            kc.EarlyStopping("loss", patience=1_000_000),
            kc.ModelCheckpoint(folder / "best.weights.h5", "loss", save_best_only=True, save_weights_only=True),
            kc.TensorBoard(folder, update_freq="batch", write_steps_per_second=True),
            kc.CSVLogger(folder / "history.csv"),
        ]


class _Terminal(io.TextIOBase):
    """Takes what a progress bar writes, as a terminal would."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


# Written by hand


class HandWritten(Contender):
    """What a careful user writes without a library, with the loss and the metric that `fit` reports."""

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        self._workload, self._rng = workload, np.random.default_rng(0)
        self._x, self._y = workload.data()
        self._model, self._loss = workload.model(), keras.losses.get(workload.loss)
        self._optimizer = self._model.optimizer
        self._optimizer.build(self._model.trainable_variables)
        self._tracker, self._metric = keras.metrics.Mean(), workload.metric
        self.run(1)

    def run(self, epochs: int) -> Timed:
        begun, steps = time.perf_counter(), 0
        for _ in range(epochs):
            self._tracker.reset_state()
            self._metric.reset_state()
            steps += self._epoch(self._rng.permutation(self._workload.rows))
            float(self._tracker.result()), float(self._metric.result())
        return Timed(steps, time.perf_counter() - begun)

    def _epoch(self, order: np.ndarray) -> int:
        """Trains on the examples in this order; returns the number of steps."""
        raise NotImplementedError

    def _step(self, x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            predicted = self._model(x, training=True)
            loss = tf.reduce_mean(self._loss(y, predicted))
        variables = self._model.trainable_variables
        self._optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self._tracker.update_state(loss)
        self._metric.update_state(y, predicted)


class EagerTape(HandWritten):
    """A tape and an optimizer in a Python loop, no `tf.function`. Does the first steps of an epoch only."""

    steps = 100

    def _epoch(self, order: np.ndarray) -> int:
        size, steps = self._workload.batch_size, min(self.steps, self._workload.steps)
        for batch in order[: steps * size].reshape(steps, size):
            self._step(tf.constant(self._x[batch]), tf.constant(self._y[batch]))
        return steps


class WhileLoop(HandWritten):
    """One `tf.function` with a while loop over a block of batches `[K, B, ...]`; a thread cuts the next block meanwhile.

    Args:
        jit_compile: whether the function is an XLA program.
    """

    block_bytes = 8 << 20

    def __init__(self, jit_compile: bool):
        self.stock_xla = jit_compile
        self._run_block = tf.function(self._block, jit_compile=jit_compile, autograph=False)

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        largest = min(1024, self.block_bytes // (4 * workload.batch_size * int(np.prod(workload.shape))))
        self._k = max(k for k in range(1, largest + 1) if workload.steps % k == 0)  # no block is shorter than the others
        super().setup(workload, directory)

    def _block(self, xs: tf.Tensor, ys: tf.Tensor) -> None:
        def body(i: tf.Tensor) -> tuple[tf.Tensor]:
            self._step(xs[i], ys[i])
            return (i + 1,)

        tf.while_loop(lambda i: i < self._k, body, (tf.constant(0),))

    def _epoch(self, order: np.ndarray) -> int:
        blocks = order.reshape(-1, self._k * self._workload.batch_size)
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(self._cut, blocks[0])
            for following in [*blocks[1:], None]:
                block = ahead.result()
                if following is not None:
                    ahead = thread.submit(self._cut, following)
                self._run_block(*block)
        return self._workload.steps

    def _cut(self, rows: np.ndarray) -> list[tf.Tensor]:
        return [tf.constant(a[rows].reshape(self._k, self._workload.batch_size, *a.shape[1:])) for a in (self._x, self._y)]


# Ours


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


@dataclasses.dataclass
class Ours(Contender):
    """What `loops.fit` runs.

    Attributes:
        compile: as in `loops.TrainLoop`.
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
        feed = loops.ArrayFeed(workload.data(), workload.batch_size, shuffle=True)
        self._clock, self._steps = _ClockHook(), workload.steps
        self._loop = loops.TrainLoop(
            (_WithBuffer if self.buffer else loops.KerasTask)(workload.model()),
            feed,
            [*(self._hooks(directory) if self.hooks else []), *([_Look()] if self.buffer else []), self._clock],
            workdir=directory / "run" if self.snapshots else None,
            compile=self.compile,
            on_nonfinite=self.on_nonfinite,
        )
        self.run(1)

    def run(self, epochs: int) -> Timed:
        done = len(self._loop.history.epoch)
        self._loop.run(epochs=done + epochs)
        assert self._clock.begun is not None
        return Timed(epochs * self._steps, self._clock.ended - self._clock.begun)

    def _hooks(self, directory: pathlib.Path) -> list[hooks.Hook]:
        return [
            hooks.EarlyStopping("loss", patience=1_000_000),
            hooks.ModelCheckpoint(directory / "best.weights.h5", "loss", save_best_only=True, save_weights_only=True),
            hooks.TensorBoard(directory, update_freq="batch"),
            hooks.CSVLogger(directory / "history.csv"),
            hooks.ProgressBar(stream=_Terminal()),
        ]


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "fit": Fit,
    "fit_50": lambda: Fit(50, jit_compile=False),
    "fit_200": lambda: Fit(200, jit_compile=False),
    "fit_50_xla": lambda: Fit(50, jit_compile=True),
    "fit_callbacks": lambda: Fit(callbacks=True),
    "eager": EagerTape,
    "while": lambda: WhileLoop(jit_compile=False),
    "while_xla": lambda: WhileLoop(jit_compile=True),
    "loops": lambda: Ours("graph"),
    "loops_guarded": lambda: Ours("graph", on_nonfinite="raise"),
    "loops_buffer": lambda: Ours("graph", buffer=True),
    "loops_buffer_guarded": lambda: Ours("graph", buffer=True, on_nonfinite="raise"),
    "loops_hooks": lambda: Ours("graph", hooks=True),
    "loops_snapshots": lambda: Ours("graph", hooks=True, snapshots=True),
    "loops_xla": lambda: Ours("xla"),
    "loops_xla_hooks": lambda: Ours("xla", hooks=True),
}
