"""Which variables of a run's state a call writes: those that have to be put back if it goes wrong."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from loops.engine.program import Program
from loops.tasks.run_variables import flat

__all__ = ["StateWrites"]


class StateWrites:
    """What the calls of a program write, as far as it belongs to the state. Each traced step is searched once.

    Args:
        program: the program.
    """

    def __init__(self, program: Program):
        self._program = program
        self._found: dict[Any, tuple[list[tf.Variable], list[tf.Variable]]] = {}

    def state(self) -> list[tf.Variable]:
        """All variables that belong to the state of the run."""
        return flat(self._program.variables())

    def of(self, source: Any, spec: Any) -> tuple[list[tf.Variable], list[tf.Variable]]:
        """What a call writes.

        Args:
            source: what the call is given; see `Program`.
            spec: type specs of one batch.

        Returns:
            The variables that it may write as a whole, and those of which it writes rows that `KeptRows` keeps.
        """
        program = self._program
        if program.mode == "eager":  # every step may create some
            program.step.build(spec)
            return self.state(), []
        key = program.key(source, spec)
        if key not in self._found:
            program.graph_for(source, spec)  # creates variables that the step creates
            written = program.written(source, spec, self.state())
            whole = program.written(source, spec, written, whole=True)
            rows = {id(v) for v in written} - {id(v) for v in whole}
            self._found[key] = whole, [v for v in written if id(v) in rows]
        return self._found[key]
