"""The compiled call: steps `start .. start+n-1` of a block, or the next n batches of an iterator, in one in-graph loop.

    if a step before this call was not finite: n = 0
    while i < n and finite and there is a batch:
        row     = step(batch, first_step + i)
        rows[i] = row
        finite  = the losses of this step are finite

`start`, `n` and `first_step` are scalar tensors, so one trace serves any number of steps. A program knows no hook, and keeps no copy of the
state: `Execution` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops.engine.backup import Backup, FiniteCheck, ReadAgain
from loops.engine.batch_readers import Recording, eager_batch, inputs_of, reader_for, signature_of
from loops.engine.kept_rows import writes_rows
from loops.engine.outputs import Outputs, concatenated, unpacked
from loops.engine.rows import CHECK, LogSpec, aligned
from loops.engine.step import GlobalStep, StepMeta
from loops.feeds import Block, IndexedBlock
from loops.graphs.written_resources import written_captures, written_variables
from loops.tasks.replicas import local_variables
from loops.tasks.run_variables import flat, variables_of
from loops.user_errors.reasons import in_short, without_nodes

__all__ = ["Call", "Program"]


@dataclasses.dataclass(frozen=True)
class Call:
    """What one call did. The tensors are still on the device.

    Attributes:
        done: int64 scalar, steps done.
        rows: float64 `[>= done, width]`.
        observed: name -> tensor that hooks observe, of the last step.
        collected: name -> outputs, nested, of all steps: tensors `[>= examples, ...]`, ragged and sparse ones, or lists of the tensors of
            each step where these may differ in shape.
        meta: names and reductions of the rows, and the metrics that the steps returned.
        finite: bool scalar, whether all losses up to here were finite (in eager mode, the state too); None if that was not asked for.
        recorded: tensor lists of what a guarded call pulled from an iterator; empty for other sources, and in eager mode.
        waited: seconds that the steps waited for batches of an iterator, float64 scalar; None for other sources.
        undo: the state before the last step, in guarded calls in eager mode only.
        last_batch: the batch of the last step, in eager mode only.
        capacity: number of steps that `collected` has room for, where that is fixed (XLA).
    """

    done: Any
    rows: Any
    observed: Any
    collected: Any
    meta: StepMeta
    finite: Any = None
    recorded: tuple[Any, ...] = ()
    waited: Any = None
    undo: Backup | None = None
    last_batch: Any = None
    capacity: int | None = None


class Program:
    """Runs a `GlobalStep` many times in one compiled call.

    Args:
        step: the step.
        mode: "graph", "xla" or "eager". XLA compiles a whole call only for one device. Under several replicas the call is a graph, in
            which XLA compiles what each replica does by itself.

    Attributes:
        mode: the mode in which a call runs.
        blocks: under XLA, the specs of batches and the lengths of blocks (and arrays) for which there is a program; see `Feed.cut_like`.
        check, read: for those who run the program; what they compile is kept with it.
        in_use, of_one_run, looked_at: for `KeptPrograms`: whether a run uses the program, whether a trace holds what belongs to one run
            only, and in how many traces that was looked for.
    """

    def __init__(self, step: GlobalStep, mode: str):
        self.step, self.mode = step, mode
        if mode == "xla":
            self.step = step.for_xla()
            self.mode = "xla" if step.strategy.num_replicas_in_sync == 1 else "graph"
        self._compiled: dict[Any, Any] = {}
        self.blocks: list[tuple[Any, int, int | None]] = []
        self.check, self.read = FiniteCheck(step.cluster), ReadAgain()
        self._state_writes: dict[int, list[tf.Variable]] = {}
        self.in_use, self.of_one_run, self.looked_at = False, False, 0

    @property
    def compilations(self) -> int:
        """Programs built so far: one for each kind of source and signature, under XLA one for each block shape."""
        return len(self._compiled)

    def variables(self) -> dict[str, list[Any]]:
        """The variables that belong to the run, by group; those that no attribute leads to, as far as the step was traced or run."""
        graphs = () if self.mode == "eager" else self.step.graphs
        return variables_of(self.step.task, graphs, self.step.used, apart=self.step.bookkeeping())

    def written(self, source: Any, spec: Any, variables: Iterable[tf.Variable], *, whole: bool = False) -> list[tf.Variable]:
        """Those of `variables` that a call may write; in eager mode, all.

        Args:
            source: what the call will be given.
            spec: type specs of one batch.
            variables: plain variables.
            whole: whether to leave out those of which `kept_rows` keeps whatever is written.
        """
        if self.mode == "eager":
            return list(variables)
        return written_variables(self.graph_for(source, spec), variables, writes_rows if whole else None)

    def graph_for(self, source: Any, spec: Any) -> tf.Graph | None:
        """The graph of the step that a call with this source runs; the variables that it creates exist then. None in eager mode."""
        return None if self.mode == "eager" else self.step.concrete(self._spec(source, spec)).graph

    def state_writes(self, graph: tf.Graph) -> list[tf.Variable]:
        """The variables of the state, and others that the graph of the step holds, that it may write. It is searched once."""
        if id(graph) not in self._state_writes:  # the step keeps its graphs
            by_handle = {id(v.handle): v for v in [*local_variables(graph.variables), *flat(self.variables())]}
            found = (by_handle.get(id(handle)) for handle, _ in written_captures(graph))
            self._state_writes[id(graph)] = [variable for variable in found if variable is not None]
        return self._state_writes[id(graph)]

    def key(self, source: Any, spec: Any) -> Any:
        """A hashable identity of the step that a call with this source runs."""
        return self.step.key(self._spec(source, spec))

    def _spec(self, source: Any, spec: Any) -> Any:
        """Type specs of the batches; under XLA those of a block have the shapes of its batches."""
        if self.mode == "xla" and isinstance(source, Block):
            return source.batch_spec
        return spec

    def __call__(
        self,
        source: Any,
        spec: Any,
        *,
        start: int,
        n: int,
        first_step: int,
        finite: Any = None,
        guarded: Callable[[], Sequence[tf.Variable]] = list,
    ) -> Call:
        """Does up to `n` steps.

        Args:
            source: a `Block`, a `tf.data` iterator, or a `Recording`.
            spec: type specs of one batch.
            start: first batch of the block; 0 for an iterator.
            n: number of steps, within the block.
            first_step: steps completed before.
            finite: whether all steps before were finite, a bool scalar tensor; None if the call is not to find out about its own.
            guarded: returns the variables of the state, which has to stay finite; for eager mode, which looks at them after every step.

        Raises:
            ValueError: if XLA cannot compile the step.
        """
        if self.mode == "eager":
            return self._run_eagerly(source, start, n, first_step, finite, guarded)
        step_key, spec = self.key(source, spec), self._spec(source, spec)
        capacity = source.capacity if self.mode == "xla" else None
        rows = source.rows if capacity is not None and isinstance(source, IndexedBlock) else None
        key = (type(source).__name__, capacity, rows, finite is not None, step_key)
        if key not in self._compiled:
            function = self._compile(source, spec, capacity, guarded=finite is not None)
            self.blocks += [(spec, capacity, rows)] if capacity is not None else []
            concrete, meta = self.step.traced(spec)
            self._compiled[key] = function, meta, concrete.structured_outputs["collected"]
        function, meta, structure = self._compiled[key]
        scalars = (tf.constant(v, tf.int64) for v in (start, n, first_step))
        try:
            with self.step.cluster.noticing_loss():
                out = function(inputs_of(source), *scalars, tf.constant(True) if finite is None else finite)
        except tf.errors.OpError as error:
            refused = isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)) and "ompil" in str(error)
            if self.mode == "xla" and refused:
                raise _cannot_compile(error) from None
            if not keras.config.is_traceback_filtering_enabled():
                raise
            raise in_short(error) from None
        after = out["finite"] if finite is not None else None
        collected, waited = unpacked(structure, out["collected"], out["done"]), next(iter(out["waited"]), None)
        recorded = tuple(out["recorded"])
        return Call(out["done"], out["rows"], out["observed"], collected, meta, after, recorded, waited, capacity=capacity)

    def _compile(self, source: Any, spec: Any, capacity: int | None, *, guarded: bool) -> Any:
        step = self.step.concrete(spec)

        def run(given: Any, start: Any, n: Any, first_step: Any, finite: Any) -> dict[str, Any]:
            if guarded:
                n = tf.where(finite, n, tf.zeros_like(n))
            reader = reader_for(source, given, spec, start, record=guarded, xla=self.mode == "xla")
            outputs = Outputs(step.structured_outputs, capacity, n)
            held = reader.first(n)

            def proceed(i: Any, ok: Any, held: Any, out: Any) -> Any:
                return (i < n) & ok & reader.has_batch(held)

            def body(i: Any, ok: Any, held: Any, out: Any) -> Any:
                result = step(reader.batch(held, i), first_step + i)
                last = n
                if guarded:
                    ok = tf.math.is_finite(result["row"][CHECK])
                    last = tf.where(ok, n, tf.zeros_like(n))
                return i + 1, ok, reader.next(held, i + 1, last, result["row"]), outputs.put(out, i, result)

            begin = (tf.zeros([], tf.int64), tf.constant(True), held, outputs.begin())
            unbound = tf.nest.map_structure(lambda t: t.shape if isinstance(t, tf.Tensor) else None, begin)
            shapes = (*unbound[:3], outputs.shapes(unbound[3]))
            done, ok, held, out = tf.while_loop(proceed, body, begin, shape_invariants=shapes if outputs.shapes_vary else None)
            return {
                "done": done,
                "finite": finite & ok,
                "recorded": reader.recorded(held),
                "waited": reader.waited(held),
                **outputs.end(out),
            }

        signature = [signature_of(source, spec, capacity), *[tf.TensorSpec([], tf.int64)] * 3, tf.TensorSpec([], tf.bool)]
        function = tf.function(run, autograph=False, jit_compile=True if self.mode == "xla" else None)
        with self.step.strategy.scope():
            return function.get_concrete_function(*signature)

    def _run_eagerly(
        self, source: Any, start: int, n: int, first_step: int, finite: Any, guarded: Callable[[], Sequence[tf.Variable]]
    ) -> Call:
        results: list[dict[str, Any]] = []
        parts: list[tuple[LogSpec, Any]] = []
        metrics: dict[str, Any] = {}
        batch, undo, waited = None, None, 0.0
        while len(results) < n and (finite is None or bool(finite)):
            begun = time.perf_counter()
            try:
                batch = eager_batch(source, start + len(results))
            except StopIteration:
                break
            waited += time.perf_counter() - begun
            undo = Backup(guarded()) if finite is not None else None
            with undo.covering_new() if undo is not None else contextlib.nullcontext():
                result, meta = self.step.eager(batch, tf.constant(first_step + len(results), tf.int64))
            results.append(result)
            parts.append((meta.spec, result["row"]))
            metrics.update(meta.metrics)
            if undo is not None:
                finite = tf.math.is_finite(results[-1]["row"][CHECK]) & self.check(undo)
        spec, rows = aligned(parts) if parts else (LogSpec({}), tf.zeros([0, 2], tf.float64))
        collected = tf.nest.map_structure(lambda *v: concatenated(v), *[r["collected"] for r in results]) if results else {}
        observed = results[-1]["observed"] if results else {}
        done, pulled = tf.constant(len(results), tf.int64), not isinstance(source, Block | Recording)
        meta, waits = StepMeta(spec, metrics), waited if pulled else None
        return Call(done, rows, observed, collected, meta, finite, waited=waits, undo=undo, last_batch=batch)


def _cannot_compile(error: Exception) -> ValueError:
    """One sentence in place of XLA's long message."""
    found = re.search(r"Detected unsupported operations[^:]*:\s*(.*)|No registered '(\w+)'|([^.\n]*not compilable[^.\n]*)", str(error))
    reason = next((g for g in found.groups() if g), "") if found else str(error).strip().splitlines()[0]
    reason = without_nodes(reason.partition("{{function_node ")[0].split(" (No registered")[0])
    if "Summary" in reason:
        reason += ", that is a call of tf.summary"
    return ValueError(f"compile='xla' cannot compile this step ({reason.strip()}); use compile='graph'.")
