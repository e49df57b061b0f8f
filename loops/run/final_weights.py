"""The weights at the end of a run: optimizers put their averages into the model, and the next run goes on from the weights before that.

It knows neither files nor epochs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from loops.engine.backup import Backup
from loops.messages import say
from loops.run.parts import RunParts
from loops.tasks.base import Task
from loops.tasks.keras import KerasTask
from loops.tasks.replicas import local_variables

__all__ = ["FinalWeights"]

_MOST_NAMED = 3


class FinalWeights:
    """Finalizes a run, and takes that back.

    Args:
        parts: the run.
    """

    def __init__(self, parts: RunParts):
        self._parts = parts
        self._changes: list[tuple[tf.Variable, Any, Any]] = []

    def put(self) -> None:
        """Calls `Task.finalize` and averages what replicas know of moving statistics; remembers the values from before."""
        task, self._changes = self._parts.task, []
        if not _may_change(task) and not self._parts.step.several_replicas:
            task.finalize()
            return
        before = Backup(local_variables(task.tracked.all_variables()))
        self._parts.step.average_replicas()
        task.finalize()
        after = Backup(before.variables)
        self._changes = [
            (variable, old, new)
            for variable, old, new in zip(before.variables, before.values, after.values, strict=True)
            if not _equal(old, new)
        ]

    def take_back(self) -> list[tuple[tf.Variable, Any, Any]]:
        """Puts back the values from before `put`. A variable that was changed since then keeps its value, which is said.

        Returns:
            The variables that were put back, with the values from before and after `put`.
        """
        changes, self._changes = self._changes, []
        kept = [variable for variable, _, new in changes if not _equal(variable.read_value(), new)]
        if kept:
            names = ", ".join(str(variable.name).removesuffix(":0") for variable in kept[:_MOST_NAMED])
            more = f" and {len(kept) - _MOST_NAMED} more" if len(kept) > _MOST_NAMED else ""
            say(
                f"Values were assigned between two runs to {names}{more}; training goes on from these. "
                "Elsewhere it goes on from the values before the last run put averages into the model."
            )
        ids = {id(variable) for variable in kept}
        back = [change for change in changes if id(change[0]) not in ids]
        for variable, old, _ in back:
            variable.assign(old)
        return back

    @contextlib.contextmanager
    def taken_back(self) -> Iterator[None]:
        """While it is entered, variables have the values from before `put`."""
        changes = self.take_back()
        try:
            yield
        finally:
            for variable, _, new in changes:
                variable.assign(new)
            self._changes = changes


def _may_change(task: Task) -> bool:
    """Whether `Task.finalize` may assign something: an optimizer keeps averages, or the method is the user's."""
    inner = [getattr(optimizer, "inner_optimizer", optimizer) for optimizer in task.optimizers.values()]
    several = [one for optimizer in inner for one in getattr(optimizer, "optimizers", [optimizer])]
    return any(one.use_ema for one in several) or type(task).finalize not in (Task.finalize, KerasTask.finalize)


def _equal(a: Any, b: Any) -> bool:
    return bool(np.asarray(a).tobytes() == np.asarray(b).tobytes())
