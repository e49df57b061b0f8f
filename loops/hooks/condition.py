"""`ConditionHook`: the base class of hooks that act when a metric has reached a value, or has stopped improving.

It decides when to act; its subclasses `Unfreeze`, `LoadWeights` and `Notify` decide what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from loops.choices import At, Direction
from loops.hooks.base import Loop
from loops.hooks.monitor import MonitorHook

__all__ = ["ConditionHook"]


class ConditionHook(MonitorHook):
    """Base class of hooks that act on a condition. Override `on_condition`, and `done` if there is more than one thing to do.

        with threshold:  met when value >= threshold (mode "max"), value <= threshold (mode "min")
        with patience:   wait += 1
                         if value is better than best by more than min_delta: best = value;  wait = 0
                         elif wait >= patience: met;  wait = 0

    Args:
        monitor: name of the metric in the logs; None for a hook without a condition.
        threshold: value to reach.
        patience: epochs (or evaluations) without improvement, 1 or more. Exactly one of `threshold` and `patience` is given.
        mode: "auto", "min" or "max".
        min_delta: smallest change that counts as an improvement.
        at: "epoch", or "evaluation" to look at every evaluation, at any cadence.

    Attributes:
        met: how often the condition was met.

    Raises:
        ValueError: if not exactly one of the two conditions is given, or its value is not valid.

    Example:
        >>> from loops import hooks
        >>> class SayIt(hooks.ConditionHook):
        ...     def on_condition(self, loop, reason):
        ...         print(reason)
        >>> hook = SayIt("val_accuracy", threshold=0.9)
    """

    def __init__(
        self,
        monitor: str | None,
        *,
        threshold: float | None = None,
        patience: int | None = None,
        mode: Direction = "auto",
        min_delta: float = 0.0,
        at: At = "epoch",
    ):
        super().__init__(monitor or "", mode=mode, min_delta=min_delta, at=at)
        kind = type(self).__name__
        if monitor is None and (threshold is not None or patience is not None):
            raise ValueError(f"{kind} has a condition but nothing to look at: name a metric, monitor='val_loss' for example.")
        if monitor is not None and (threshold is None) == (patience is None):
            given = "neither" if threshold is None else "both"
            raise ValueError(f"{kind} acts when {monitor!r} reached a threshold, or after patience looks without improvement; got {given}.")
        if threshold is not None and not math.isfinite(threshold):
            raise ValueError(f"The threshold of {kind} has to be a finite number; got {threshold!r}.")
        if patience is not None and (isinstance(patience, bool) or int(patience) != patience or patience < 1):
            raise ValueError(f"The patience of {kind} is a whole number of looks, 1 or more; got {patience!r}.")
        self.threshold = threshold
        self.patience = patience
        self.wait = 0
        self.met = 0

    def on_condition(self, loop: Loop, reason: str) -> None:
        """Called when the condition is met; `reason` names the metric, its value and the condition."""
        raise NotImplementedError(f"{type(self).__name__} has to define on_condition(self, loop, reason).")

    @property
    def done(self) -> bool:
        """Whether the hook has acted as often as it will."""
        return self.met > 0

    def on_train_begin(self, loop: Loop) -> None:
        # At step 0 a new run begins, which must not inherit the counters of the run before; a run that goes on keeps them.
        if loop.progress.step == 0:
            self.best, self.wait, self.met = None, 0, 0

    def fresh_value(self, loop: Loop, logs: Mapping[str, Any]) -> float | None:
        return super().fresh_value(loop, logs) if self.monitor else None

    def on_value(self, loop: Loop, value: float) -> None:
        if self.done:
            return
        reason = self._met_by(value)
        if reason is not None:
            self.met += 1
            self.on_condition(loop, reason)

    def on_train_end(self, loop: Loop) -> None:
        if self.monitor:
            super().on_train_end(loop)

    def _met_by(self, value: float) -> str | None:
        if self.threshold is not None:
            missed = math.isnan(value) or self.is_improvement(self.threshold, value)
            return None if missed else f"{self.monitor} = {value:.6g} reached {self.threshold:g}"
        assert self.patience is not None
        self.wait += 1
        if self.is_improvement(value, self.best):
            self.best, self.wait = value, 0
        elif self.wait >= self.patience:
            looks, waited, self.wait = "epoch" if self.at == "epoch" else "evaluation", self.wait, 0
            best = "a finite value" if self.best is None else f"{self.best:.6g}"
            return f"{self.monitor} = {value:.6g} after {waited} {looks}{'s' * (waited > 1)} without improvement on {best}"
        return None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "wait": self.wait, "met": self.met}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.wait, self.met = state["wait"], state["met"]
