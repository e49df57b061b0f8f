"""The context of the step that this thread traces or runs: its number, its seeds, and what the loop wants from it.

Under several replicas each has its own context, because TensorFlow traces each of them in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from loops.tasks.reductions import Reduction

__all__ = ["StepContext", "current", "inside_step", "mix", "stateless_seed"]

_local = threading.local()
_MASK = 2**64 - 1

Transform = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]


class StepContext:
    """State of one step on one replica while it is traced (or run eagerly).

    Args:
        step: int64 scalar tensor, training steps completed before this one.
        index: int64 scalar tensor that differs from step to step, in evaluation too; seeds depend on it.
        examples: examples in this replica's part of the batch.
        run_seed: seed of the run.
        transforms: gradient transforms of the loop, clipping included.
        observes: names of the tensors that hooks observe.
        fuse: whether updates may be fused (see `fused_updates.py`), which changes no bit.
    """

    def __init__(
        self,
        step: tf.Tensor,
        index: tf.Tensor,
        examples: Any,
        run_seed: int,
        transforms: Sequence[Transform],
        observes: frozenset[str],
        fuse: bool = False,
    ):
        self.step = step
        self.examples = tf.convert_to_tensor(examples)
        self.transforms = transforms
        self.observes = observes
        self.fuse = fuse and self.replicas == 1
        self.losses: list[tf.Tensor] = []
        self.observed: dict[str, Any] = {}
        self._run_seed, self._index = run_seed, index
        self._sites = 0
        self._example_share: tf.Tensor | None = None

    @property
    def replicas(self) -> int:
        return int(tf.distribute.get_strategy().num_replicas_in_sync)

    def seed(self) -> tf.Tensor:
        """The next stateless seed pair of this step."""
        replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group) or 0
        self._sites += 1
        return stateless_seed(self._run_seed, self._sites, int(replica), self._index)

    def example_share(self) -> tf.Tensor:
        """This replica's share of the examples of the global batch, float32 scalar."""
        if self._example_share is None:
            mine = tf.cast(self.examples, tf.float32)
            total = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, mine)
            self._example_share = tf.math.divide_no_nan(mine, total)
        return self._example_share

    def total_loss(self, logs: dict[str, Any]) -> tf.Tensor:
        """A float64 scalar that is finite if and only if all losses of the step are."""
        losses = self.losses
        if not losses and "loss" in logs:
            losses = [tf.convert_to_tensor(logs["loss"].value if isinstance(logs["loss"], Reduction) else logs["loss"])]
        if not losses:
            return tf.zeros([], tf.float64)
        total = tf.add_n([tf.cast(tf.reduce_sum(loss), tf.float64) for loss in losses])
        # The mean loss of a replica without examples is NaN, which must not make the step a bad one.
        return total if self.replicas == 1 else tf.where(tf.equal(self.examples, 0), tf.zeros_like(total), total)

    def __enter__(self) -> StepContext:
        self._outer = getattr(_local, "context", None)
        _local.context = self
        return self

    def __exit__(self, *exception: object) -> None:
        _local.context = self._outer


def inside_step() -> bool:
    """True while a step is traced or run eagerly in this thread."""
    return getattr(_local, "context", None) is not None


def current(what: str) -> StepContext:
    """The running step's context.

    Raises:
        RuntimeError: outside of a step; `what` names the call that needs one.
    """
    context: StepContext | None = getattr(_local, "context", None)
    if context is None:
        raise RuntimeError(f"`{what}` works only inside train_step, eval_step or predict_step while a loop runs them.")
    return context


def mix(*numbers: int) -> int:
    """Mixes integers into one signed 64-bit integer; different inputs give different, unrelated-looking outputs.

    References:
        SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    Example:
        >>> mix(0, 1) != mix(1, 0)
        True
    """
    state = 0
    for number in numbers:
        state = (state ^ (int(number) & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state - 2**64 if state >= 2**63 else state


def stateless_seed(run_seed: int, site: int, replica: int, step: tf.Tensor) -> tf.Tensor:
    """The seed pair for one call site in one step on one replica.

    Args:
        run_seed: seed of the run.
        site: number of the call site within the step.
        replica: replica number.
        step: int64 scalar, completed steps.

    Returns:
        int64 tensor `[2]` for the `seed` argument of `tf.random.stateless_*`.
    """
    return tf.stack([tf.constant(mix(run_seed, site, replica), tf.int64), tf.cast(step, tf.int64)])
