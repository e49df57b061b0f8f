"""Checks of what a `TrainLoop` is given, each with a sentence that says what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loops.choices import NonFiniteAction
from loops.engine.nonfinite import OnNonFinite
from loops.feeds import Feed
from loops.feeds.base import checked_feed
from loops.hooks.base import Hook
from loops.tasks.base import Task
from loops.tasks.checks import check_task

__all__ = ["check_evaluations", "checked_evaluations", "checked_seed", "checked_steps_per_epoch", "policy"]


def checked_steps_per_epoch(steps: Any) -> int | None:
    """`steps_per_epoch` itself.

    Raises:
        ValueError: if it is neither None nor a whole number, 1 or more.
    """
    if steps is None:
        return None
    if isinstance(steps, bool) or not isinstance(steps, (int, float)) or int(steps) != steps or steps < 1:
        raise ValueError(f"`steps_per_epoch` must be a whole number, 1 or more; got {steps!r}.")
    return int(steps)


def checked_seed(seed: Any) -> int:
    """`seed` itself.

    Raises:
        ValueError: if it is no whole number.
    """
    if not isinstance(seed, (int, np.integer)):
        raise ValueError(f"`seed` must be a whole number; got {seed!r}.")
    return int(seed)


def checked_evaluations(evaluate: Any) -> dict[str, Feed]:
    """The feeds of evaluations by their names.

    Raises:
        TypeError: if `evaluate` is no mapping from names to feeds.
    """
    if evaluate is None:
        return {}
    if not isinstance(evaluate, Mapping):
        given = "a feed" if isinstance(evaluate, Feed) else type(evaluate).__name__
        raise TypeError(f"`evaluate` takes feeds by name, as in evaluate={{'val': feed}}, and logs begin with the name; got {given}.")
    for name in evaluate:
        if not isinstance(name, str):
            raise TypeError(f"`evaluate` takes feeds by name, as in evaluate={{'val': feed}}; got the name {name!r}.")
    return {name: checked_feed(feed, f"evaluate[{name!r}]") for name, feed in evaluate.items()}


def check_evaluations(task: Task, evaluations: Mapping[str, Feed], hooks: list[Hook]) -> None:
    """Checks that a task can be evaluated if anybody will evaluate it.

    Raises:
        TypeError: if it defines no `eval_step`.
    """
    for hook in hooks:
        if hook.evaluation is not None:
            given = f"evaluate={{{hook.evaluation!r}: ...}}" if hook.evaluation in evaluations else f"the hook {hook.name}"
            check_task(task, "eval_step", given)


def policy(on_nonfinite: NonFiniteAction | OnNonFinite, hooks: list[Hook]) -> OnNonFinite:
    """What to do about a non-finite step: what a hook asks for, else what the loop was given.

    Raises:
        ValueError, TypeError: if that is no policy.
    """
    given = OnNonFinite.parse(on_nonfinite)
    asked = {hook.on_nonfinite for hook in hooks}
    return next((OnNonFinite(action) for action in ("raise", "stop") if action in asked), given)
