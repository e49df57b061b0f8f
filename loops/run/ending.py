"""How a run ends: every hook gets its `on_train_end`, what was being written is waited for, and what could not be written is said."""

from __future__ import annotations

import sys

from loops.messages import say
from loops.run.parts import RunParts
from loops.run.saved_states import SavedStates

__all__ = ["end"]


def end(parts: RunParts, saved: SavedStates) -> None:
    """Ends a run, whatever ended it; to be called while the error that did is being handled, if there is one.

    Raises:
        Exception: the first error of a hook or of the workdir, if no other error is being handled.
        SaveError: if something could not be saved.
    """
    if parts.step.is_open:
        parts.execution.rewind()
    errors: list[Exception] = []
    for hook in parts.hooks:
        try:
            with parts.accounts.of("hooks", hook.name), saved.failures.tolerated(hook):
                hook.on_train_end(parts.loop)
        except Exception as error:  # the other hooks come first
            errors.append(error)
    failing = sys.exc_info()[0] is not None
    try:
        if (failure := saved.close()) is not None:
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
