"""Stops training when a metric has stopped improving, and can restore the best weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from loops.choices import At, Direction
from loops.hooks.base import Loop, Phase
from loops.hooks.monitor import MonitorHook
from loops.messages import say
from loops.tasks.optimizer_slots import build_as, built_for
from loops.tasks.trained import Trained

__all__ = ["EarlyStopping"]


class EarlyStopping(MonitorHook):
    """Stops when `monitor` has not improved for `patience` epochs (or evaluations).

        wait += 1
        if value is better than best by more than min_delta:
            best = value;  wait = 0, if it is also better than the baseline
        elif wait >= patience:
            stop

    Differences from Keras's callback of that name: NaN never becomes the best value, a resumed run keeps the counters, and the optimizer's
    state is restored together with the weights.

    Args:
        monitor: name of the metric.
        min_delta: smallest change that counts as an improvement.
        patience: epochs (or evaluations) without improvement after which training stops.
        verbose: 1 prints a line when it stops and when it restores.
        mode: "auto", "min" or "max".
        baseline: value to beat; an improvement that does not reach it does not reset `wait`.
        restore_best_weights: whether training ends with the weights of the best epoch, stopped early or not.
        start_from_epoch: number of epochs at the beginning whose values are ignored.
        at: "epoch", or "evaluation" to count evaluations at any cadence.
        restore_optimizer: whether to restore the optimizers (slots, iterations, learning rates) as well. It does not affect the weights.

    Attributes:
        best: best value so far, None before the first one.
        best_epoch: 0-based epoch of it.
        stopped_epoch: 0-based epoch in which training was stopped, 0 if it was not.
        best_weights: copies of the weights at the best epoch, or None.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
        >>> hook.state_dict()["wait"]
        0
    """

    phase = Phase.DECIDE

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: Direction = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
        *,
        at: At = "epoch",
        restore_optimizer: bool = True,
    ):
        super().__init__(monitor, mode=mode, min_delta=min_delta, at=at)
        self.patience = patience
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.restore_optimizer = restore_optimizer
        self._reset()

    def _reset(self) -> None:
        self.best: float | None = None
        self.best_epoch = 0
        self.wait = 0
        self.stopped_epoch = 0
        self.best_weights: list[np.ndarray] | None = None
        self._best_optimizer: list[np.ndarray] = []
        self._best_rates: dict[str, Any] | None = None
        self._best_slots: dict[str, list[int]] | None = None

    def on_train_begin(self, loop: Loop) -> None:
        # At step 0 a new run begins, which must not inherit the counters of the run before; a run that goes on keeps them.
        if loop.progress.step == 0:
            self._reset()

    def fresh_value(self, loop: Loop, logs: Mapping[str, Any]) -> float | None:
        value = super().fresh_value(loop, logs)
        return None if loop.progress.epoch < self.start_from_epoch else value

    def on_value(self, loop: Loop, value: float) -> None:
        epoch = loop.progress.epoch
        self.wait += 1
        if self.is_improvement(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self._keep(loop)
            if self.baseline is None or self.is_improvement(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and (epoch > 0 or self.at == "evaluation"):
            self.stopped_epoch = epoch
            looks = "epochs" if self.at == "epoch" else "evaluations"
            best = "a finite value" if self.best is None else f"{self.best:.6g}"
            loop.stop(f"EarlyStopping: {self.monitor} = {value:.6g} after {self.wait} {looks} without improvement on {best}.")

    def on_train_end(self, loop: Loop) -> None:
        super().on_train_end(loop)
        if self.stopped_epoch > 0 and self.verbose > 0:
            say(f"Epoch {self.stopped_epoch + 1}: early stopping")
        # An interrupted or failed run goes on later with its current weights, so these stay.
        if self.best_weights is not None and loop.outcome in ("finished", "stopped"):
            if self.verbose > 0:
                say(f"Restoring the weights of the best epoch: {self.best_epoch + 1}.")
            self._restore(loop, self.best_weights)

    def _restore(self, loop: Loop, best_weights: list[np.ndarray]) -> None:
        now = Trained.of(loop.task)
        if not _fit(now.weights, best_weights):
            warnings.warn(
                f"EarlyStopping does not restore the weights of epoch {self.best_epoch + 1}, the best one: since then a hook has "
                "replaced or changed the model, and they do not fit.",
                stacklevel=2,
            )
            return
        _assign(now.weights, best_weights)
        if not self.restore_optimizer or self._best_rates is None:
            return
        if build_as(now.tracked.optimizers, now.tracked.model_variables(), self._best_slots or {}):
            loop.retrace("EarlyStopping has restored an optimizer from before layers were set free")
        variables = now.tracked.optimizer_variables()
        if _fit(variables, self._best_optimizer):
            _assign(variables, self._best_optimizer)
            loop.learning_rate.load_state_dict(self._best_rates)

    def _keep(self, loop: Loop) -> None:
        trained = loop.trained
        if not trained.intact:
            warnings.warn(
                f"EarlyStopping cannot keep the weights of epoch {loop.progress.epoch + 1}, the best one so far: a hook has changed "
                "the model since its last step. Let such a hook act in on_epoch_begin.",
                stacklevel=4,
            )
            self.best_weights = None
            return
        tracked = trained.tracked
        self.best_weights = [np.asarray(v.numpy()) for v in trained.weights]
        if self.restore_optimizer:
            self._best_optimizer = [np.asarray(v.numpy()) for v in tracked.optimizer_variables()]
            self._best_slots = built_for(tracked.optimizers, tracked.model_variables())
            self._best_rates = loop.learning_rate.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "best_epoch": self.best_epoch,
            "wait": self.wait,
            "stopped_epoch": self.stopped_epoch,
            "best_rates": self._best_rates,
            "best_slots": self._best_slots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.best_epoch, self.wait, self.stopped_epoch = state["best_epoch"], state["wait"], state["stopped_epoch"]
        self._best_rates, self._best_slots = state["best_rates"], state["best_slots"]
        self.best_weights, self._best_optimizer = None, []

    def state_arrays(self) -> dict[str, np.ndarray]:
        """The kept weights and optimizer variables by "weights/<i>" and "optimizer/<i>". Empty if nothing is kept."""
        arrays = {f"weights/{i}": a for i, a in enumerate(self.best_weights or [])}
        return {**arrays, **{f"optimizer/{i}": a for i, a in enumerate(self._best_optimizer)}}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        weights = _numbered(arrays, "weights")
        self.best_weights = weights or None
        self._best_optimizer = _numbered(arrays, "optimizer")


def _numbered(arrays: Mapping[str, np.ndarray], kind: str) -> list[np.ndarray]:
    count = sum(key.startswith(f"{kind}/") for key in arrays)
    return [np.asarray(arrays[f"{kind}/{i}"]) for i in range(count)]


def _fit(variables: list[Any], values: list[np.ndarray]) -> bool:
    return [tuple(v.shape) for v in variables] == [value.shape for value in values]


def _assign(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
