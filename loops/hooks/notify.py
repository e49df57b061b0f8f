"""Sends a message when a metric has reached a value, or when training has ended. A failure to send it does not end training."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from loops.choices import At, Direction
from loops.hooks import _http
from loops.hooks.base import Loop, Phase
from loops.hooks.condition import ConditionHook

__all__ = ["Notify"]


class Notify(ConditionHook):
    """Passes a message to `tell` once when a condition is met, and once when training has ended, whatever ended it.

    The message is one line: which metric has reached which value, or how training ended, with step, epoch and the last logs. A message that
    cannot be sent becomes a warning. A resumed run does not repeat the messages from before its snapshot; a run that is complete already
    sends none.

    Args:
        tell: a function of the message; the URL of a server, to which {"text": message, "step": ..., "epoch": ...} is POSTed as JSON; or a
            command as a list, which gets the message as its last argument.
        monitor: name of the metric; None: no condition.
        threshold: value to reach.
        patience: epochs (or evaluations) without improvement. With `monitor`, exactly one of `threshold` and `patience` is given.
        mode: "auto", "min" or "max".
        min_delta: smallest change that counts as an improvement.
        at: "epoch", or "evaluation" to look at every evaluation, at any cadence.
        at_end: whether to send a message when training has ended.
        timeout: seconds to wait for a server or a command.

    Raises:
        ValueError: if `tell` is none of these, or if there is neither a condition nor `at_end`.

    Example:
        >>> from loops import hooks
        >>> good = hooks.Notify(print, "val_accuracy", threshold=0.95, at_end=False)
        >>> ended = hooks.Notify("http://localhost:9000/hooks/training")
        >>> desktop = hooks.Notify(["notify-send", "training"], "val_loss", patience=5)
    """

    phase = Phase.RECORD

    def __init__(
        self,
        tell: Callable[[str], Any] | str | Sequence[str],
        monitor: str | None = None,
        *,
        threshold: float | None = None,
        patience: int | None = None,
        mode: Direction = "auto",
        min_delta: float = 0.0,
        at: At = "epoch",
        at_end: bool = True,
        timeout: float = 5.0,
    ):
        super().__init__(monitor, threshold=threshold, patience=patience, mode=mode, min_delta=min_delta, at=at)
        if isinstance(tell, str) and not tell.startswith(("http://", "https://")):
            raise ValueError(f"Notify takes a URL that begins with http:// or https://, a list for a command, or a function; got {tell!r}.")
        is_command = isinstance(tell, (list, tuple)) and bool(tell) and all(isinstance(part, str) for part in tell)
        if not (isinstance(tell, str) or is_command or callable(tell)):
            raise ValueError(f"Notify takes a function, the URL of a server, or a command as a list of words; got {tell!r}.")
        if monitor is None and not at_end:
            raise ValueError("Notify has nothing to tell: name a metric with a threshold or a patience, or leave at_end=True.")
        self.tell = tell
        self.at_end = at_end
        self.timeout = timeout
        self._warned = False
        self._begun_at = 0

    def on_train_begin(self, loop: Loop) -> None:
        super().on_train_begin(loop)
        self._begun_at = loop.progress.step

    def on_condition(self, loop: Loop, reason: str) -> None:
        self._tell(loop, f"{reason} at step {loop.progress.step:,} (epoch {loop.progress.epoch + 1}){_where(loop)}")

    def on_train_end(self, loop: Loop) -> None:
        super().on_train_end(loop)
        failing = sys.exc_info()[1]
        if not self.at_end or (failing is None and loop.progress.step == self._begun_at):
            return
        why = f": {failing or type(failing).__name__}" if failing is not None else f": {loop.stop_reason}" if loop.stop_reason else ""
        logs = {name: values[-1] for name, values in loop.history.history.items() if values and np.ndim(values[-1]) == 0}
        last = "".join(f", {name} = {float(value):.6g}" for name, value in logs.items())
        epochs = len(loop.history.epoch)
        self._tell(loop, f"Training {loop.outcome} at step {loop.progress.step:,} ({epochs} epochs){last}{_where(loop)}{why}")

    def _tell(self, loop: Loop, message: str) -> None:
        message = " ".join(message.split())
        try:
            if callable(self.tell):
                self.tell(message)
            elif isinstance(self.tell, str):
                body = json.dumps({"text": message, "step": loop.progress.step, "epoch": loop.progress.epoch})
                _http.post(self.tell, body.encode(), {"Content-Type": "application/json"}, timeout=self.timeout)
            else:
                subprocess.run([*self.tell, message], check=True, timeout=self.timeout, capture_output=True)
        except Exception as error:  # a failing function, server or command must not end training
            if not self._warned:
                warnings.warn(f"Notify could not tell {message!r} ({type(error).__name__}: {error}); training goes on.", stacklevel=2)
            self._warned = True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._warned = state["warned"]


def _where(loop: Loop) -> str:
    return f" in {loop.workdir}" if loop.workdir is not None else ""
