"""What a loop says of itself: what it trains on what, where it stands, and what the last epoch logged."""

from __future__ import annotations

from typing import Any

import numpy as np

from loops.hooks.base import Loop
from loops.run.parts import RunParts

__all__ = ["of_loop"]


def of_loop(loop: Loop, parts: RunParts) -> str:
    """The `repr` of a loop."""
    progress = parts.progress
    epochs = progress.epoch + progress.epoch_ended
    where = f"step {progress.step:,}, {epochs} epoch{'' if epochs == 1 else 's'}"
    words = [repr(parts.task), repr(parts.feed), parts.step.mode or "mode not chosen yet", where, loop.outcome or ""]
    words += [f"{name} {value:.4g}" for name, value in _last(loop.history.history).items()]
    return f"{type(loop).__name__}({', '.join(word for word in words if word)})"


def _last(history: dict[str, Any]) -> dict[str, Any]:
    return {name: values[-1] for name, values in history.items() if values and np.ndim(values[-1]) == 0 and "loss" in name}
