"""Decides which snapshots of a run stay on disk: the newest, and the best by a metric. It deletes nothing itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["Best", "Retention"]


@dataclasses.dataclass(frozen=True)
class Best:
    """Keep the best snapshots by a metric.

    Attributes:
        metric: name in the `logs` of a snapshot's info, such as "val_loss".
        mode: whether small ("min") or large ("max") values are good. A value that is not finite is never good.
        count: how many to keep; of equally good ones, the earlier.
    """

    metric: str
    mode: Literal["min", "max"]
    count: int = 1

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f'Best keeps by "min" or "max"; got {self.mode!r}.')
        _at_least_one(self.count, "the best snapshots")

    def value(self, info: Mapping[str, Any]) -> float | None:
        """The value of the metric in a snapshot's info; None if it is missing or not finite."""
        value = (info.get("logs") or {}).get(self.metric)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which snapshots stay: the newest, and the best by a metric.

    Attributes:
        last: how many of the newest stay, at least 1.
        best: which others stay.

    Example:
        >>> policy = Retention(2, Best("loss", "min"))
        >>> policy.kept({10: 0.1, 20: 0.3, 30: 0.2, 40: None})
        {40: ['newest'], 30: ['last 2'], 10: ['best loss']}
    """

    last: int = 3
    best: Best | None = None

    def __post_init__(self) -> None:
        _at_least_one(self.last, "the newest snapshots")

    def kept(self, values: Mapping[int, float | None]) -> dict[int, list[str]]:
        """The steps that stay, newest first, and why.

        Args:
            values: step -> value of the metric of `best`, or None.
        """
        reasons = {step: [f"last {self.last}" if at else "newest"] for at, step in enumerate(sorted(values, reverse=True)[: self.last])}
        if self.best is not None:
            sign = 1 if self.best.mode == "min" else -1
            ranked = sorted((sign * value, step) for step, value in values.items() if value is not None)
            for _, step in ranked[: self.best.count]:
                reasons.setdefault(step, []).append(f"best {self.best.metric}")
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """The policy as JSON-able values, for `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Retention:
        """The inverse of `to_dict`."""
        return cls(found["last"], Best(**found["best"]) if found["best"] else None)


def _at_least_one(count: int, of: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"Keep 1 or more of {of}; got {count!r}.")
