"""Ends training at a loss, weight or metric that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from loops.hooks.base import Hook, Loop, Phase
from loops.messages import say

__all__ = ["TerminateOnNaN"]


class TerminateOnNaN(Hook):
    """Stops at the very step with a non-finite loss or weight, and after an evaluation or epoch that logs NaN.

    The compiled program watches each step and halts at the bad one. The state from before that step is restored, and the epoch does not
    count as ended, so nothing is evaluated or saved. (Keras's callback of that name looks at the loss only, and validation and saving take
    place before it stops.)

    Args:
        raise_error: whether to raise an error that names the step, instead of stopping the run.

    Example:
        >>> from loops import hooks
        >>> hooks.TerminateOnNaN().on_nonfinite, hooks.TerminateOnNaN(raise_error=True).on_nonfinite
        ('stop', 'raise')
    """

    phase = Phase.DECIDE
    every = None
    on_nonfinite: Literal["raise", "stop"] | None = "stop"

    def __init__(self, raise_error: bool = False):
        self.raise_error = raise_error
        if raise_error:
            self.on_nonfinite = "raise"

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        self._look(loop, logs)

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        self._look(loop, logs)

    def _look(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        for name, value in logs.items():
            if np.any(np.isnan(value)) or ("loss" in name and not np.all(np.isfinite(value))):
                message = f"{name} is {value} after step {loop.progress.step} (epoch {loop.progress.epoch + 1})."
                if self.raise_error:
                    raise FloatingPointError(f"TerminateOnNaN: {message} Lower the learning rate, or look at the data of the last steps.")
                if not loop.stopping:
                    say(f"TerminateOnNaN: {message} Training stops.")
                    loop.stop(f"TerminateOnNaN: {message}")
                return
