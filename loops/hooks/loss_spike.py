"""Rolls the run back when the loss of a step jumps to an outlier, even a finite one."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from loops.engine.rows import Window
from loops.hooks.base import Hook, Loop, Phase
from loops.triggers import Trigger

__all__ = ["LossSpike"]

_TO_SIGMA = 1.4826  # of a normal distribution: sigma = 1.4826 * median absolute deviation


class LossSpike(Hook):
    """Rolls the run back to its last good state, and drops the batches since then, when the loss of a step is an outlier.

        spread = 1.4826 * median(|loss - median(loss)|)     over the last `history` steps
        a step is a spike if  loss > median(loss) + threshold * max(spread, 0.01 * |median(loss)|)

    The run goes back to the state of the last snapshot or the last end of an epoch. The loop's
    `on_nonfinite=loops.OnNonFinite("rollback", budget=..., learning_rate_factor=...)` limits how often, and sets what the learning rate is
    multiplied with.

    Args:
        every: when to look; each look examines all steps since the last one.
        threshold: deviation from the median, in sigmas, above which a step is a spike.
        history: steps over which the median is taken; before half of them are there, no step counts as a spike.
        monitor: name of a value that the steps report.

    Raises:
        ValueError: if an argument is not positive.

    References:
        Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 5.1.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.LossSpike("100 steps", threshold=12)
    """

    phase = Phase.DECIDE
    rolls_back = True

    def __init__(self, every: Trigger | str = "50 steps", *, threshold: float = 10.0, history: int = 200, monitor: str = "loss"):
        if not threshold > 0 or history < 2:
            raise ValueError(f"LossSpike needs a threshold above 0 and a history of 2 steps or more; got {threshold!r} and {history!r}.")
        self.every = every
        self.threshold = threshold
        self.monitor = monitor
        self._recent: deque[float] = deque(maxlen=history)

    def on_train_begin(self, loop: Loop) -> None:
        if loop.progress.step == 0:
            self._recent.clear()

    def on_window_end(self, loop: Loop, window: Window) -> None:
        if self.monitor not in (trace := window.trace):
            raise KeyError(f"LossSpike watches {self.monitor!r}, which the steps do not report; they report {sorted(trace)}.")
        for step, value in enumerate(trace[self.monitor].tolist(), window.first_step):
            limit = self._limit()
            if value > limit:
                loop.rollback(f"At step {step} {self.monitor} jumped to {value:.4g}, where up to {limit:.4g} was to be expected.")
                return
            if np.isfinite(value):
                self._recent.append(value)

    def _limit(self) -> float:
        if len(self._recent) < max(2, (self._recent.maxlen or 0) // 2):
            return float("inf")
        recent = np.asarray(self._recent)
        median = float(np.median(recent))
        spread = _TO_SIGMA * float(np.median(np.abs(recent - median)))
        return median + self.threshold * max(spread, 0.01 * abs(median))

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend(state["recent"])
