"""Keras callbacks and hooks around one evaluation or prediction outside of training, called when Keras's methods would call them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from loops import _private_api
from loops.cluster import Cluster
from loops.engine.progress import Progress
from loops.hooks._left_to_chief import left_to_chief
from loops.hooks.base import Hook
from loops.hooks.keras_callbacks import steps_per_execution
from loops.tasks.base import Task

__all__ = ["EvaluationWatchers", "PredictionWatchers"]

_NAME = "test"
_METHODS = {"test": ("on_evaluate_begin", "on_evaluate_batch", "on_evaluate_end"), "predict": ("on_predict_begin", "on_predict_end")}


class _Watchers:
    """What watches: a `keras.callbacks.CallbackList`, and hooks.

    Args:
        task: what is evaluated; `task.model` is a Keras model.
        given: Keras callbacks and hooks, or a `CallbackList`.
        verbose: as in Keras; not 0 shows Keras's progress bar.
        steps: batches of the pass, None if that is unknown.
    """

    kind = ""
    stop_attribute = ""

    def __init__(self, task: Task, given: Any, *, verbose: int | str, steps: int | None):
        self._model: Any = task.model
        given = [] if given is None else given
        whole = isinstance(given, keras.callbacks.CallbackList)
        given = [given] if whole or not isinstance(given, (list, tuple)) else list(given)
        self.hooks: list[Hook] = [item for item in given if isinstance(item, Hook)]
        callbacks = [item for item in given if not isinstance(item, Hook)]
        for item in given:
            self._check(item)
        cluster = Cluster.of(self._model.distribute_strategy)
        callbacks = [left_to_chief(one, cluster) for one in callbacks]
        verbose = verbose if cluster.is_chief else 0
        self._callbacks = [one for item in callbacks for one in (item.callbacks if whole else [item])]
        self._shows = bool(verbose) and not whole
        self._list = callbacks[0] if whole else None
        if self._list is None and (callbacks or self._shows):
            self._list = keras.callbacks.CallbackList(
                callbacks, add_progbar=self._shows, verbose=verbose, epochs=1, steps=steps, model=self._model
            )
        self._loop = _NoTraining(task, self.hooks)
        setattr(self._model, self.stop_attribute, False)

    @property
    def _each_batch(self) -> bool:
        """Whether somebody watches batches; asked when the callbacks have begun, as some make their batch methods then."""
        methods = (f"on_{self.kind}_batch_begin", f"on_{self.kind}_batch_end")
        called = any(not _private_api.does_nothing(getattr(one, method)) for one in self._callbacks for method in methods)
        return called or any(hook.watches_evaluation for hook in self.hooks)

    @property
    def batches(self) -> int:
        """How many batches Keras runs between two calls of the batch methods."""
        return steps_per_execution(self._model)

    def _check(self, item: Any) -> None:
        if not isinstance(item, (Hook, keras.callbacks.Callback)):
            raise TypeError(f"A callback must be a keras.callbacks.Callback or a loops.hooks.Hook object; got {item!r}.")
        if isinstance(item, Hook) and not isinstance(item, keras.callbacks.Callback):
            # A function assigned to the hook itself counts too: `LambdaHook` does that.
            methods = {name: getattr(item, name) for name in _METHODS[self.kind]}
            acts = any(getattr(method, "__func__", method) is not getattr(Hook, name) for name, method in methods.items())
            if not acts or type(item).on_train_begin is not Hook.on_train_begin:
                raise ValueError(
                    f"The hook {item.name} acts within a training run, and there is none here; a hook for this call overrides "
                    f"{' or '.join(_METHODS[self.kind])}, and not on_train_begin."
                )

    def stopped(self) -> bool:
        """Whether a callback has set `model.stop_evaluating` or `model.stop_predicting`, or a hook has called `loop.stop`."""
        return bool(getattr(self._model, self.stop_attribute)) or self._loop.stop_reason is not None

    def _call(self, method: str, *arguments: Any) -> None:
        if self._list is not None:
            getattr(self._list, method)(*arguments)


class EvaluationWatchers(_Watchers):
    """Watches an evaluation; the arguments are those of its base class."""

    kind, stop_attribute = "test", "stop_evaluating"

    def begin(self) -> None:
        """Before the first batch."""
        self._ended = 0
        self._call("on_test_begin")
        for hook in self.hooks:
            hook.on_evaluate_begin(self._loop, _NAME)

    @property
    def on_batch(self) -> Callable[[int, Callable[[], dict[str, Any]], bool], None] | None:
        """What `EvalLoop.run` calls for every batch, None if nobody watches batches."""
        return self._batch if self._each_batch else None

    @property
    def on_call(self) -> Callable[[int, Callable[[], dict[str, Any]]], None] | None:
        """What `EvalLoop.run` calls after every call, for a progress bar that need not see each batch; None if there is none."""
        return None if self._each_batch or not self._shows else lambda done, logs: self._call("on_test_batch_end", done - 1, logs())

    def _batch(self, batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
        if batch > self._ended and (last or batch % self.batches == 0):
            self._call("on_test_batch_end", self._ended + self.batches - 1, logs())
            self._ended = batch
        if not last and batch % self.batches == 0 and not (batch and self.stopped()):
            self._call("on_test_batch_begin", batch)
        for hook in self.hooks:
            if hook.watches_evaluation:
                hook.on_evaluate_batch(batch, logs, last)

    def end(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """After the last batch; returns the logs with what hooks have logged."""
        self._call("on_test_end", dict(logs))
        for hook in self.hooks:
            hook.on_evaluate_end(self._loop, _NAME, {f"{_NAME}_{name}": value for name, value in logs.items()})
        return {**logs, **self._loop.logged}


class PredictionWatchers(_Watchers):
    """Watches a prediction; the arguments are those of its base class."""

    kind, stop_attribute = "predict", "stop_predicting"

    def begin(self) -> None:
        """Before the first batch."""
        self._call("on_predict_begin")
        for hook in self.hooks:
            hook.on_predict_begin(self._loop)

    @property
    def on_batch(self) -> Callable[[int, Any], None] | None:
        """What `PredictLoop.run` calls for every batch, None if nobody watches batches."""
        return self._batch if self._each_batch else None

    @property
    def on_call(self) -> Callable[[int], None] | None:
        """What `PredictLoop.run` calls after every call, for a progress bar that need not see each batch; None if there is none."""
        return None if self._each_batch or not self._shows else lambda done: self._call("on_predict_batch_end", done - 1, {})

    def _batch(self, batch: int, outputs: Any) -> None:
        if outputs is None:
            self._call("on_predict_batch_begin", batch)
        else:
            self._call("on_predict_batch_end", batch + self.batches - 1, {"outputs": outputs})

    def end(self, outputs: Any) -> None:
        """After the last batch."""
        self._call("on_predict_end")
        for hook in self.hooks:
            hook.on_predict_end(self._loop, outputs)


class _NoTraining:
    """The loop as hooks see it in an evaluation or prediction outside of training: there are counters at zero, and nothing to steer."""

    def __init__(self, task: Task, hooks: Sequence[Hook]):
        self.task, self.hooks, self.progress = task, list(hooks), Progress()
        self.clock, self.is_chief, self.workdir, self.history = time.monotonic, True, None, None
        self.outcome: str | None = None
        self.steps_per_epoch: int | None = None
        self.epochs = self.steps = None
        self.stop_reason: str | None = None
        self.logged: dict[str, Any] = {}

    def stop(self, reason: str, *, end_epoch: bool = False) -> None:
        """Ends the evaluation after this batch."""
        self.stop_reason = reason

    def log(self, name: str, value: Any) -> None:
        """Adds to what `loops.evaluate` returns."""
        self.logged[name] = value

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"`loop.{name}` is there in a training run only; this hook acts in loops.evaluate or loops.predict.")
