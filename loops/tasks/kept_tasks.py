"""The task of a model, kept from call to call of `loops.fit`, `evaluate` and `predict`: with it its traced programs stay.

A call borrows a task. One that comes meanwhile (a callback that evaluates the model, another thread) gets a task of its own, so that they
share nothing but the model. The tasks hang on the model and end with it; copies and files of the model have none.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

from loops import _private_api
from loops.tasks.keras import KerasTask

__all__ = ["task_of"]

_MOST = 4  # of one model: as many as were borrowed at once stay
_ATTRIBUTE = "_tapeloops_tasks"

Kept = TypeVar("Kept", bound=KerasTask)


class _KeptTasks:
    def __init__(self, model: Any = None):
        self.model = None if model is None else weakref.ref(model)
        self.lock = threading.Lock()
        self.free: list[KerasTask] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _KeptTasks, ()


@contextlib.contextmanager
def task_of(model: Any, kind: type[Kept]) -> Iterator[Kept]:
    """A task of the model, for the call that enters this context alone. It is not kept if that fails.

    Args:
        model: what the task is made for.
        kind: the class of the task.

    Raises:
        TypeError, ValueError: as the class does for a model that does not fit.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with task_of(model, KerasTask) as first:
        ...     with task_of(model, KerasTask) as meanwhile:
        ...         pass
        >>> with task_of(model, KerasTask) as second:
        ...     pass
        >>> first is meanwhile, second in (first, meanwhile)
        (False, True)
    """
    kept = _kept_by(model)
    task: Any = None
    if kept is not None:
        with kept.lock:
            task = next((one for one in reversed(kept.free) if type(one) is kind), None)
            if task is not None:
                kept.free.remove(task)
    if task is None:
        task = kind(model)
    else:
        task.begin_again()
    yield task
    task.follow(None)
    if kept is not None and task.model is model:  # a hook may have put another one into the task
        with kept.lock:
            kept.free = [*kept.free, task][-_MOST:]


def _kept_by(model: Any) -> _KeptTasks | None:
    """What a model keeps; None for what is no model, which the class of the task says."""
    if not _private_api.is_model(model):
        return None
    held = vars(model)
    found = held.get(_ATTRIBUTE)
    if found is None or found.model is None or found.model() is not model:  # the model is a copy of another one
        held[_ATTRIBUTE] = found = _KeptTasks(model)  # not by setattr: Keras would track it
    return found
