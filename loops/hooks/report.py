"""Reports a metric to a tuner while a run trains, and stops the run if the tuner says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loops.choices import At
from loops.engine.rows import Window
from loops.hooks.base import Loop, Phase
from loops.hooks.monitor import MonitorHook
from loops.triggers import Trigger

__all__ = ["Report"]


class Report(MonitorHook):
    """Calls `report(value, step)` with each new value of a metric; if that returns True, training stops at this boundary.

    Three lines connect a tuner. Optuna's pruning:

        def report(value, step):
            trial.report(value, step)
            return trial.should_prune()

    A run that goes on after a kill reports again what it has trained since its last snapshot, with the same values and steps.

    Args:
        report: `(value: float, step: int) -> bool or None`. `step` counts complete epochs with at="epoch", else training steps.
        monitor: name of the metric.
        at: "epoch"; or "evaluation" to report whenever an evaluation, at any cadence, has produced the metric.
        every: report a metric of the training steps, of the epoch to date, at this cadence instead, such as "100 steps".

    Attributes:
        told_to_stop: whether `report` has returned True.

    Raises:
        TypeError: if `report` cannot be called.
        ValueError: if both `every` and at="evaluation" are given.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.Report(lambda value, step: step >= 3 and value > 0.5, "val_loss")
        >>> hook.told_to_stop
        False
    """

    phase = Phase.DECIDE

    def __init__(
        self,
        report: Callable[[float, int], bool | None],
        monitor: str = "val_loss",
        *,
        at: At = "epoch",
        every: Trigger | str | None = None,
    ):
        super().__init__(monitor, mode="min", at=at)  # the mode decides nothing here: what is better is the tuner's business
        if not callable(report):
            raise TypeError(f"Report takes a function `report(value, step)` first; got {report!r}.")
        if every is not None and at != "epoch":
            raise ValueError(f"Report looks at={at!r} or every={every!r}, not both.")
        self.report = report
        self.every = every
        self.told_to_stop = False

    def on_train_begin(self, loop: Loop) -> None:
        if loop.progress.step == 0:
            self.told_to_stop = False

    def on_value(self, loop: Loop, value: float) -> None:
        if self.every is None:
            self._tell(loop, value, loop.progress.epoch + 1 if self.at == "epoch" else loop.progress.step)

    def on_window_end(self, loop: Loop, window: Window) -> None:
        if (value := self.fresh_value(loop, window.logs)) is not None:
            self._tell(loop, value, loop.progress.step)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "told_to_stop": self.told_to_stop}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.told_to_stop = state["told_to_stop"]

    def _tell(self, loop: Loop, value: float, step: int) -> None:
        if self.report(value, step):
            self.told_to_stop = True
            loop.stop(f"{self.name}: told to stop at {self.monitor} = {value:.6g}")
