"""Loops written by hand as contenders in `scripts/benchmark.py`."""

from __future__ import annotations

import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from research.benchmarks.contender import Contender, Timed
from research.benchmarks.workloads import Workload

__all__ = ["EagerTape", "WhileLoop"]


class HandWritten(Contender):
    """What a careful user writes without a library, with the loss and the metric that `fit` reports."""

    def unsuitable(self, workload: Workload) -> str | None:
        return "reads arrays" if workload.source != "arrays" else None

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
        self._jit_compile = jit_compile
        self._run_block = tf.function(self._block, jit_compile=jit_compile, autograph=False)

    def unsuitable(self, workload: Workload) -> str | None:
        if self._jit_compile and workload.convolutions:
            return "XLA has no fast gradient of a convolution inside a loop"
        return super().unsuitable(workload)

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        largest = max(1, min(1024, self.block_bytes // (4 * workload.batch_size * int(np.prod(workload.shape)))))
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
