"""Gives `tf.summary` calls inside a step the number of that step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

__all__ = ["records", "summaries_at"]


def records() -> bool:
    """Whether `tf.summary` may write now: somebody has made a writer the default one. Without one a trace leaves the calls out."""
    recorded = tf.get_static_value(tf.summary.should_record_summaries())  # None if it is decided at each step
    return recorded is None or bool(recorded)


@contextlib.contextmanager
def summaries_at(step: tf.Tensor, done: int) -> Iterator[None]:
    """Within this context `tf.summary` writes at a step, if somebody has made a writer the default one and set no other step.

    Args:
        step: int64 scalar, training steps completed before.
        done: added to it: 1 for a training step, which TensorBoard shows at the number of steps that are complete after it.
    """
    if tf.summary.experimental.get_step() is not None or not records():
        yield
        return
    tf.summary.experimental.set_step(step + done)
    try:
        yield
    finally:
        tf.summary.experimental.set_step(None)
