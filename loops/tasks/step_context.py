"""The context of the step that this thread traces or runs: its number, its seeds, and what the loop wants from it.

Under several replicas each has its own context, because TensorFlow traces each of them in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from loops.cluster import Cluster
from loops.tasks.carried import Carried, graphs_within
from loops.tasks.reductions import Reduction
from loops.tasks.seeds import Seeds

__all__ = ["StepContext", "current", "inside_step"]

_local = threading.local()

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
        carriers: variables that bring values out of control flow, kept from trace to trace; see `carried.py`.
        xla: whether the step is traced for XLA, so that shapes are static which the same step does not know in a graph.

    Attributes:
        losses: the losses that the step minimized.
        observed: name -> tensor that hooks observe.
        results: (metric, result) of each call of `metric.result()`.
        updating: whether `minimize` or `apply_gradients` of the task calls an optimizer now.
        examples_of_all: examples in the global batch, float64 scalar, once that is known.
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
        carriers: dict[Any, tf.Variable] | None = None,
        xla: bool = False,
    ):
        self.step = step
        self.examples = tf.convert_to_tensor(examples)
        self.transforms = transforms
        self.observes = observes
        self.fuse = fuse and self.replicas == 1
        self.xla = xla
        self.losses: list[tf.Tensor] = []
        self.observed: dict[str, Any] = {}
        self.results: list[tuple[Any, Any]] = []
        self.updating = False
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self._carried = Carried(self._graph, carriers if carriers is not None else {})
        replica = tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group) or 0
        self._seeds = Seeds(run_seed, int(replica), index)
        self.examples_of_all: tf.Tensor | None = None
        self._across_processes = Cluster.of(tf.distribute.get_strategy()).several

    @property
    def replicas(self) -> int:
        return int(tf.distribute.get_strategy().num_replicas_in_sync)

    def seed(self, fold: tuple[Any, ...]) -> tf.Tensor:
        """The next seed pair of this step; see `Task.seed`."""
        return self._seeds.seed(fold)

    @property
    def drew_seeds(self) -> bool:
        """Whether the step called `seed`."""
        return self._seeds.drawn > 0

    @property
    def within(self) -> bool:
        """Whether a conditional, a loop or a function inside of the step is being traced."""
        return bool(graphs_within(self._graph))

    def minimized(self, loss: tf.Tensor) -> None:
        """Notes a loss that the step minimizes, so that it is found if it is not finite."""
        if not self.within:
            self.losses.append(loss)
        elif self._graph is not None:
            self._carried.add(("check", "loss"), tf.cast(loss - loss, tf.float64))  # 0 or NaN: a sum of losses could overflow

    def observe(self, name: str, tensor: Any) -> None:
        """Notes a tensor that hooks observe; inside of control flow its last value counts."""
        if not self.within:
            self.observed[name] = tensor
        elif self._graph is not None:
            self._carried.put(("observed", name), tensor)

    def observe_gradient(self, path: str, gradient: Any) -> None:
        """Notes the gradient of a variable, as `observe` does."""
        if not self.within:
            self.observed.setdefault("gradients", {})[path] = gradient
        elif self._graph is not None:
            self._carried.put(("gradients", path), gradient)

    def finish(self) -> None:
        """Takes in what was brought out of control flow, and checks the seeds. Call it when the step is done."""
        self._seeds.finish()
        for (kind, name), value in self._carried.values().items():
            if kind == "check":
                self.losses.append(value)
            elif kind == "gradients":
                self.observed.setdefault("gradients", {})[name] = value
            else:
                self.observed[name] = value

    @property
    def counts_with_gradients(self) -> bool:
        """Whether the number of examples of all replicas is to be found out together with the gradients: it is not known yet, and some
        replicas are in other processes."""
        return self.examples_of_all is None and self._across_processes

    def example_share(self) -> tf.Tensor:
        """This replica's share of the examples of the global batch, float64 scalar."""
        mine = tf.cast(self.examples, tf.float64)
        if self.examples_of_all is None:
            self.examples_of_all = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, mine)
        return tf.math.divide_no_nan(mine, self.examples_of_all)

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
