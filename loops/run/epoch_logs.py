"""The logs of one epoch: those of training, of evaluations, and of hooks. Hooks see them as one read-only mapping."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from loops import json_values
from loops.tasks.reductions import to_floats

__all__ = ["REMOVED", "EpochLogs"]

REMOVED = object()
"""As a value given to `loop.log`: the logs of the epoch have no such name any more."""


class EpochLogs(Mapping[str, Any]):
    """A live view: the names of training and evaluations in alphabetical order (as in Keras), then those that hooks logged.

    Attributes:
        train: logs of the training steps.
        evaluation: logs of evaluations made in this epoch, with their prefixes.
        extra: what hooks logged.
        removed: names that are not there any more, because a Keras callback took them out.

    Example:
        >>> logs = EpochLogs()
        >>> logs.train["loss"], logs.evaluation["val_loss"], logs.extra["learning_rate"] = 1.0, 2.0, 0.1
        >>> dict(logs)
        {'loss': 1.0, 'val_loss': 2.0, 'learning_rate': 0.1}
    """

    def __init__(self) -> None:
        self.train: dict[str, Any] = {}
        self.evaluation: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.removed: set[str] = set()

    def log(self, name: str, value: Any) -> None:
        """Adds what a hook logs; with `REMOVED` takes the name away."""
        if value is REMOVED:
            self.removed.add(name)
            self.extra.pop(name, None)
        else:
            self.removed.discard(name)
            self.extra[name] = value

    def _merged(self) -> dict[str, Any]:
        merged = {**to_floats({**self.train, **self.evaluation}), **self.extra}
        return {name: value for name, value in merged.items() if name not in self.removed} if self.removed else merged

    def state_dict(self) -> dict[str, Any]:
        """The logs of evaluations and hooks, JSON-able."""
        return {
            "evaluation": {name: json_values.encode(value) for name, value in to_floats(self.evaluation).items()},
            "extra": {name: json_values.encode(value) for name, value in self.extra.items()},
            "removed": sorted(self.removed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.evaluation = {name: json_values.decode(value) for name, value in state["evaluation"].items()}
        self.extra = {name: json_values.decode(value) for name, value in state["extra"].items()}
        self.removed = set(state["removed"])

    def items(self) -> ItemsView[str, Any]:
        return self._merged().items()  # the view of `Mapping` would merge again for each name

    def keys(self) -> KeysView[str]:
        return self._merged().keys()

    def values(self) -> ValuesView[Any]:
        return self._merged().values()

    def __getitem__(self, name: str) -> Any:
        return self._merged()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._merged())

    def __len__(self) -> int:
        return len(self._merged())

    def __repr__(self) -> str:
        return repr(self._merged())
