"""One step on a global batch: splits it over replicas, runs the task's step on each part, joins what these return.

It knows one step only: the loop over steps is in `program.py`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.cluster import Cluster
from loops.engine.kept_rows import KeptRows
from loops.engine.outputs import concatenated
from loops.engine.returned import checked_logs
from loops.engine.rows import LogSpec, merge_replicas, merge_workers, row_of
from loops.engine.step_errors import StepErrors
from loops.engine.summary_step import records, summaries_at
from loops.feeds.split import split
from loops.graphs.dependence import EagerOps
from loops.messages import warn
from loops.tasks import loss_weights, replicas
from loops.tasks.base import Task
from loops.tasks.keras import KerasTask
from loops.tasks.metric_results import ResultsRecorded, with_metrics
from loops.tasks.plain_values import before_trace, changes_by_trace, drew_random_numbers
from loops.tasks.reductions import Collect
from loops.tasks.step_context import StepContext, Transform
from loops.tasks.trace_changes import TraceChanges, inputs_of
from loops.tasks.updates import DirectUpdatesRefused
from loops.tasks.used_variables import UsedVariables
from loops.user_errors.tracebacks import original_errors

__all__ = ["ROWS_OF_WORKER", "GlobalStep", "StepMeta"]

#: Name under which a step of several worker processes collects how many rows each of its outputs has.
ROWS_OF_WORKER = "rows of this worker"


@dataclasses.dataclass
class StepMeta:
    """What is known about a step once it was traced, or run eagerly.

    Attributes:
        spec: names and reductions of its scalars.
        metrics: name -> Keras metric that the step returned.
    """

    spec: LogSpec
    metrics: dict[str, keras.metrics.Metric]


class GlobalStep:
    """The step `method` of a task, on a global batch.

    Args:
        task: whose step it is.
        method: "train_step", "eval_step" or "predict_step".
        strategy: the batch is split over its replicas.
        seed: seed of the run.
        transforms: gradient transforms.
        observes: names of the tensors that hooks observe.
        fuse: whether the step is for graph mode, where updates may be fused (see `loops.tasks.fused_updates`).

    Attributes:
        training_step: variable with the number of training steps, for a step of an evaluation, which is not counted itself; else None.
        changes: what the first trace took for constant, to be compared with what there is later; None before it.
        consistent: whether all traces took the same for constant, and none drew random numbers of NumPy.
        draws_seeds: whether a trace called `Task.seed`, so that it holds the seed of the run.
        saw_no_writer: whether `tf.summary` had nowhere to write to in a trace, which left out what would have been written.
    """

    def __init__(
        self,
        task: Task,
        method: str,
        strategy: tf.distribute.Strategy,
        *,
        seed: int = 0,
        transforms: Sequence[Transform] = (),
        observes: frozenset[str] = frozenset(),
        fuse: bool = False,
    ):
        self.task, self.method, self.strategy, self.cluster = task, method, strategy, Cluster.of(strategy)
        self.seed, self._transforms, self._observes = seed, transforms, observes
        self.training_step = tf.Variable(0, dtype=tf.int64, trainable=False) if method == "eval_step" else None
        self._fuse, self._xla = fuse, False
        self.changes: TraceChanges | None = None
        self.consistent, self.draws_seeds, self.saw_no_writer = True, False, False
        # A variable with a copy on each replica is not made within a trace.
        several = strategy.num_replicas_in_sync > 1
        self.kept_rows = KeptRows() if method == "train_step" and not several else None
        self.meta: StepMeta | None = None
        self.traces = 0
        self.used = UsedVariables(lambda: replicas.local_variables(task.tracked.all_variables()))
        self._eager = False
        self._traced: dict[Any, tuple[Any, StepMeta]] = {}
        self._kinds: dict[str, type] = {}
        self._carriers: dict[Any, tf.Variable] = {}
        self._known_key: tuple[Any, Any] | None = None  # of the last spec

    @property
    def graph(self) -> tf.Graph | None:
        """The graph of the first trace, None before it."""
        return next((function.graph for function, _ in self._traced.values()), None)

    def graph_for(self, spec: Any) -> tf.Graph | None:
        """The graph of the trace for batches of `spec`, None if there is none."""
        traced = self._traced.get(self.key(spec))
        return None if traced is None else traced[0].graph

    @property
    def graphs(self) -> list[tf.Graph]:
        """The graphs of all traces, in the order in which they were made."""
        return [function.graph for function, _ in self._traced.values()]

    def bookkeeping(self) -> list[tf.Variable]:
        """Variables that a traced step uses and that are no state of the run."""
        kept_rows = self.kept_rows.variables if self.kept_rows is not None else ()
        return [*kept_rows, *self._carriers.values()]

    def key(self, spec: Any) -> Any:
        """A hashable identity of the structure, shapes and dtypes of a batch."""
        known = self._known_key
        if known is None or known[0] is not spec:
            known = self._known_key = spec, (tuple(tf.nest.flatten(spec)), str(tf.nest.map_structure(lambda _: 0, spec)))
        return known[1]

    def for_xla(self) -> GlobalStep:
        """The same step, with traces of its own that XLA compiles well.

        Under several replicas XLA compiles the ops of each, as far as it can; reductions and what follows them stay outside.
        """
        step = copy.copy(self)
        step._xla, step._traced, step.meta, step.traces = True, {}, None, 0
        step.changes, step.consistent, step.draws_seeds, step.saw_no_writer = None, True, False, False
        return step

    def build(self, spec: Any) -> None:
        """Creates variables before the step is traced, see `Task.build`."""
        with self.strategy.scope():
            self.task.build(spec)

    def concrete(self, spec: Any) -> Any:
        """The graph function for batches of `spec`; traced once for each spec.

        Returns:
            A concrete function `(batch, step) -> {"row", "observed", "collected"}`.
        """
        return self.traced(spec)[0]

    def traced(self, spec: Any) -> tuple[Any, StepMeta]:
        """The graph function for batches of `spec`, and what is known about its results. Other specs may have other names."""
        key = self.key(spec)
        if key not in self._traced:
            function = self._trace(spec)
            assert self.meta is not None
            self._traced[key] = function, self.meta
            self.traces += 1
        return self._traced[key]

    def _trace(self, spec: Any) -> Any:
        function = tf.function(self.__call__, autograph=False)
        before, inputs = before_trace(self.task), inputs_of(self.task, self._transforms)
        kept = self.kept_rows.watching(xla=self._xla) if self.kept_rows is not None else contextlib.nullcontext()
        with StepErrors(self.task, self.method, spec):
            self.build(spec)
            with self.strategy.scope(), self.used.while_traced(), kept:
                traced = function.get_concrete_function(spec, tf.TensorSpec([], tf.int64))
        self.consistent &= not drew_random_numbers(self.task, before)
        for sentence in changes_by_trace(self.task, before):
            warn(f"Warning: {sentence}")
        if self.changes is None:
            self.changes = TraceChanges(self.task, self._transforms, inputs)
        else:
            self.consistent &= self.changes.traced_again(self._transforms, inputs)
        return traced

    def eager(self, batch: Any, step: tf.Tensor) -> tuple[dict[str, Any], StepMeta]:
        """Runs the step in Python, so that breakpoints work; returns its results and what is known about them."""
        self._eager = True
        with StepErrors(self.task, self.method, batch), self.strategy.scope(), self.used:
            results = self(batch, step)
        assert self.meta is not None
        return results, self.meta

    @tf.autograph.experimental.do_not_convert
    def __call__(self, batch: Any, step: tf.Tensor) -> dict[str, Any]:
        with ResultsRecorded():
            return self._on_replicas(batch, step)

    def _on_replicas(self, batch: Any, step: tf.Tensor) -> dict[str, Any]:
        if self.strategy.num_replicas_in_sync == 1:
            # In the scope of any strategy but the default one, code runs for all replicas, unless `run` says that it is one's.
            run = self.strategy.run if tf.distribute.in_cross_replica_context() else None
            return run(self._on_replica, args=(batch, step)) if run else self._on_replica(batch, step)
        count = self.cluster.local_replicas
        parts = [tf.nest.flatten(part) for part in (split(batch, count) if count > 1 else [batch])]
        spread = tf.nest.pack_sequence_as(batch, [self._per_replica(group) for group in zip(*parts, strict=True)])
        with DirectUpdatesRefused(self.task.optimizers.values()):
            out = self.strategy.run(self._on_replica, args=(spread, step))
        rows = self.strategy.experimental_local_results(out["row"])
        assert self.meta is not None
        joined = {"row": rows[0] if self.cluster.several else merge_replicas(self.meta.spec, tf.stack(rows))}
        joined["observed"] = tf.nest.map_structure(lambda v: self.strategy.experimental_local_results(v)[0], out["observed"])
        joined["collected"] = tf.nest.map_structure(lambda v: concatenated(self.strategy.experimental_local_results(v)), out["collected"])
        if self.cluster.several and joined["collected"]:
            joined["collected"][ROWS_OF_WORKER] = tf.nest.map_structure(_row_count, joined["collected"])
        return joined

    def _per_replica(self, parts: Sequence[Any]) -> Any:
        if parts[0] is None:
            return None
        count = self.cluster.local_replicas
        return self.strategy.experimental_distribute_values_from_function(lambda c: parts[int(c.replica_id_in_sync_group) % count])

    def _on_replica(self, batch: Any, step: tf.Tensor) -> dict[str, Any]:
        counted = step if self.training_step is None else self.training_step.read_value()
        examples = self.task.batch_size(batch)
        context = StepContext(
            counted,
            step,
            examples,
            self.seed,
            self._transforms,
            self._observes,
            fuse=self._fuse,
            carriers=self._carriers,
            xla=self._xla,
        )
        ops = EagerOps() if self._eager and not isinstance(self.task, KerasTask) and self.task.tracked.metrics else None
        sums = functools.partial(loss_weights.warn_of_sum, self.task) if context.replicas > 1 else None
        of_batches = functools.partial(loss_weights.note_on_scalar, self.task) if context.replicas > 1 else None
        with context, ops or contextlib.nullcontext(), _private_api.loss_scaling(by_keras=False, sums=sums, scalars=of_batches):
            keep = self._per_replica_state() if context.replicas > 1 else []
            scope = tf.xla.experimental.jit_scope() if self._xla and context.replicas > 1 else contextlib.nullcontext()
            summaries = summaries_at(counted, 1 if self.training_step is None else 0)
            self.saw_no_writer |= not records()
            with scope, _fast_ops() if self._xla else contextlib.nullcontext(), summaries, original_errors():
                returned = self._user_step()(batch)
            for variable, before in keep:
                # Statistics over no example are NaN: a replica without examples keeps its old ones.
                variable.assign(tf.where(context.examples > 0, variable.read_value(), before))
            context.finish()
            if self.method == "predict_step":
                logs: dict[str, Any] = {"output": Collect(returned)}
            else:
                who = f"{type(self.task).__name__}.{self.method}"
                returned = checked_logs(returned, who, collects=self.method == "eval_step")
                logs = with_metrics(returned, context, self.task.tracked.metrics, batch, ops)
            collected = {name: tf.nest.map_structure(_as_rows, entry.value) for name, entry in logs.items() if isinstance(entry, Collect)}
            metrics = {name: entry for name, entry in logs.items() if isinstance(entry, keras.metrics.Metric)}
            scalars = {name: entry for name, entry in logs.items() if name not in collected and name not in metrics}
            if context.replicas > 1:
                loss_weights.check(self.task, batch, context.losses, scalars)
            if "batch" in self._observes:
                context.observed["batch"] = batch
            spec, row = row_of(scalars, context.examples, context.total_loss(scalars))
            if self.cluster.several:
                row = merge_workers(spec, row)
        self.draws_seeds |= context.drew_seeds
        self._check_reductions({**spec.kinds, **dict.fromkeys(metrics, keras.metrics.Metric)})
        self.meta = StepMeta(spec, metrics)
        return {"row": row, "observed": context.observed, "collected": collected}

    def _check_reductions(self, kinds: Mapping[str, type]) -> None:
        """Refuses a name that this trace reduces in another way than an earlier one did."""
        for name, kind in kinds.items():
            if self._kinds.setdefault(name, kind) is not kind:
                raise ValueError(
                    f"{self.method} returned {name!r} as {kind.__name__} and before, for another batch, as {self._kinds[name].__name__}; "
                    "a name has to be reduced in one way."
                )

    def _per_replica_state(self) -> list[tuple[tf.Variable, tf.Tensor]]:
        """Floating state that each replica updates by itself, such as batch-norm statistics, with its value now."""
        values = [replicas.backing(v) for v in self.task.tracked.model_variables() if not v.trainable]
        own = [v for v in values if v.dtype.is_floating and getattr(v, "aggregation", None) == tf.VariableAggregation.NONE]
        return [(v, tf.identity(v.read_value())) for v in own]

    def _user_step(self) -> Any:
        step = getattr(self.task, self.method)
        if self._eager or not self.task.autograph:
            return step
        return _private_api.converted_by_autograph(step)


def _fast_ops() -> contextlib.AbstractContextManager[Any]:
    from loops.xla.replaced_ops import FastOps  # a graph has no need of it

    return FastOps()


def _as_rows(output: Any) -> Any:
    """A collected output with a first dimension: a scalar is one row a batch, on each replica."""
    return tf.reshape(output, [1]) if tf.is_tensor(output) and output.shape.rank == 0 else output


def _row_count(output: Any) -> tf.Tensor:
    """The number of rows of a collected output, `[1]`.

    Raises:
        ValueError: for ragged and sparse outputs, and those of unknown rank.
    """
    if not isinstance(output, tf.Tensor) or output.shape.rank is None:
        raise ValueError(
            f"An output that is collected is {type(output).__name__} of shape {output.shape}; from several workers only dense tensors of "
            "known rank can be collected: make it one, as with ragged.to_tensor()."
        )
    return tf.shape(output)[:1]
