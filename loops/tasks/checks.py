"""Whether something is a task that can do what a loop wants of it; asked when the loop is made, not when the step is first needed."""

from __future__ import annotations

from typing import Any

from loops.tasks.base import Task

__all__ = ["check_task"]

_WORDS = {"train_step": "trained", "eval_step": "evaluated", "predict_step": "asked for predictions"}
_ARGUMENTS = {"train_step": "batch", "eval_step": "batch", "predict_step": "x"}


def check_task(task: Any, method: str, why: str = "") -> None:
    """Checks that something is a task with its own `method`.

    Args:
        task: anything.
        method: "train_step", "eval_step" or "predict_step".
        why: what asks for the method, for the sentence.

    Raises:
        TypeError: if it is not.

    Example:
        >>> check_task(Task(), "eval_step", "evaluate={'val': ...}")
        Traceback (most recent call last):
            ...
        TypeError: Task defines no eval_step(self, batch), so it cannot be evaluated, but evaluate={'val': ...} was given: define it.
    """
    if isinstance(task, type):
        raise TypeError(f"`task` is the class {task.__name__}, not an object of it: write {task.__name__}(...), with its arguments.")
    if not isinstance(task, Task):
        raise TypeError(f"`task` must be a loops.Task, got {type(task).__name__}; for a compiled Keras model use loops.KerasTask(model).")
    if getattr(getattr(task, method), "__func__", None) is getattr(Task, method):
        wanted = f", but {why} was given: define it" if why else ""
        arguments = f"{method}(self, {_ARGUMENTS[method]})"
        raise TypeError(f"{type(task).__name__} defines no {arguments}, so it cannot be {_WORDS[method]}{wanted}.")
