"""Chooses graph mode or XLA for compile="auto": by rules where they are enough, else by timing both and restoring the variables.

A measurement depends on timing, but the numbers of a run must not. So the choice for a step on a machine is kept in a file, and the next
run of the same step on this machine makes the same choice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.engine import mode_cache
from loops.engine.program import Program
from loops.feeds import Block, Feed, Position
from loops.graphs import walk
from loops.messages import say
from loops.tasks.run_variables import flat
from loops.tasks.tracking import layers_of
from loops.xla import convolutions

__all__ = ["Choice", "choose", "warning"]

# For a run shorter than this a measurement takes longer than it saves. The estimate counts and does not measure, so that it is the same on
# every machine: a fixed time for each step, and a fixed rate of floating-point operations, 6 for each use of a parameter by an example.
_SHORT_SECONDS = 10.0
_STEP_SECONDS = 100e-6
_FLOPS_PER_SECOND = 50e9
_MAX_OPERATIONS = 10_000
_ROUNDS, _ROUND_SECONDS = 15, 0.05
# Graph mode has Keras's bits, XLA has not: a smaller speed-up, which may be noise, does not justify that.
_LEAST_SPEEDUP = 1.1
# If one step of XLA is slower than one of the graph by this factor, and takes longer than this, the measurement ends.
_GIVE_UP_FACTOR, _GIVE_UP_SECONDS = 5.0, 0.02
_FORMAT = 4  # raise it when programs get faster or slower: choices that were measured before are then not used

# Prefixes of op types: those that are slow under XLA on a CPU inside a loop, and those that XLA compiles although they are stateful.
_SLOW = ("Conv2DBackprop", "Conv3DBackprop", "DepthwiseConv2dNativeBackprop")
_VARIABLES = ("Resource", "ReadVariable", "Assign", "VarHandle", "VarIsInitialized", "VariableShape", "DestroyResource")
_STATEFUL_BUT_COMPILED = (*_VARIABLES, "StatefulPartitionedCall", "While", "If", "Case")


@dataclasses.dataclass(frozen=True)
class Choice:
    """The chosen program, and the reason for its mode.

    Attributes:
        program: the program to run.
        why: its mode, the reason, and what was measured; JSON-able.
    """

    program: Program
    why: dict[str, Any]


def choose(new_program: Callable[[str], Program], feed: Feed, *, steps: int | None, guarded: bool) -> Choice:
    """Chooses the mode of a training step. Prints a line if the choice rests on a measurement, of now or of an earlier run.

    The choice is graph mode, without a measurement, under several replicas, for short runs and runs of unknown length, for feeds that
    cannot be read twice, and for steps with operations that XLA cannot compile, would drop, or is known to be slow at. All variables keep
    their values.

    Args:
        new_program: makes a program in a mode.
        feed: where batches come from; its first block is read.
        steps: how many steps the run will take, None if that is not known.
        guarded: whether the run finds and takes back non-finite steps.
    """
    program = new_program("graph")
    reason = _reason_not_to_measure(program, feed, steps)
    if reason is not None:
        return Choice(program, {"mode": "graph", "reason": reason})
    key, programs = _key(program, feed, guarded), {"graph": program}
    known = mode_cache.get(key)
    if known is None:
        known = mode_cache.put(key, _measured(programs, new_program, feed, guarded))
    else:
        known = {**known, "reason": f"{known['reason']}, as was measured earlier"}
    mode = known["mode"]
    say(f"compile='auto' takes {mode}: {known['reason']}.")
    return Choice(programs.get(mode) or new_program(mode), known)


def _reason_not_to_measure(program: Program, feed: Feed, steps: int | None) -> str | None:
    if program.step.strategy.num_replicas_in_sync > 1:
        return "there are several replicas"
    if steps is None:
        return "the length of the run is not known"
    if not (feed.seekable and feed.prefetch) or feed.passes_apart:
        return "the data cannot be read twice"
    graph = program.step.concrete(feed.element_spec).graph
    batch = next((d for d in (s.shape[:1].as_list() for s in tf.nest.flatten(feed.element_spec)) if d), [None])[0] or 32
    parameters = sum(int(np.prod(v.shape)) for v in graph.variables if v.trainable)
    products = parameters + sum(_products_of(op) for op in graph.get_operations() if op.type == "Conv2D")
    if steps * (_STEP_SECONDS + 6 * products * batch / _FLOPS_PER_SECOND) < _SHORT_SECONDS:
        return "the run is short"
    if len(graph.get_operations()) > _MAX_OPERATIONS:
        return f"XLA would take long to compile {len(graph.get_operations()):,} operations"
    for op, node in walk.nodes(graph, _is_obstacle):
        if not convolutions.is_replaced(op):
            return f"XLA is slow at, drops or cannot compile {node.name!r} ({node.op})"
    return None


def _products_of(convolution: tf.Operation) -> int:
    """Number of multiplications that a convolution does for one example; 0 if its sizes are not known."""
    positions, kernel = convolution.outputs[0].shape[1:3], convolution.inputs[1].shape
    return int(np.prod(positions) * np.prod(kernel)) if positions.is_fully_defined() and kernel.is_fully_defined() else 0


def warning(program: Program, feed: Feed) -> str | None:
    """A sentence on what makes a step slow under XLA; None if nothing in it is known to be slow."""
    graph = program.step.concrete(feed.element_spec).graph
    found = (node.name for op, node in walk.nodes(graph, _is_slow) if not convolutions.is_replaced(op))
    gradient = next(found, None)
    if gradient is None:
        return None
    names = [layer.name for layer in layers_of(program.step.task.models) if "Conv" in type(layer).__name__]
    return (
        f"on a CPU compile='xla' has no fast code for such a convolution's gradient inside a loop, as of {(names or [gradient])[0]!r}; "
        "compile='graph' is likely to be several times as fast."
    )


@functools.cache
def _is_slow(op_type: str) -> bool:
    return op_type.startswith(_SLOW) and not tf.config.list_logical_devices("GPU")


@functools.cache
def _is_obstacle(op_type: str) -> bool:
    """Whether an operation rules XLA out: it has side effects or hidden state, or XLA:CPU has no fast code for it inside a loop."""
    definition = _private_api.op_definition(op_type)
    return _is_slow(op_type) or (definition is not None and definition.is_stateful and not op_type.startswith(_STATEFUL_BUT_COMPILED))


def _measured(programs: dict[str, Program], new_program: Callable[[str], Program], feed: Feed, guarded: bool) -> dict[str, Any]:
    """Times both programs in turns on the first block, and then restores the variables."""
    begin = time.perf_counter()
    block = next(iter(feed.blocks(Position())))
    programs["graph"].step.concrete(feed.element_spec)
    kept = [(v, v.read_value()) for v in flat(programs["graph"].variables())]
    try:
        programs["xla"] = new_program("xla")
        timers = {mode: _Timer(program, feed, block, guarded) for mode, program in programs.items()}
        once = {mode: timer.once for mode, timer in timers.items()}
        if once["xla"] > max(_GIVE_UP_FACTOR * once["graph"], _GIVE_UP_SECONDS):
            return {"mode": "graph", "reason": f"one step that XLA compiled takes {once['xla'] / once['graph']:.0f} times that of a graph"}
        for timer in timers.values():
            timer.find_length()
        for _ in range(_ROUNDS):
            for timer in timers.values():
                timer.do_round()
    except (ValueError, tf.errors.OpError) as error:
        return {"mode": "graph", "reason": str(error).splitlines()[0].rstrip(".")}
    finally:
        for variable, value in kept:
            variable.assign(value)
    seconds = {mode: timer.seconds for mode, timer in timers.items()}
    times = seconds["graph"] / seconds["xla"]
    return {
        "mode": "xla" if times > _LEAST_SPEEDUP else "graph",
        "reason": f"XLA does {times:.2f} times the steps of a graph",
        "microseconds_per_step": {mode: round(1e6 * value, 1) for mode, value in seconds.items()},
        "measured_in_seconds": round(time.perf_counter() - begin, 1),
    }


class _Timer:
    """Times calls of a program; the first, which compiles, is not counted.

    Attributes:
        once: seconds of a call that does one step, the fastest of three.
        seconds: seconds of a step, the median over all rounds.
    """

    def __init__(self, program: Program, feed: Feed, block: Block, guarded: bool):
        self._program, self._feed, self._block = program, feed, block
        self._finite = tf.constant(True) if guarded else None
        self._call(1)
        self.once = min(self._call(1) for _ in range(3))
        self._steps, self._seconds = 1, list[float]()

    def find_length(self) -> None:
        """Chooses the number of steps in a round: enough that the fixed cost of a call is a small part of it."""
        while (spent := self._call(self._steps)) < _ROUND_SECONDS / 2 and self._steps < self._block.n:
            self._steps = min(self._block.n, max(self._steps + 1, int(self._steps * min(8.0, _ROUND_SECONDS / spent))))

    def do_round(self) -> None:
        self._seconds.append(self._call(self._steps) / self._steps)

    @property
    def seconds(self) -> float:
        return statistics.median(self._seconds)

    def _call(self, n: int) -> float:
        begin = time.perf_counter()
        call = self._program(self._block, self._feed.element_spec, start=0, n=n, first_step=0, finite=self._finite)
        int(call.done)
        return time.perf_counter() - begin


def _key(program: Program, feed: Feed, guarded: bool) -> str:
    """A digest of everything that a measurement depends on: the operations, the sizes, the machine, the versions."""
    graph = program.step.concrete(feed.element_spec).graph
    step = [(op.type, [str(output.shape) for output in op.outputs]) for op in graph.get_operations()]
    # The size of the block that was read is left out: it may depend on how fast the data came.
    text = repr(
        (_FORMAT, step, getattr(feed, "block_steps", None), str(feed.element_spec), guarded, _machine(), tf.__version__, keras.__version__)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _machine() -> tuple[Any, ...]:
    """The processor, and how much of it this process may use."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        name = found[1] if found else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return name, cores, tf.config.threading.get_intra_op_parallelism_threads(), len(tf.config.list_logical_devices("GPU"))
