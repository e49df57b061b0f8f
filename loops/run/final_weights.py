"""The weights at the end of a run: optimizers put their averages into the model, and the next run goes on from the weights before that.

It knows neither files nor epochs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
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
        if not _may_change(task, self._parts.step.trained.tracked.optimizers.values()) and not self._parts.step.several_replicas:
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


def _may_change(task: Task, optimizers: Iterable[keras.optimizers.Optimizer]) -> bool:
    """Whether `Task.finalize` may assign something: one of the optimizers keeps averages, or a method is the user's."""
    inner = [getattr(optimizer, "inner_optimizer", optimizer) for optimizer in optimizers]
    several = [one for optimizer in inner for one in getattr(optimizer, "optimizers", [optimizer])]
    own_method = any(not type(one).finalize_variable_values.__module__.startswith("keras.") for one in several)
    if own_method or any(one.use_ema for one in several):
        return True
    return type(task).finalize not in (Task.finalize, KerasTask.finalize)


def _equal(a: Any, b: Any) -> bool:
    return bool(np.asarray(a).tobytes() == np.asarray(b).tobytes())
