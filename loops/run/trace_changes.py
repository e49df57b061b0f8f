"""Finds changes that a traced step cannot see: `trainable` flags, and Python numbers and strings that hang on the task."""

from __future__ import annotations

import keras

from loops.tasks.base import Task
from loops.tasks.plain_values import plain_values
from loops.tasks.tracking import layers_of

__all__ = ["TraceChanges"]


class TraceChanges:
    """Remembers the values that a trace took for constants, and compares them with the current ones.

    Args:
        task: the task, right after it was traced.
    """

    def __init__(self, task: Task):
        self._task = task
        self._watched = [*task.tracked.model_variables(), *layers_of(task.models)]
        self._flags = self._current_flags()
        self._constants = plain_values(task)

    def changed_flags(self) -> str | None:
        """The variables whose `trainable` changed, else the layers (whose `call` may read it); None if nothing changed."""
        changed = [item for item, old, new in zip(self._watched, self._flags, self._current_flags(), strict=True) if old != new]
        changed = [item for item in changed if not isinstance(item, keras.layers.Layer)] or changed
        names = ", ".join(getattr(item, "path", None) or item.name for item in changed[:3])
        return (names + (" and others" if len(changed) > 3 else "")) or None

    def changed_constants(self) -> list[str]:
        """A sentence for each attribute whose value differs from that in the trace; each change is reported once."""
        told = []
        for name, value in plain_values(self._task).items():
            if name in self._constants and self._constants[name] != value:
                told.append(
                    f"{type(self._task).__name__}.{name} changed from {self._constants[name]!r} to {value!r}, but the traced step keeps "
                    "the old value. Make it a tf.Variable and assign it, or call loop.retrace(reason)."
                )
                self._constants[name] = value
        return told

    def _current_flags(self) -> list[bool]:
        return [bool(item.trainable) for item in self._watched]
