"""Separates waiting for batches from computing where both happen within one call: in programs that pull from a `tf.data` iterator."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["StepClock"]


class StepClock:
    """Measures, in the graph, how long a call waits: from the end of a step, or the beginning of the call, to the batch of the next step.

    Work that `tf.data` does while a step runs is not waiting. The clock costs a few microseconds a step, so only profiled runs have one.
    """

    def __init__(self) -> None:
        with tf.device("CPU:0"):
            self._free_since = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._waited = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    @property
    def variables(self) -> list[tf.Variable]:
        """What the clock keeps; it is no state of the run."""
        return [self._free_since, self._waited]

    def call_begins(self) -> None:
        """A call begins now."""
        self._free_since.assign(time.time())  # the clock that tf.timestamp reads

    def take(self) -> float:
        """Seconds waited since the last `take`; reads from the device."""
        waited = float(self._waited)
        self._waited.assign(0.0)
        return waited

    def around(self, step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """The step `(batch, number) -> outputs` with the clock around it, to be traced."""
        # The outputs of a function call are ready when all its ops are done, updates of variables included.
        whole = tf.function(step, autograph=False)

        def timed(batch: Any, number: Any) -> Any:
            free_since = self._free_since.read_value()
            with tf.control_dependencies([*tf.nest.flatten(batch, expand_composites=True), free_since]):
                begun = tf.timestamp()
            self._waited.assign_add(tf.maximum(begun - free_since, 0.0))
            outputs = whole(batch, number)
            with tf.control_dependencies(tf.nest.flatten(outputs, expand_composites=True)):
                self._free_since.assign(tf.timestamp())
            return outputs

        return timed
