"""Runs `keras.callbacks.Callback` objects unchanged, and calls them as `model.fit` does. `_keras_callback_state.py` saves their state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from loops import _private_api, json_values
from loops.engine.progress import Progress
from loops.engine.rows import Window
from loops.hooks import _keras_callback_state as states
from loops.hooks._swapped_averages import SwappedAverages
from loops.hooks._weights_writer import attributes_lock
from loops.hooks.base import Hook, Loop, Phase
from loops.messages import say
from loops.run.epoch_logs import REMOVED
from loops.triggers import Never

__all__ = ["KerasCallbacks", "steps_per_execution"]

_TRAIN_BATCH = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
_TEST_BATCH = ("on_test_batch_begin", "on_test_batch_end")


class KerasCallbacks(Hook):
    """Several Keras callbacks as one hook, in list order.

    Values that they write into the epoch's logs join the logs of the loop, and a log that they remove is gone. The hook looks at every
    step (or evaluation batch) only if a callback overrides a batch method, and then as often as Keras calls it: after
    `steps_per_execution` steps of the compiled model. As in Keras, `on_train_end` is not called after an error.

    A resumed run restores the state of Keras's own callbacks, and of yours if they have `state_dict()` and `load_state_dict(state)`; at the
    first snapshot a line names the callbacks whose state is not saved. A saved state is restored to the callback at the same place in the
    list, if its class is the same.

    Args:
        callbacks: `keras.callbacks.Callback` objects.
        verbose: value of `params["verbose"]` for the callbacks.

    Example:
        >>> import keras
        >>> KerasCallbacks([keras.callbacks.EarlyStopping()]).batches.every.next_step(0) is None
        True
        >>> KerasCallbacks([keras.callbacks.LambdaCallback(on_train_batch_end=print)]).batches.every.next_step(0)
        1
    """

    phase = Phase.DECIDE
    every = None

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback], verbose: int = 0):
        self.callbacks = list(callbacks)
        self.verbose = verbose
        self.watches_evaluation = _overrides(self.callbacks, _TEST_BATCH)
        self.batches = KerasBatchCalls(self, _overrides(self.callbacks, _TRAIN_BATCH))
        self.model: Any = None
        self._optimizer: Any = None
        self._averages = SwappedAverages(self.callbacks)
        self._last_logs: dict[str, Any] | None = None
        self._test_batches_ended = 0
        self._stopped = self._noticed = False
        self._is_first = True

    def on_train_begin(self, loop: Loop) -> None:
        self.model = loop.task.model
        self._is_first = next(hook for hook in loop.hooks if isinstance(hook, KerasCallbacks)) is self
        if not _private_api.is_model(self.model):
            raise TypeError("Keras callbacks need a Keras model: set `self.model` on the task, or use loops.hooks instead.")
        params = {"verbose": self.verbose, "epochs": loop.epochs, "steps": loop.steps_per_epoch or loop.feed.steps_per_epoch}
        self._last_logs, self._stopped = None, False
        self._set_model(loop.task.model, loop)
        for callback in self.callbacks:
            callback.set_params(params)
        self._optimizer = _optimizer_of(self.model, loop)
        with self._model_with_optimizer():  # an evaluation may have failed
            self._averages.swap_back(self.model, in_epochs=False)
        self.call("on_train_begin", {})
        if loop.progress.step == 0 and (epoch := _private_api.epoch_to_begin_with(self.model)):
            loop.progress.epoch = epoch

    def before_first_step(self, loop: Loop) -> None:
        if loop.graph is not None:  # the model has its metrics now: Keras would look for the direction after the first epoch
            with self._model_with_optimizer():
                for callback in self.callbacks:
                    _private_api.find_direction(callback)

    def follow_model(self, loop: Loop) -> None:
        """Gives the callbacks the model that is trained, if a hook has replaced the one that they have."""
        if _private_api.is_model(model := loop.trained.model) and model is not self.model:
            self._set_model(model, loop)
            self._optimizer = _optimizer_of(model, loop)

    def _set_model(self, model: Any, loop: Loop) -> None:
        self.model = model
        own = next((callback for callback in self.callbacks if isinstance(callback, keras.callbacks.History)), None)
        if own is not None or self._is_first:  # as in Keras, callbacks find the history of this run there
            model.history = own or loop.history
        for callback in self.callbacks:
            callback.set_model(model)
        if self._is_first:  # the callbacks after another hook must not forget what those before it have set
            model.stop_training = False

    def on_epoch_begin(self, loop: Loop) -> None:
        self.follow_model(loop)
        with self._model_with_optimizer():
            self._averages.put_back(self.model)
        self.call("on_epoch_begin", loop.progress.epoch, {})
        self.batches.begin_epoch(loop, stopping=self.model.stop_training)

    def on_evaluate_begin(self, loop: Loop, name: str) -> None:
        self._test_batches_ended = 0
        self.call("on_test_begin", {})
        self.watches_evaluation = _overrides(self.callbacks, _TEST_BATCH)

    def on_evaluate_batch(self, batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
        size = steps_per_execution(self.model)
        if batch > self._test_batches_ended and (last or batch % size == 0):
            self.call("on_test_batch_end", self._test_batches_ended + size - 1, logs=logs())
            self._test_batches_ended = batch
        if not last and batch % size == 0 and not (batch and self.model.stop_evaluating):
            self.call("on_test_batch_begin", batch, logs={})

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        self.call("on_test_end", {key.removeprefix(f"{name}_"): value for key, value in logs.items()})

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        self._last_logs = dict(logs)
        shared, epoch = dict(logs), loop.progress.epoch
        if loop.epochs is not None and epoch == loop.epochs - 1:
            with self._model_with_optimizer():
                swapped = self._averages.before_last_epoch_ends(self.model, epoch)
                self.call("on_epoch_end", epoch, shared)
                self._averages.after_last_epoch_ended(self.model, swapped)
        else:
            self.call("on_epoch_end", epoch, shared)
        for name, value in shared.items():
            if name not in self._last_logs or self._last_logs[name] is not value:
                loop.log(name, value)
        for name in self._last_logs.keys() - shared.keys():
            loop.log(name, REMOVED)
        if self.model.stop_training:
            self.stop(loop)

    def release_weights(self, loop: Loop) -> None:
        with self._model_with_optimizer():
            self._averages.swap_back(self.model, in_epochs=True)

    def on_train_end(self, loop: Loop) -> None:
        if loop.outcome in ("finished", "stopped"):
            self.call("on_train_end", dict(self._last_logs or {}))

    def stop(self, loop: Loop, *, end_epoch: bool = False) -> None:
        """Ends training because a callback has set `model.stop_training`."""
        self._stopped = True
        loop.stop("a Keras callback set stop_training", end_epoch=end_epoch)

    def state_dict(self) -> dict[str, Any]:
        if not self._noticed:
            self._noticed = True
            for sentence in states.notices(self.callbacks):
                say(sentence)
        return {
            "callbacks": [{"class": states.class_of(callback), **states.state_of(callback)} for callback in self.callbacks],
            "last_logs": json_values.encode(self._last_logs),
            # Once the loop was told to stop, the loop's own state holds that decision.
            "stop_training": bool(self.model is not None and self.model.stop_training and not self._stopped),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, (callback, saved) in enumerate(zip(self.callbacks, state["callbacks"], strict=False)):
            if saved["class"] == states.class_of(callback):
                states.load(callback, saved)
            else:
                now = states.class_of(callback)
                say(f"Keras callback {i + 1} was {saved['class']} when the run was saved and is {now} now; it begins anew.")
        self._averages.load({})
        self._last_logs = json_values.decode(state["last_logs"])
        self._stopped = False
        if self.model is not None:
            self.model.stop_training = state["stop_training"]

    def state_arrays(self) -> dict[str, np.ndarray]:
        kept = {f"{i}/{j}": a for i, callback in enumerate(self.callbacks) for j, a in enumerate(states.arrays_of(callback))}
        return {**kept, **self._averages.arrays()}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._averages.load(arrays)
        for i, callback in enumerate(self.callbacks):
            count = sum(name.startswith(f"{i}/") for name in arrays)
            if count and isinstance(callback, keras.callbacks.EarlyStopping):
                states.load_arrays(callback, [np.asarray(arrays[f"{i}/{j}"]) for j in range(count)])

    def call(self, method: str, *arguments: Any, **named: Any) -> None:
        """Calls `method` of all callbacks, in their order. Keras passes `logs` by name to batch methods, and by position to others."""
        with self._model_with_optimizer():
            for callback in self.callbacks:
                getattr(callback, method)(*arguments, **named)

    @contextlib.contextmanager
    def _model_with_optimizer(self) -> Iterator[None]:
        """Callbacks find the task's optimizer where a compiled model has it. At other times the model is as its task made it."""
        attributes = vars(self.model)
        if self._optimizer is None or "optimizer" in attributes:
            yield
            return
        with attributes_lock(self.model):
            # Not by assignment, which would make it a part of the model that is saved.
            attributes["optimizer"] = self._optimizer
            try:
                yield
            finally:
                attributes.pop("optimizer", None)


class KerasBatchCalls(Hook):
    """Calls the batch methods of Keras callbacks. It is a hook of its own because they come before evaluation, the epoch methods after it.

    Args:
        owner: the hook whose callbacks are called.
        watches_steps: whether a callback overrides a batch method.
    """

    phase = Phase.EVALUATE

    def __init__(self, owner: KerasCallbacks, watches_steps: bool):
        self._owner, self._watches_steps = owner, watches_steps
        self.every = self._trigger = _NextStep(watches_steps)

    def on_train_begin(self, loop: Loop) -> None:
        self._trigger.begin(loop)  # in the middle of an epoch, if the run was resumed there

    def begin_epoch(self, loop: Loop, *, stopping: bool) -> None:
        """Announces the first batch. If `stop_training` is set already, Keras stops after that batch; so does this hook."""
        # Some callbacks (tqdm's) make their batch methods when an epoch begins.
        self._watches_steps = self._trigger.always = _overrides(self._owner.callbacks, _TRAIN_BATCH)
        self._trigger.wanted = stopping
        self._trigger.begin(loop)
        if self._watches_steps:
            self._owner.call("on_train_batch_begin", 0, logs={})

    def on_window_end(self, loop: Loop, window: Window) -> None:
        step, size = loop.progress.step_in_epoch, self._trigger.size
        self._trigger.wanted = False
        if self._watches_steps:
            self._owner.follow_model(loop)
            # The last execution of an epoch may be shorter than Keras says.
            self._owner.call("on_train_batch_end", -(-step // size) * size - 1, logs=window.logs)
        if self._owner.model.stop_training:
            self._owner.stop(loop, end_epoch=True)
        elif self._watches_steps and not loop.progress.epoch_ended:
            self._owner.call("on_train_batch_begin", step, logs={})


class _NextStep(Never):
    """Due where Keras ends an execution (one step by default) if `always`, else only at the end of that after `wanted` was set.

    Attributes:
        always: whether every end of an execution is due.
        wanted: whether the next end of an execution is due.
        size: steps of an execution.
    """

    def __init__(self, always: bool):
        self.always, self.wanted = always, False
        self._begin, self.size = 0, 1

    def begin(self, loop: Loop) -> None:
        """Counts executions from the beginning of the epoch in progress."""
        self._begin, self.size = loop.progress.step - loop.progress.step_in_epoch, steps_per_execution(loop.task.model)

    def next_step(self, step: int) -> int | None:
        return self._begin + ((step - self._begin) // self.size + 1) * self.size if self.always or self.wanted else None

    def due(self, progress: Progress, now: float) -> bool:
        ends = progress.epoch_ended or progress.step_in_epoch % self.size == 0
        return ends and (self.always or self.wanted)


def steps_per_execution(model: Any) -> int:
    """How many steps Keras runs between two calls of batch methods, as the model was compiled."""
    steps = getattr(model, "steps_per_execution", 1)
    return steps if isinstance(steps, int) and steps > 0 else 1


def _optimizer_of(model: keras.Model, loop: Loop) -> Any:
    """The task's optimizer, for callbacks of a model that was not compiled; None if the model has one, or the task has not one exactly."""
    optimizers = list(loop.task.optimizers.values())
    return optimizers[0] if getattr(model, "optimizer", None) is None and len(optimizers) == 1 else None


def _overrides(callbacks: Sequence[keras.callbacks.Callback], methods: Sequence[str]) -> bool:
    # Keras marks the methods that do nothing, so that a loop need not call them.
    return any(not _private_api.does_nothing(getattr(callback, method)) for callback in callbacks for method in methods)
