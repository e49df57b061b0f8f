"""Keeps the logs of all epochs; `loops.fit` returns it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from loops import json_values
from loops.hooks.base import Hook, Loop, Phase

__all__ = ["History"]


class History(Hook, keras.callbacks.History):
    """The logs of every epoch. It is a Keras `History` too, so that what takes one (KerasTuner, plotting code) takes this one.

    Attributes:
        history: log name -> values, one for each epoch that logged it (floats; arrays for metrics with several values). If a run was
            stopped before its first epoch was complete, the names are there, without values.
        epoch: 0-based indices of the epochs.
        params: "verbose", "epochs" and "steps" (of an epoch) of the run.

    Example:
        >>> from loops import hooks
        >>> hooks.History().history
        {}
    """

    phase = Phase.RECORD
    every = None
    on_all_workers = True

    def __init__(self) -> None:
        keras.callbacks.History.__init__(self)
        self.history: dict[str, list[Any]] = {}
        self.epoch: list[int] = []
        self.params: dict[str, Any] = {}
        self._epochs: dict[str, list[int]] = {}

    def __repr__(self) -> str:
        def told(values: list[Any]) -> str:
            ends = [values[0], values[-1]] if len(values) > 1 else values
            return " -> ".join(f"{v:.4g}" if np.ndim(v) == 0 else f"array {list(np.shape(v))}" for v in ends)

        logs = "".join(f"; {name} {told(values)}" for name, values in self.history.items() if values)
        return f"History({len(self.epoch)} epoch{'' if len(self.epoch) == 1 else 's'}{logs})"

    def epochs_of(self, name: str) -> list[int]:
        """The epochs in which a name was logged; that need not be all epochs.

        Args:
            name: a name in `history`.

        Returns:
            0-based indices of the epochs, one for each value of `history[name]`.
        """
        return list(self._epochs[name])

    def on_train_begin(self, loop: Loop) -> None:
        # At step 0 a new run begins, which must not inherit the epochs of the run before; a run that goes on keeps them.
        if loop.progress.step == 0:
            self.history, self.epoch, self._epochs = {}, [], {}
        verbose = max((hook.progress_verbosity for hook in loop.hooks), default=0)
        self.params.update(verbose=verbose, epochs=loop.epochs, steps=loop.progress.steps_per_epoch)

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        self.params["steps"] = loop.progress.steps_per_epoch
        self.epoch.append(loop.progress.epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
            self._epochs.setdefault(name, []).append(loop.progress.epoch)

    def add_names(self, names: Iterable[str]) -> None:
        """Gives names an empty list of values: those of a run that was stopped before its first epoch was complete."""
        for name in names:
            self.history.setdefault(name, [])
            self._epochs.setdefault(name, [])

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": list(self.epoch),
            "history": {name: json_values.encode(values) for name, values in self.history.items()},
            "epochs": {name: list(epochs) for name, epochs in self._epochs.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = list(state["epoch"])
        self.history = {name: json_values.decode(values) for name, values in state["history"].items()}
        # Older snapshots have no "epochs": a name with fewer values was then logged from a later epoch on, so its values are the last ones.
        epochs = state.get("epochs", {})
        self._epochs = {name: list(epochs.get(name, self.epoch[-len(values) :])) for name, values in self.history.items()}
