"""Runs `keras.callbacks.Callback` objects unchanged, called as `model.fit` calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from loops.hooks.base import Hook, Phase

if TYPE_CHECKING:
    from loops.logs import Window
    from loops.train_loop import TrainLoop

__all__ = ["KerasCallbacks"]

_TRAIN_BATCH = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
_TEST_BATCH = ("on_test_batch_begin", "on_test_batch_end")


class KerasCallbacks(Hook):
    """Several Keras callbacks as one hook, in list order.

    What they write into the epoch's logs is logged. A look at every step (or evaluation batch) is taken only if one of them overrides a
    batch method. As in Keras, `on_train_end` is not called after an error.

    Args:
        callbacks: `keras.callbacks.Callback` objects.
        verbose: what the callbacks find in `params["verbose"]`.

    Example:
        >>> import keras
        >>> KerasCallbacks([keras.callbacks.EarlyStopping()]).every is None
        True
        >>> KerasCallbacks([keras.callbacks.LambdaCallback(on_train_batch_end=print)]).every
        '1 step'
    """

    phase = Phase.DECIDE

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], verbose: int = 0):
        self.callbacks = list(callbacks)
        self.verbose = verbose
        self._watches_steps = _overrides(self.callbacks, _TRAIN_BATCH)
        self.every = "1 step" if self._watches_steps else None
        self.watches_evaluation = _overrides(self.callbacks, _TEST_BATCH)
        self._model: Any = None
        self._last_logs: dict[str, Any] | None = None

    def on_train_begin(self, loop: TrainLoop) -> None:
        self._model = loop.task.model
        if not isinstance(self._model, keras.Model):
            raise TypeError("Keras callbacks need a Keras model: set `self.model` on the task, or use loops.hooks instead.")
        params = {"verbose": self.verbose, "epochs": loop.epochs, "steps": loop.steps_per_epoch or loop.feed.steps_per_epoch}
        self._last_logs = None
        for callback in self.callbacks:
            callback.set_model(self._model)
        for callback in self.callbacks:
            callback.set_params(params)
        self._model.stop_training = False
        self._call("on_train_begin", {})
        if loop.progress.step == 0 and getattr(self._model, "_initial_epoch", None):
            loop.progress.epoch = self._model._initial_epoch  # set by keras.callbacks.BackupAndRestore

    def on_epoch_begin(self, loop: TrainLoop) -> None:
        self._call("on_epoch_begin", loop.progress.epoch, {})
        if self._watches_steps:
            self._call("on_train_batch_begin", 0, {})

    def on_window_end(self, loop: TrainLoop, window: Window) -> None:
        step = loop.progress.step_in_epoch
        self._call("on_train_batch_end", step - 1, window.logs)
        if self._model.stop_training:
            loop.stop("a Keras callback set stop_training", end_epoch=True)
        elif not loop.progress.epoch_ended:
            self._call("on_train_batch_begin", step, {})

    def on_evaluate_begin(self, loop: TrainLoop, name: str) -> None:
        self._call("on_test_begin", {})

    def on_evaluate_batch(self, batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
        if batch:
            self._call("on_test_batch_end", batch - 1, logs())
        if not last:
            self._call("on_test_batch_begin", batch, {})

    def on_evaluate_end(self, loop: TrainLoop, name: str, logs: Mapping[str, Any]) -> None:
        self._call("on_test_end", {key.removeprefix(f"{name}_"): value for key, value in logs.items()})

    def on_epoch_end(self, loop: TrainLoop, logs: Mapping[str, Any]) -> None:
        self._last_logs = dict(logs)
        shared = dict(logs)
        self._call("on_epoch_end", loop.progress.epoch, shared)
        for name, value in shared.items():
            if name not in self._last_logs or self._last_logs[name] is not value:
                loop.log(name, value)
        if self._model.stop_training:
            loop.stop("a Keras callback set stop_training")

    def on_train_end(self, loop: TrainLoop) -> None:
        if loop.outcome in ("finished", "stopped"):
            self._call("on_train_end", dict(self._last_logs or {}))

    def _call(self, method: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, method)(*arguments)


def _overrides(callbacks: Sequence[keras.callbacks.Callback], methods: Sequence[str]) -> bool:
    # Keras marks the methods that do nothing, so that loops can leave them out.
    return any(not getattr(getattr(callback, method), "_is_default", False) for callback in callbacks for method in methods)
