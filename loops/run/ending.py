"""The end of a run: calls `on_train_end` of every hook, waits for what is being written, and reports what could not be written."""

from __future__ import annotations

import sys

from loops.messages import say
from loops.run.evaluations import Evaluations
from loops.run.parts import RunParts
from loops.run.saved_states import SavedStates
from loops.tasks.reductions import to_floats

__all__ = ["end"]


def end(parts: RunParts, saved: SavedStates, evaluations: Evaluations) -> None:
    """Ends a run, and leaves its programs to others.

    After an error, call it while that error is being handled (in `finally`), so that it is not replaced by another.

    Raises:
        Exception: the first error of a hook or of the workdir, if no other error is being handled.
        SaveError: if something could not be saved.
    """
    try:
        _end(parts, saved)
    finally:
        keep = parts.loop.outcome != "failed"
        parts.step.run_ends(keep=keep)
        evaluations.run_ends(keep=keep)


def _end(parts: RunParts, saved: SavedStates) -> None:
    if parts.step.is_open:
        _settle(parts)
        parts.execution.run_ends()
        if not parts.loop.history.epoch and parts.loop.outcome == "stopped":
            parts.loop.history.add_names(to_floats(parts.step.logs_to_date()))
    errors: list[Exception] = []
    for hook in parts.hooks:
        try:
            with parts.accounts.of("hooks", hook.name), saved.failures.tolerated(hook):
                hook.on_train_end(parts.loop)
        except Exception as error:  # the other hooks still get their `on_train_end`
            errors.append(error)
    failing = sys.exc_info()[0] is not None
    try:
        if (failure := saved.close(parts, sys.exc_info()[1] or next(iter(errors), None))) is not None:
            saved.failures.add_snapshot(failure)
    except Exception as error:
        errors.append(error)
    if (save_error := saved.failures.error()) is not None:
        errors.append(save_error)
    if (failing or parts.loop.outcome == "interrupted") and (where := saved.where()):
        say(where)
    if errors and not failing:
        parts.loop.outcome = "failed"
        raise errors[0]


def _settle(parts: RunParts) -> None:
    """After an error between two looks: state, counters and records become those of one step, the last one that was done."""
    if parts.agreement.cluster.several and sys.exc_info()[0] is not None:
        parts.execution.abandon()  # the other workers are gone, or do not know of the error: nothing can be agreed on
        return
    try:
        if (bad := parts.execution.settle()) is not None:
            say(bad.describe())
    except Exception:  # the error that is being handled says what happened
        parts.execution.abandon()
