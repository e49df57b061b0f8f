"""Sets the learning rates at the beginning of every epoch to what a function of the epoch returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from loops.hooks.base import Hook, Loop, Phase
from loops.messages import say

__all__ = ["LearningRateScheduler"]


class LearningRateScheduler(Hook):
    """Sets each optimizer's learning rate to `schedule(epoch, rate)` before the epoch's first step, and logs it as "learning_rate".

    Keras's callback of that name calls `schedule` with two arguments and, after a `TypeError`, with one. Here its signature decides, so a
    `TypeError` raised inside `schedule` reaches the user.

    Args:
        schedule: `(epoch, rate) -> new rate` or `(epoch) -> new rate`; `epoch` is a 0-based int, rates are floats.
        verbose: 1 prints a line at each epoch.

    Raises:
        ValueError: when training begins, if an optimizer has a schedule of its own; in training, if `schedule` returns something that is
            not a finite number.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.LearningRateScheduler(lambda epoch, rate: rate if epoch < 10 else rate * 0.9)
    """

    phase = Phase.DECIDE
    every = None

    def __init__(self, schedule: Callable[..., float], verbose: int = 0):
        if not callable(schedule):
            raise TypeError(f"LearningRateScheduler takes a function of the epoch (and the learning rate), got {schedule!r}.")
        self.schedule = schedule
        self.verbose = verbose
        self._takes_rate = _takes_two(schedule)

    def on_train_begin(self, loop: Loop) -> None:
        loop.learning_rate.check_that_they_can_be_set("LearningRateScheduler")

    def on_epoch_begin(self, loop: Loop) -> None:
        epoch = loop.progress.epoch
        for name, rate in loop.learning_rate.items():
            given = self.schedule(epoch, rate) if self._takes_rate else self.schedule(epoch)
            new = _number(given)
            if new is None:
                raise ValueError(
                    f"The schedule of LearningRateScheduler has to give a finite number, but gave {given!r} for epoch {epoch}."
                )
            loop.learning_rate.set(new, name=name)
            if self.verbose > 0:
                say(f"\nEpoch {epoch + 1}: LearningRateScheduler sets the learning rate of {name} to {new:g}.")

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        for name, rate in loop.learning_rate.logs().items():
            loop.log(name, rate)


def _takes_two(schedule: Callable[..., float]) -> bool:
    try:
        inspect.signature(schedule).bind(0, 0.0)
    except TypeError:
        return False
    except ValueError:
        # Functions written in C may have no signature; the documented form takes two arguments.
        return True
    return True


def _number(given: Any) -> float | None:
    try:
        number = float(given)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
