"""A loop without training: it hands given logs to hooks in the order of phases, as `TrainLoop` does. For tests of hooks alone.

mypy checks that `FakeLoop` is a `hooks.Loop`: a name that hooks may use and that is missing here, or has another type, is an error.
"""

from __future__ import annotations

import json
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import triggers
from loops.engine.progress import Progress
from loops.engine.rows import Window
from loops.hooks import History, Hook, Loop
from loops.tasks.learning_rates import LearningRates
from loops.tasks.trained import Trained


def tiny_model(optimizer: Any = None) -> keras.Model:
    """Two weights and an optimizer that is built."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.SGD(1.0), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


class FakeTask(loops.Task):
    """A task that is not trained, with what a test gives it."""

    def __init__(self, model: keras.Model | None, **attributes: Any):
        super().__init__()
        self.model = model
        for name, value in attributes.items():
            setattr(self, name, value)


class FakeLoop:
    """Given the logs of each epoch, plays them to hooks; those of an evaluation ("val_...", "test_...") go to `on_evaluate_end` too."""

    def __init__(
        self,
        hooks: Sequence[Any],
        model: keras.Model | None = None,
        *,
        task: Any = None,
        evaluations: Sequence[str] = ("val",),
        steps: int = 1,
    ):
        self.history = History()
        self.hooks: list[Hook] = [self.history, *hooks]
        self.task = task if task is not None else FakeTask(model)
        self.feed: loops.Feed = loops.NoFeed(steps)
        self.evaluations: dict[str, loops.Feed] = dict.fromkeys(evaluations, self.feed)
        self.progress = Progress(steps_per_epoch=steps)
        self.now, self.timing = 0.0, loops.Timing()
        self.steps_per_epoch: int | None = steps
        self._steps_of_an_epoch = steps
        self.workdir: pathlib.Path | None = None
        self.epochs: int | None = None
        self.steps: int | None = None
        self.graph: tf.Graph | None = None
        self.is_chief = True
        self.config: Mapping[str, Any] = {}
        self.on_nonfinite = loops.OnNonFinite("ignore")
        self.outcome: str | None = None
        self.stop_reason: str | None = None
        self.evaluated: list[tuple[int, str, int | None]] = []
        self.asked: list[str] = []
        self._rates = LearningRates(self.task.optimizers)
        self._looked: dict[str, int] = {}
        self._logs: dict[str, Any] = {}

    @property
    def learning_rate(self) -> LearningRates:
        return self._rates

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._rates.set(value)

    @property
    def stopping(self) -> bool:
        return self.stop_reason is not None

    @property
    def trained(self) -> Trained:
        return Trained.of(self.task)

    def clock(self) -> float:
        return self.now

    def stop(self, reason: str, *, end_epoch: bool = False) -> None:
        self.stop_reason = self.stop_reason or reason

    def save(self) -> None:
        self.asked.append("save")

    def rollback(self, reason: str) -> None:
        self.asked.append(f"rollback: {reason}")

    def retrace(self, reason: str) -> None:
        self.asked.append(f"retrace: {reason}")

    def log(self, name: str, value: Any) -> None:
        self._logs[name] = value

    def evaluate(self, feed: Any, name: str, *, steps: int | None = None) -> dict[str, Any]:
        self.evaluated.append((self.progress.step, name, steps))
        logs = {f"{name}_loss": float(feed)}
        self._evaluate_end(name, logs)
        self._logs.update(logs)
        return logs

    def begin(self) -> None:
        self.stop_reason = self.outcome = None
        for hook in self.hooks:
            triggers.parse(hook.every).start(self.now)
            self._looked.setdefault(hook.name, self.progress.step)
            hook.on_train_begin(self)

    def run(self, epochs: Sequence[Mapping[str, Any]], during_epoch: Callable[[int], Any] = lambda epoch: None) -> History:
        """Trains for as many further epochs as there are items, or until stopped. `during_epoch(epoch)` stands for the steps."""
        self.epochs = self.progress.epoch + len(epochs)
        self.begin()
        for logs in epochs:
            self.epoch(logs, during_epoch)
            if self.stopping:
                break
        self.end("stopped" if self.stopping else "finished")
        return self.history

    def saved(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What a snapshot at this boundary holds of the progress and the hooks, after its way through JSON; arrays are beside."""
        state = {
            "progress": self.progress.state_dict(),
            "looked": self._looked,
            "hooks": {hook.name: hook.state_dict() for hook in self.hooks},
        }
        arrays = {hook.name: {name: array.copy() for name, array in hook.state_arrays().items()} for hook in self.hooks}
        return json.loads(json.dumps(state)), arrays, dict(self._logs)

    def resume(self, saved: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
        """Begins as `TrainLoop` does in a new process."""
        state, arrays, logs = saved
        self._logs = dict(logs)
        self.progress.load_state_dict(state["progress"])
        self._looked = dict(state["looked"])
        self.begin()
        for hook in self.hooks:
            hook.load_state_dict(state["hooks"][hook.name])
            if arrays[hook.name]:
                hook.load_state_arrays(arrays[hook.name])

    def epoch(self, logs: Mapping[str, Any], during_epoch: Callable[[int], Any] = lambda epoch: None, *, until: int | None = None) -> None:
        """Trains for one epoch, or only until its step `until`; then the next call goes on there."""
        goes_on = self.progress.step_in_epoch > 0 and not self.progress.epoch_ended
        if not goes_on:
            self._logs = {k: v for k, v in logs.items() if not self._set_of(k)}
            self.progress.begin_epoch()
            for hook in self.hooks:
                hook.on_epoch_begin(self)
            during_epoch(self.progress.epoch)
            for optimizer in self.task.optimizers.values():
                optimizer.iterations.assign_add(self._steps_of_an_epoch)
        for step in range(self.progress.step_in_epoch + 1, (until or self._steps_of_an_epoch) + 1):
            self.progress.advance(1, examples=1)
            self.now += 1.0
            if step == self._steps_of_an_epoch:
                self.progress.end_epoch()
                for name in self.evaluations:
                    if results := {k: v for k, v in logs.items() if self._set_of(k) == name}:
                        self._evaluate_end(name, results)
                        self._logs.update(results)
            self._boundary()
            if self.stopping:
                break

    def end(self, outcome: str) -> None:
        self.outcome = outcome
        for hook in self.hooks:
            hook.on_train_end(self)

    def _boundary(self) -> None:
        for phase in sorted({hook.phase for hook in self.hooks}):
            for hook in (h for h in self.hooks if h.phase == phase):
                trigger = triggers.parse(hook.every)
                if trigger.due(self.progress, self.now):
                    trigger.fired(self.now)
                    hook.on_window_end(self, self._window(hook))
                if self.progress.epoch_ended:
                    hook.on_epoch_end(self, types.MappingProxyType(self._logs))

    def _window(self, hook: Hook) -> Window:
        first, last = self._looked[hook.name] + 1, self.progress.step
        self._looked[hook.name] = last
        steps = np.arange(first, last + 1)
        logs, trace = dict(self._logs), {"loss": steps / 2}
        window = types.SimpleNamespace(
            logs=logs, first_step=first, last_step=last, steps=len(steps), seconds=1.0, trace=trace, observed={}, batch=None
        )
        return cast(Window, window)

    def _evaluate_end(self, name: str, logs: Mapping[str, Any]) -> None:
        for hook in self.hooks:
            hook.on_evaluate_end(self, name, types.MappingProxyType(dict(logs)))

    def _set_of(self, key: str) -> str | None:
        return next((name for name in self.evaluations if key.startswith(f"{name}_")), None)


_: type[Loop] = FakeLoop
