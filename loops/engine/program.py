"""The compiled call: steps `start .. start+n-1` of a block, or the next n batches of an iterator, in one in-graph loop.

    if the state was finite when the call began: backup = state, else: n = 0, and the call returns the backup that it was given
    while i < n and finite and there is a batch:
        row     = step(batch, first_step + i)
        rows[i] = row
        finite  = the losses of this step are finite
    finite = finite and no variable became non-finite

`start`, `n` and `first_step` are scalar tensors, so one trace serves any number of steps. A program knows no hook.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops.engine.batch_readers import eager_batch, empty_recording, inputs_of, reader_for, signature_of
from loops.engine.rows import CHECK, LogSpec, aligned
from loops.engine.step import GlobalStep, StepMeta
from loops.feeds import Block
from loops.tasks.run_variables import flat, variables_of

__all__ = ["MODES", "Call", "Guard", "Program"]

MODES = ("auto", "graph", "xla", "eager")


@dataclasses.dataclass(frozen=True)
class Guard:
    """State that must stay finite, with a backup. All of it stays on the device until somebody reads `finite`.

    Attributes:
        variables: plain `tf.Variable`s.
        finite: bool scalar tensor, whether the state is finite.
        backup: values of the variables before the call that made it non-finite (or before the last call).
        recorded: tensor lists of what that call pulled from an iterator; empty for other sources.
    """

    variables: tuple[tf.Variable, ...]
    finite: Any
    backup: tuple[Any, ...]
    recorded: tuple[Any, ...] = ()

    @classmethod
    def over(cls, variables: list[tf.Variable]) -> Guard:
        """A guard over state that is finite now."""
        return cls(tuple(variables), tf.constant(True), tuple(tf.identity(v) for v in variables))

    def restore(self) -> None:
        """Puts the backup back."""
        for variable, value in zip(self.variables, self.backup, strict=True):
            variable.assign(value)


@dataclasses.dataclass(frozen=True)
class Call:
    """What one call did. The tensors are still on the device.

    Attributes:
        done: int64 scalar, steps done.
        rows: float64 `[>= done, width]`.
        observed: name -> tensor that hooks observe, of the last step.
        collected: name -> outputs, nested, of all steps: `[>= examples, ...]`.
        guard: the guard after the call, or None.
        meta: names and reductions of the rows, and the metrics that the steps returned.
        last_batch: the batch of the last step, in eager mode only.
        capacity: number of steps that `collected` has room for, where that is fixed (XLA).
    """

    done: Any
    rows: Any
    observed: Any
    collected: Any
    guard: Guard | None
    meta: StepMeta
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
    """

    def __init__(self, step: GlobalStep, mode: str):
        self.step, self.mode = step, mode
        if mode == "xla":
            self.step = step.for_xla()
            self.mode = "xla" if step.strategy.num_replicas_in_sync == 1 else "graph"
        self._compiled: dict[Any, Any] = {}

    @property
    def compilations(self) -> int:
        """Programs built so far: one for each kind of source and signature, under XLA one for each block shape."""
        return len(self._compiled)

    def __call__(self, source: Any, spec: Any, *, start: int, n: int, first_step: int, guard: Guard | None = None) -> Call:
        """Does up to `n` steps.

        Args:
            source: a `Block`, a `tf.data` iterator, or a `Recording`.
            spec: type specs of one batch.
            start: first batch of the block; 0 for an iterator.
            n: number of steps, within the block.
            first_step: steps completed before.
            guard: state to guard, or None.

        Raises:
            ValueError: if XLA cannot compile the step.
        """
        if self.mode == "eager":
            return self._run_eagerly(source, start, n, first_step, guard)
        spec = self._spec_for(source, spec)
        capacity = source.capacity if self.mode == "xla" else None
        guarded = None if guard is None else len(guard.variables)  # a later trace may have brought more
        key = (type(source).__name__, capacity, guarded, self.step.key(spec))
        if key not in self._compiled:
            self._compiled[key] = self._compile(source, spec, capacity, guard), self.step.traced(spec)[1]
        function, meta = self._compiled[key]
        finite, backup, recorded = tf.constant(True), [], []
        if guard is not None:
            finite, backup, recorded = guard.finite, list(guard.backup), list(guard.recorded or empty_recording(source, spec))
        scalars = (tf.constant(v, tf.int64) for v in (start, n, first_step))
        try:
            out = function(inputs_of(source), *scalars, finite, backup, recorded)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
            raise _cannot_compile(error) if self.mode == "xla" and "ompil" in str(error) else error from error
        after = Guard(guard.variables, out["finite"], tuple(out["backup"]), tuple(out["recorded"])) if guard else None
        return Call(out["done"], out["rows"], out["observed"], out["collected"], after, meta, capacity=capacity)

    def variables(self) -> dict[str, list[Any]]:
        """The variables that belong to the run, by group; those that no attribute leads to, as far as the step was traced or run."""
        graphs = () if self.mode == "eager" else self.step.graphs
        return variables_of(self.step.task, graphs, self.step.used, apart=self.step.clock.variables if self.step.clock is not None else ())

    def new_guard(self) -> Guard:
        """A guard over everything that belongs to the run; the step has to be traced, or in eager mode built."""
        variables = flat(self.variables())
        if self.mode == "xla":  # it has no strings, so no step that it compiles can change one
            variables = [v for v in variables if v.dtype != tf.string]
        return Guard.over(variables)

    def graph_for(self, source: Any, spec: Any) -> tf.Graph | None:
        """The graph of the step that a call on this source runs; traces it unless it was traced already. None in eager mode."""
        return None if self.mode == "eager" else self.step.concrete(self._spec_for(source, spec)).graph

    def _spec_for(self, source: Any, spec: Any) -> Any:
        """The specs that the step is traced for: of XLA those of the block, whose sizes are all known."""
        if self.mode == "xla" and isinstance(source, Block):
            return tf.nest.map_structure(lambda t: None if t is None else tf.TensorSpec(t.shape[1:], t.dtype), source.tensors)
        return spec

    def _compile(self, source: Any, spec: Any, capacity: int | None, guard: Guard | None) -> Any:
        step = self.step.concrete(spec)
        guarded, is_guarded = guard.variables if guard else (), guard is not None

        def run(given: Any, start: Any, n: Any, first_step: Any, finite: Any, backup: Any, recorded: Any) -> dict[str, Any]:
            was_finite = finite
            if is_guarded:
                backup = _choose(was_finite, lambda: [v.read_value() for v in guarded], backup)
                n = tf.where(was_finite, n, tf.zeros_like(n))
            reader = reader_for(source, given, spec, start, record=is_guarded, xla=self.mode == "xla")
            outputs = _Outputs(step.structured_outputs, capacity, n)
            held = reader.first(n)

            def proceed(i: Any, ok: Any, held: Any, out: Any) -> Any:
                return (i < n) & ok & reader.has_batch(held)

            def body(i: Any, ok: Any, held: Any, out: Any) -> Any:
                result = step(reader.batch(held, i), first_step + i)
                last = n
                if is_guarded:
                    ok = tf.math.is_finite(result["row"][CHECK])
                    last = tf.where(ok, n, tf.zeros_like(n))
                return i + 1, ok, reader.next(held, i + 1, last), outputs.put(out, i, result)

            begin = (tf.zeros([], tf.int64), tf.constant(True), held, outputs.begin())
            unbound = tf.nest.map_structure(lambda t: t.shape if isinstance(t, tf.Tensor) else None, begin)
            shapes = (*unbound[:3], outputs.shapes(unbound[3]))
            done, ok, held, out = tf.while_loop(proceed, body, begin, shape_invariants=shapes if outputs.shapes_vary else None)
            if is_guarded:
                with tf.control_dependencies([done]):
                    finite = was_finite & ok & _stayed_finite(guarded, backup)
                recorded = _choose(was_finite, lambda: reader.recorded(held), recorded)
            return {"done": done, "finite": finite, "backup": backup, "recorded": recorded, **outputs.end(out)}

        signature = [signature_of(source, spec, capacity), *[tf.TensorSpec([], tf.int64)] * 3, tf.TensorSpec([], tf.bool)]
        signature.append([tf.TensorSpec(v.shape, v.dtype) for v in guarded])
        signature.append([tf.TensorSpec([], tf.variant) for _ in empty_recording(source, spec)] if is_guarded else [])
        function = tf.function(run, autograph=False, jit_compile=True if self.mode == "xla" else None)
        with self.step.strategy.scope():
            return function.get_concrete_function(*signature)

    def _run_eagerly(self, source: Any, start: int, n: int, first_step: int, guard: Guard | None) -> Call:
        results: list[dict[str, Any]] = []
        parts: list[tuple[LogSpec, Any]] = []
        metrics: dict[str, Any] = {}
        batch = None
        while len(results) < n and (guard is None or bool(guard.finite)):
            try:
                batch = eager_batch(source, start + len(results))
            except StopIteration:
                break
            before = tuple(tf.identity(v) for v in guard.variables) if guard else ()
            result, meta = self.step.eager(batch, tf.constant(first_step + len(results), tf.int64))
            results.append(result)
            parts.append((meta.spec, result["row"]))
            metrics.update(meta.metrics)
            if guard is not None:
                finite = tf.math.is_finite(result["row"][CHECK]) & _stayed_finite(guard.variables, before)
                guard = Guard(guard.variables, finite, before)
        names, rows = aligned(parts) if parts else (LogSpec({}), tf.zeros([0, 2], tf.float64))
        collected = tf.nest.map_structure(lambda *v: tf.concat(v, 0), *[r["collected"] for r in results]) if results else {}
        observed = results[-1]["observed"] if results else {}
        return Call(tf.constant(len(results), tf.int64), rows, observed, collected, guard, StepMeta(names, metrics), batch)


class _Outputs:
    """The loop variables in which a program gathers rows, observed tensors and collected outputs."""

    def __init__(self, structure: Any, capacity: int | None, n: tf.Tensor):
        self._structure, self._capacity, self._n = structure, capacity, n
        self._observed = tf.nest.flatten(structure["observed"])
        self._collected = tf.nest.flatten(structure["collected"])
        self.shapes_vary = not all(t.shape.is_fully_defined() for t in self._observed)

    def begin(self) -> tuple[Any, list[Any], list[Any]]:
        size = self._n if self._capacity is None else self._capacity
        rows = tf.zeros([size, self._structure["row"].shape[0]], tf.float64)
        observed = [tf.zeros([d or 0 for d in t.shape], t.dtype) for t in self._observed]
        # Under XLA all batches of a block have one shape, and arrays cannot grow. Elsewhere shapes may differ, and n may be larger than
        # the number of batches.
        grows = self._capacity is None
        arrays = [
            tf.TensorArray(t.dtype, size=0 if grows else self._capacity, dynamic_size=grows, element_shape=t.shape, infer_shape=False)
            for t in self._collected
        ]
        return rows, observed, arrays

    def shapes(self, unbound: Any) -> Any:
        rows, _, arrays = unbound
        return rows, [t.shape for t in self._observed], arrays

    def put(self, state: Any, i: tf.Tensor, result: Any) -> Any:
        rows, _, arrays = state
        rows = tf.tensor_scatter_nd_update(rows, [[i]], [result["row"]])
        index = tf.cast(i, tf.int32)
        arrays = [a.write(index, v) for a, v in zip(arrays, tf.nest.flatten(result["collected"]), strict=True)]
        return rows, tf.nest.flatten(result["observed"]), arrays

    def end(self, state: Any) -> dict[str, Any]:
        rows, observed, arrays = state
        return {
            "rows": rows,
            "observed": tf.nest.pack_sequence_as(self._structure["observed"], observed),
            "collected": tf.nest.pack_sequence_as(self._structure["collected"], [self._joined(a) for a in arrays]),
        }

    def _joined(self, array: tf.TensorArray) -> tf.Tensor:
        if self._capacity is None:
            return array.concat()
        stacked = array.stack()
        return tf.reshape(stacked, tf.concat([[-1], tf.shape(stacked)[2:]], 0))


def _cannot_compile(error: Exception) -> ValueError:
    """One sentence in place of XLA's long message."""
    found = re.search(r"Detected unsupported operations[^:]*:\s*(.*)|No registered '(\w+)'|([^.\n]*not compilable[^.\n]*)", str(error))
    reason = next((g for g in found.groups() if g), "") if found else str(error).strip().splitlines()[0]
    return ValueError(f"compile='xla' cannot compile this step ({reason.strip()}); use compile='graph'.")


def _choose(condition: tf.Tensor, new: Callable[[], list[Any]], old: list[Any]) -> list[Any]:
    return list(tf.cond(condition, new, lambda: [tf.identity(t) for t in old])) if old else []


def _stayed_finite(variables: tuple[tf.Variable, ...], before: Any) -> tf.Tensor:
    """True unless an element became non-finite that was finite before."""
    verdicts = [
        tf.reduce_all(tf.math.is_finite(v.read_value()) | ~tf.math.is_finite(old))
        for v, old in zip(variables, before, strict=True)
        if v.dtype.is_floating
    ]
    return tf.reduce_all(tf.stack(verdicts)) if verdicts else tf.constant(True)
