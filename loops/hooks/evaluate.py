"""Evaluates on a further data set, at any cadence. It does not use the results; other hooks read them from the logs."""

from __future__ import annotations

from typing import Any

from loops import triggers
from loops.engine.rows import Window
from loops.hooks.base import Hook, Loop, Phase

__all__ = ["Evaluate"]


class Evaluate(Hook):
    """Calls `loop.evaluate(feed, name)` whenever it is due.

    The results appear as `<name>_loss` and so on in the logs of the epoch in progress, and monitors made with `at="evaluation"` act on them
    at once.

    Args:
        feed: the `loops.feeds` feed to evaluate on.
        name: name of the evaluation and prefix of its logs, unique among the evaluations of a loop.
        every: when: "1 epoch", "500 steps", "60 seconds", or a `loops.triggers.Trigger`.
        steps: batches to evaluate; None: all of a pass.

    Raises:
        ValueError: if `name`, `every` or `steps` is not valid.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.Evaluate(feed=None, name="test", every="500 steps")
        >>> hook.evaluation, hook.every
        ('test', EverySteps(500))
    """

    phase = Phase.EVALUATE

    def __init__(self, feed: Any, name: str = "val", every: triggers.Trigger | str | None = "1 epoch", steps: int | None = None):
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"The name of an evaluation becomes the prefix of its logs, as in 'val_loss'; it cannot be {name!r}.")
        if steps is not None and (isinstance(steps, bool) or int(steps) != steps or steps < 1):
            raise ValueError(f"The steps of an evaluation are a whole number of batches, 1 or more, or None; got {steps!r}.")
        self.feed = self.evaluation_feed = feed
        self.evaluation: str = name
        self.every = triggers.parse(every)
        self.steps = steps

    def __repr__(self) -> str:
        return f"Evaluate({self.feed!r}, {self.evaluation!r}, every={self.every!r})"

    def on_window_end(self, loop: Loop, window: Window) -> None:
        loop.evaluate(self.feed, self.evaluation, steps=self.steps)
