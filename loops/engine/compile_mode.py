"""Chooses graph mode or XLA for compile="auto", by a rule: from the traced step, the sizes and the length of the run, never from a clock.

So identical commands choose alike on every machine, and have the same bits. `docs/design.md` shows the rule, `docs/benchmarks.md` what it
chooses for many models beside what was measured; `scripts/mode_choices.py` measures that again.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.engine.program import Program
from loops.feeds import ArrayFeed, DatasetFeed, Feed, Position
from loops.graphs import walk
from loops.graphs.work import Work, is_grouped, work_of
from loops.messages import say
from loops.tasks.tracking import layers_of

__all__ = ["RULE", "UNITS", "Choice", "Costs", "choose", "costs_of", "warning"]

# Prefixes of op types: those that are slow under XLA on a CPU inside a loop, and those that XLA compiles although they are stateful.
_SLOW = ("Conv2DBackprop", "Conv3DBackprop", "DepthwiseConv2dNativeBackprop")
_VARIABLES = ("Resource", "ReadVariable", "Assign", "VarHandle", "VarIsInitialized", "VariableShape", "DestroyResource")
_STATEFUL_BUT_COMPILED = (*_VARIABLES, "StatefulPartitionedCall", "While", "If", "Case")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen program, and the reason for its mode.

    Attributes:
        program: the program to run.
        why: its mode, the reason, and the costs that were estimated; JSON-able.
    """

    program: Program
    why: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a step is estimated to cost, on the machine that the constants were fitted on.

    Attributes:
        graph, xla: seconds of a step in each mode.
        compiling: seconds that XLA takes to compile it.
    """

    graph: float
    xla: float
    compiling: float


#: Kinds of work, and how much of each the seconds of `RULE` are for.
UNITS = {
    "operations": 1,
    "products": 1e9,
    "batched": 1e9,
    "bfloat16": 1e9,
    "convolutions": 1e9,
    "strided": 1e9,
    "grouped": 1e9,
    "convolving": 1,
    "windows": 1e9,
    "elements": 1e9,
}
#: The rule: a step is estimated to cost the sum of its work. For each kind of work the seconds for a unit in a graph, and under XLA, as
#: `scripts/mode_choices.py --fit` found them from measured steps; only their ratio and their order of magnitude matter.
RULE = {
    "operations": (0.98e-6, 0.27e-6),  # a graph schedules each by itself; most are part of a fused loop under XLA
    "products": (0.0093, 0.0084),
    "batched": (0.008, 0.012),  # XLA has no fast code for long matrices in stacks
    "bfloat16": (0.0075, 0.0089),  # nor for bfloat16
    "convolutions": (0.0068, 0.011),
    "strided": (0.0062, 0.017),
    "grouped": (1.0, 0.29),
    "convolving": (120e-6, 22e-6),  # what TensorFlow's kernels need to begin
    "windows": (2.3, 2.6),
    "elements": (0.14, 0.072),  # a graph writes and reads what XLA keeps in registers
}
# Of `tf.data` a graph takes each batch itself; for XLA a thread stacks batches meanwhile, at this rate.
_PULLING, _STACKING = 90e-6, 70e-6
# Seconds to compile: at least, and for each operation of the step.
_COMPILING, _COMPILING_OPERATION = 1.0, 0.01
_MOST_OPERATIONS = 10_000
# Graph mode has Keras's bits, XLA has not: a smaller advantage, which may be an error of the estimate, does not justify that.
_LEAST_SPEEDUP = 1.1
# A forced XLA program is warned of where the estimate is this low. XLA was 4% faster at most at those of the docs' table for which it is.
_SLOW_BY_RULE = 0.9
# Of the evaluations that the rule was fitted to more are right with this than with more.
_LEAST_SPEEDUP_FORWARD = 1.05


def costs_of(work: Work, *, pipeline: bool = False) -> Costs:
    """The estimated costs of a step that does this work, on batches of arrays or of a `tf.data` pipeline."""
    graph, xla = (sum(getattr(work, kind) / unit * RULE[kind][mode] for kind, unit in UNITS.items()) for mode in (0, 1))
    if pipeline:
        graph, xla = graph + _PULLING, max(xla, _STACKING)
    return Costs(graph, xla, _COMPILING + _COMPILING_OPERATION * work.compiled)


def choose(
    new_program: Callable[[str], Program], feed: Feed, *, steps: int | None, saved: bool, guarded: bool, forward: bool = False
) -> Choice:
    """Chooses the mode of a step; prints a line if that is XLA and the step one of training. XLA has compiled it then. No step is done.

    Args:
        new_program: makes a program in a mode.
        feed: where batches come from.
        steps: how many steps the run will take, None if that is not known.
        saved: whether the run has a workdir, and has to be resumed exactly.
        guarded: whether the run finds and takes back non-finite steps.
        forward: whether the step evaluates or predicts.
    """
    program = new_program("graph")
    reason = _reason_before_tracing(program, feed, steps, saved)
    if reason is not None:
        return Choice(program, {"mode": "graph", "reason": reason})
    assert steps is not None
    graph = program.step.concrete(feed.element_spec).graph
    batch = feed.examples_per_batch
    assert batch is not None
    seen = _seen_in(graph, batch)
    if seen.obstacle is not None:
        return Choice(program, {"mode": "graph", "reason": seen.obstacle})
    costs = costs_of(seen.work, pipeline=isinstance(feed, DatasetFeed))
    if forward:
        costs = _of_forward_pass(costs, feed)
    mode, reason = _by_costs(costs, steps, _LEAST_SPEEDUP_FORWARD if forward else _LEAST_SPEEDUP)
    if mode == "xla":
        compiled = new_program("xla")
        if (obstacle := _compiled(compiled, feed, guarded, forward)) is not None:
            mode, reason = "graph", obstacle
        else:
            program = compiled
            if not forward:
                say(f"compile='auto' takes xla: {reason}.")
    why = {
        "mode": mode,
        "reason": reason,
        "work": {kind: amount for kind in UNITS if (amount := getattr(seen.work, kind))},
        "estimated_microseconds_per_step": {"graph": round(1e6 * costs.graph, 1), "xla": round(1e6 * costs.xla, 1)},
        "estimated_seconds_to_compile": round(costs.compiling, 1),
    }
    return Choice(program, why)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What the rule sees in a graph."""

    batch: int
    work: Work
    obstacle: str | None


_seen: weakref.WeakKeyDictionary[tf.Graph, _Seen] = weakref.WeakKeyDictionary()


def _seen_in(graph: tf.Graph, batch: int) -> _Seen:
    """What is in a traced step, looked for once: evaluations of a model ask again and again."""
    seen = _seen.get(graph)
    if seen is None or seen.batch != batch:
        seen = _seen[graph] = _Seen(batch, work_of(graph, batch), _obstacle_in(graph))
    return seen


def _of_forward_pass(costs: Costs, feed: Feed) -> Costs:
    """The costs of a step of evaluation or prediction: a smaller last batch of each pass is compiled, too."""
    compiled = 1 if all(s is None or s.shape.is_fully_defined() for s in tf.nest.flatten(feed.element_spec)) else 2
    return dataclasses.replace(costs, compiling=compiled * costs.compiling)


def _by_costs(costs: Costs, steps: int, least: float = _LEAST_SPEEDUP) -> tuple[str, str]:
    times = costs.graph / costs.xla
    if times < least:
        return "graph", f"by the rule XLA would do {times:.2f} times the steps of a graph"
    if (saving := steps * (costs.graph - costs.xla)) < costs.compiling:
        return "graph", f"the run is short: XLA would save {saving:.2g} s, and take {costs.compiling:.2g} s to compile"
    return "xla", f"by the rule it does {times:.2f} times the steps of a graph"


def _reason_before_tracing(program: Program, feed: Feed, steps: int | None, saved: bool) -> str | None:
    """Why the mode is a graph whatever the step does, None if that depends on the step."""
    if program.step.strategy.num_replicas_in_sync > 1:
        return "there are several replicas"
    if any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
        return "the rule was fitted to CPUs only; loops.choose_mode(loop) measures"
    if steps is None:
        return "the length of the run is not known"
    if feed.passes_apart:
        return "Python decides what the batches are, and nothing of an epoch is read before it begins"
    if not all(_is_dense(spec) for spec in tf.nest.flatten(feed.element_spec) if spec is not None):
        return "the batches are not dense tensors of numbers whose shapes are known"
    if not (isinstance(feed, DatasetFeed) or (feed.seekable and feed.prefetch)):
        return "the data cannot be read twice"
    if feed.examples_per_batch is None:
        return "the size of the batches is not known"
    if isinstance(feed, DatasetFeed) and saved and feed.findings():
        return "a resumed run could not read this pipeline from its beginning to where it stood, as XLA needs it"
    return None


def _is_dense(spec: Any) -> bool:
    known = isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None
    return known and None not in spec.shape[1:].as_list() and spec.dtype not in (tf.string, tf.variant, tf.resource)


def _obstacle_in(graph: tf.Graph) -> str | None:
    """Why XLA cannot compile a step, would drop something of it, or would run it slowly whatever its sizes; None if nothing is known."""
    count = len(graph.get_operations())
    if count > _MOST_OPERATIONS:
        return f"XLA would take long to compile {count:,} operations"
    for op, node in walk.nodes(graph, _is_obstacle):
        if not _has_fast_code(op):
            return f"XLA is slow at, drops or cannot compile {node.name!r} ({node.op})"
    return None


def warning(program: Program, feed: Feed) -> str | None:
    """A sentence on what makes a step slow under XLA; None if nothing in it is known to be slow."""
    graph = program.step.concrete(feed.element_spec).graph
    found = (node.name for op, node in walk.nodes(graph, _is_slow) if not _has_fast_code(op))
    gradient = next(found, None)
    if gradient is None:
        return _estimate_against_xla(graph, feed)
    names = [layer.name for layer in layers_of(program.step.task.models) if "Conv" in type(layer).__name__]
    return (
        f"on a CPU compile='xla' has no fast code for such a convolution's gradient inside a loop, as of {(names or [gradient])[0]!r}; "
        "compile='graph' is likely to be several times as fast."
    )


def _estimate_against_xla(graph: tf.Graph, feed: Feed) -> str | None:
    """A sentence if the rule takes a step for much faster in a graph: for convolutions of large batches, say, or long attention."""
    batch = feed.examples_per_batch
    if batch is None or any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
        return None
    costs = costs_of(work_of(graph, batch), pipeline=isinstance(feed, DatasetFeed))
    times = costs.graph / costs.xla
    if times > _SLOW_BY_RULE:
        return None
    return (
        f"by the rule of compile='auto' XLA does {times:.2f} times the steps of a graph, for a step of this kind in batches of {batch}; "
        "compile='graph' is likely to be faster, and loops.choose_mode(loop) measures it."
    )


def _has_fast_code(op: Any) -> bool:
    """Whether the gradient of a convolution is replaced, or is as slow in a graph: that of one with groups."""
    from loops.xla import convolutions  # few steps have one

    return convolutions.is_replaced(op) or (isinstance(op, tf.Operation) and is_grouped(op))


@functools.cache
def _is_slow(op_type: str) -> bool:
    return op_type.startswith(_SLOW) and not tf.config.list_logical_devices("GPU")


@functools.cache
def _is_obstacle(op_type: str) -> bool:
    """Whether an operation rules XLA out: it has side effects or hidden state, or XLA:CPU has no fast code for it inside a loop."""
    definition = _private_api.op_definition(op_type)
    return _is_slow(op_type) or (definition is not None and definition.is_stateful and not op_type.startswith(_STATEFUL_BUT_COMPILED))


def _compiled(program: Program, feed: Feed, guarded: bool, forward: bool) -> str | None:
    """Has XLA compile a program that is not, by a call that does no step. Returns why it cannot, None if it can."""
    if program.blocks:
        return None
    # Only training gathers batches in its program, see `Feed.held`.
    if isinstance(feed, DatasetFeed) or (isinstance(feed, ArrayFeed) and not forward):
        block = feed.blank_block()
    else:
        block = next(iter(feed.blocks(Position())))
    try:
        program(block, feed.element_spec, start=0, n=0, first_step=0, finite=tf.constant(True) if guarded else None)
    except (ValueError, tf.errors.OpError) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None
