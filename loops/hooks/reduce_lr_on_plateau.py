"""Reduces the learning rate when a metric has stopped improving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loops.choices import At, Direction
from loops.hooks.base import Loop, Phase
from loops.hooks.monitor import MonitorHook
from loops.messages import say

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau(MonitorHook):
    """Multiplies the learning rates by `factor` when `monitor` has not improved for `patience` epochs (or evaluations).

        if cooldown_counter > 0: cooldown_counter -= 1;  wait = 0
        if value is better than best by more than min_delta: best = value;  wait = 0
        elif cooldown_counter == 0:
            wait += 1
            if wait >= patience: learning_rate = max(learning_rate * factor, min_lr);  cooldown_counter = cooldown;  wait = 0

    Differences from Keras's callback of that name: it also works with a `LearningRateSchedule`, by a factor on its rates; NaN never becomes
    the best value; the "learning_rate" that it logs is the one that the epoch used, whatever the order of the hooks.

    Args:
        monitor: name of the metric.
        factor: what to multiply the learning rate with, at least 0 and less than 1.
        patience: epochs (or evaluations) without improvement after which the rate is reduced.
        verbose: 1 prints a line at each reduction.
        mode: "auto", "min" or "max".
        min_delta: smallest change that counts as an improvement.
        cooldown: epochs (or evaluations) after a reduction during which `wait` stays 0.
        min_lr: lower bound of the learning rate.
        at: "epoch", or "evaluation" to count evaluations at any cadence.

    Raises:
        ValueError: if `factor` is 1 or more; when training begins, if a learning rate cannot be scaled (it comes from a callable).

    Example:
        >>> from loops import hooks
        >>> hooks.ReduceLROnPlateau("val_loss", factor=0.5, patience=2).state_dict()
        {'best': None, 'seen': False, 'reported': False, 'wait': 0, 'cooldown_counter': 0}
    """

    phase = Phase.DECIDE

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: Direction = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        *,
        at: At = "epoch",
    ):
        super().__init__(monitor, mode=mode, min_delta=min_delta, at=at)
        if not 0 <= factor < 1:
            raise ValueError(f"ReduceLROnPlateau makes learning rates smaller: factor has to be at least 0 and less than 1, got {factor}.")
        self.factor = factor
        self.patience = patience
        self.verbose = verbose
        self.cooldown = cooldown
        self.min_lr = min_lr
        self.wait = 0
        self.cooldown_counter = 0

    def on_train_begin(self, loop: Loop) -> None:
        loop.learning_rate.make_scalable()
        # At step 0 a new run begins, which must not inherit the counters of the run before; a run that goes on keeps them.
        if loop.progress.step == 0:
            self.best, self.wait, self.cooldown_counter = None, 0, 0

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        for name, rate in loop.learning_rate.logs().items():
            loop.log(name, rate)
        super().on_epoch_end(loop, logs)

    def on_value(self, loop: Loop, value: float) -> None:
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.is_improvement(value, self.best):
            self.best, self.wait = value, 0
        elif self.cooldown_counter == 0:
            self.wait += 1
            if self.wait >= self.patience and (changed := loop.learning_rate.scale(self.factor, minimum=self.min_lr)):
                self.cooldown_counter, self.wait = self.cooldown, 0
                if self.verbose > 0:
                    rates = ", ".join(f"{name} {rate:g}" for name, rate in changed.items())
                    say(f"\nEpoch {loop.progress.epoch + 1}: ReduceLROnPlateau reduces the learning rate of {rates}.")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "wait": self.wait, "cooldown_counter": self.cooldown_counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.wait, self.cooldown_counter = state["wait"], state["cooldown_counter"]
