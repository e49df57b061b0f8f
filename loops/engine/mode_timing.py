"""Times the steps of programs in turns, and then puts the variables back. Only `loops.choose_mode` asks for it: no run measures."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from loops.engine.program import Program
from loops.feeds import Block
from loops.tasks.run_variables import flat

__all__ = ["Measurement", "Times", "measure"]

# Short turns: on a machine that others use, some of them are undisturbed, and a ratio compares turns that follow each other.
_ROUNDS, _FEWEST_ROUNDS, _ROUND_SECONDS = 60, 3, 0.03
_MOST_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Times:
    """What was measured of one mode.

    Attributes:
        seconds: seconds of a step in each round.
        compile_seconds: seconds of the first call, which traces and compiles.
    """

    seconds: list[float]
    compile_seconds: float

    @property
    def median(self) -> float:
        """Seconds of a step, the median over the rounds."""
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was measured of all modes.

    Attributes:
        of: mode -> its times.
        refused: why a mode that is missing could not be compiled, else None.
    """

    of: dict[str, Times]
    refused: str | None = None


def measure(
    programs: Mapping[str, Callable[[], Program]],
    block: Block,
    spec: Any,
    *,
    guarded: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Times programs in turns on one block. All variables have their values again afterwards, also after an error.

    Args:
        programs: mode -> makes its program. The first is traced before values are kept, so that all variables exist.
        block: some batches.
        spec: type specs of one batch.
        guarded: whether the programs find non-finite steps.
        clock: seconds.
    """
    timers: dict[str, _Timer] = {}
    kept: list[tuple[Any, Any]] = []
    refused = None
    try:
        for mode, make in programs.items():
            program = make()
            if not kept:
                program.graph_for(block, spec)
                kept = [(v, v.read_value()) for v in flat(program.variables())]
            try:
                timers[mode] = _Timer(program, block, spec, guarded, clock)
            except (ValueError, tf.errors.OpError) as error:
                if not timers:  # the step itself is wrong
                    raise
                refused = str(error).splitlines()[0].rstrip(".")
        for timer in timers.values():
            timer.find_length()
        begun, done = clock(), 0
        while done < _FEWEST_ROUNDS or (done < _ROUNDS and clock() - begun < _MOST_SECONDS):
            for timer in timers.values():
                timer.do_round()
            done += 1
    finally:
        for variable, value in kept:
            variable.assign(value)
    return Measurement({mode: Times(timer.seconds, timer.compile_seconds) for mode, timer in timers.items()}, refused)


class _Timer:
    """Times calls of a program; the first, which compiles, is not counted."""

    def __init__(self, program: Program, block: Block, spec: Any, guarded: bool, clock: Callable[[], float]):
        self._program, self._block, self._spec, self._clock = program, block, spec, clock
        self._finite = tf.constant(True) if guarded else None
        self.compile_seconds = self._call(1)
        self._call(1)
        self._steps, self.seconds = 1, list[float]()

    def find_length(self) -> None:
        """Chooses the number of steps in a round: enough that the fixed cost of a call is a small part of it."""
        while self._steps < self._block.n and (spent := min(self._call(self._steps) for _ in range(3))) < _ROUND_SECONDS / 2:
            self._steps = min(self._block.n, max(self._steps + 1, int(self._steps * min(8.0, _ROUND_SECONDS / max(spent, 1e-9)))))

    def do_round(self) -> None:
        self.seconds.append(self._call(self._steps) / self._steps)

    def _call(self, n: int) -> float:
        begin = self._clock()
        call = self._program(self._block, self._spec, start=0, n=n, first_step=0, finite=self._finite)
        int(call.done)
        return self._clock() - begin
