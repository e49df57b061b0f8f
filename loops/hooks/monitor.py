"""`MonitorHook`: the base class of hooks that follow one metric. It finds the value, its direction, and whether it has improved.

Its subclasses `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint` decide what to do then.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from loops import _private_api
from loops.choices import At, Direction
from loops.hooks.base import Hook, Loop
from loops.triggers import Trigger
from loops.user_errors.near_names import did_you_mean

__all__ = ["MonitorHook"]


class MonitorHook(Hook):
    """Base class of hooks that act on one metric. Override `on_value`.

    Each value counts once: an epoch whose logs do not hold the metric is skipped. The first value that is not NaN becomes the best one; NaN
    is never an improvement. If the metric cannot be found, one warning names the most similar logs. If you override `on_train_end`,
    `state_dict` or `load_state_dict`, call the method of this class too.

    Args:
        monitor: name of the metric in the logs, such as "val_loss".
        mode: "min", "max", or "auto": the direction of the metric object of that name in the task, "min" for names that contain "loss",
            else that of the Keras metric of that name.
        min_delta: smallest change that counts as an improvement; the sign is ignored.
        best: value to beat from the beginning; None: the first value becomes the best.
        at: "epoch" reads the logs of every epoch, as Keras does; "evaluation" acts whenever an evaluation, at any cadence, has produced the
            metric.

    Raises:
        ValueError: if `at` is neither; before the first step, if the direction of `monitor` is unknown; if a value is not a single number.
    """

    every: Trigger | str | None = None

    def __init__(self, monitor: str, *, mode: Direction, min_delta: float = 0.0, best: float | None = None, at: At = "epoch"):
        if mode not in ("auto", "min", "max"):
            warnings.warn(f"{type(self).__name__} knows the modes 'auto', 'min' and 'max', not {mode!r}; it takes 'auto'.", stacklevel=3)
            mode = "auto"
        if at not in ("epoch", "evaluation"):
            raise ValueError(f"{type(self).__name__} can look at='epoch' or at='evaluation', not at={at!r}.")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(min_delta)
        self.at = at
        self.best = best
        self._direction: str | None = None if mode == "auto" else mode
        self._seen = False
        self._reported = False

    def on_value(self, loop: Loop, value: float) -> None:
        """Called with each new value of the metric."""
        raise NotImplementedError(f"{type(self).__name__} has to define on_value(self, loop, value).")

    def before_first_step(self, loop: Loop) -> None:
        if self.monitor and self.needs_direction:
            self._find_direction(loop)

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        if self.at == "epoch" and (value := self.fresh_value(loop, logs)) is not None:
            self.on_value(loop, value)

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        if self.at == "evaluation" and (self.monitor in logs or self.monitor.startswith(f"{name}_")):
            value = self.fresh_value(loop, logs)
            if value is not None:
                self.on_value(loop, value)

    def on_train_end(self, loop: Loop) -> None:
        if not self._seen and not self._reported and loop.outcome == "finished" and loop.progress.epoch_ended:
            warnings.warn(f"{type(self).__name__} never saw {self.monitor!r}: whenever it looked, no finite value was there.", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seen": self._seen, "reported": self._reported}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self._seen, self._reported = state["best"], state["seen"], state["reported"]

    def fresh_value(self, loop: Loop, logs: Mapping[str, Any]) -> float | None:
        """The value of the metric in `logs`; None if it is missing, with a warning the first time."""
        value = logs.get(self.monitor)
        if value is None:
            # Do not warn if the metric belongs to an evaluation that this epoch does not run.
            prefixes = [f"{name}_" for name in _evaluations(loop)]
            waits = any(self.monitor.startswith(p) and not any(k.startswith(p) for k in logs) for p in prefixes)
            if not self._seen and not waits:
                self._report_missing(logs)
            return None
        if np.ndim(value) > 0:
            raise ValueError(
                f"{type(self).__name__} follows a single number, but {self.monitor!r} has the shape {np.shape(value)}; monitor another "
                "metric, or give this one an average."
            )
        self._seen = True
        self._find_direction(loop)
        return float(value)

    @property
    def needs_direction(self) -> bool:
        """Whether the hook asks if values have improved."""
        return True

    def _find_direction(self, loop: Loop) -> None:
        if self._direction is None:
            self._direction = direction_of(self.monitor, loop)
            if self._direction is None:
                raise ValueError(
                    f"{type(self).__name__} cannot tell whether {self.monitor!r} should go up or down; pass mode='max' if higher is "
                    f"better, mode='min' if lower is.{did_you_mean(self.monitor, _names_of_logs(loop))}"
                )

    def is_improvement(self, value: float, reference: float | None) -> bool:
        """True if `value` is better than `reference` by more than `min_delta`. Any number is better than None; NaN is never better."""
        if math.isnan(value):
            return False
        if reference is None:
            return True
        # Keras compares metrics in its default float type; comparing in the same type gives the same decision down to the last bit.
        as_float = np.dtype(keras.config.floatx()).type
        if self._direction == "max":
            return bool(as_float(value - self.min_delta) > as_float(reference))
        return bool(as_float(value + self.min_delta) < as_float(reference))

    def _report_missing(self, known: Iterable[str]) -> None:
        if self._reported:
            return
        self._reported = True
        near = difflib.get_close_matches(self.monitor, known, n=3, cutoff=0.5)
        names = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}."
        warnings.warn(f"{type(self).__name__} waits for the metric {self.monitor!r}, which is not in the logs; {names}", stacklevel=4)


# Usual abbreviations of Keras's metric classes.
_ABBREVIATIONS = {
    "acc": "accuracy",
    "mae": "meanabsoluteerror",
    "mape": "meanabsolutepercentageerror",
    "mse": "meansquarederror",
    "msle": "meansquaredlogarithmicerror",
    "rmse": "rootmeansquarederror",
}


def direction_of(monitor: str, loop: Loop) -> str | None:
    """Whether lower ("min") or higher ("max") values of a metric are better; None if that is unknown."""
    name = monitor
    for evaluation in _evaluations(loop) or ["val"]:
        name = name.removeprefix(f"{evaluation}_")
    # In models with several outputs Keras prefixes a metric's name with that of its output.
    named = [(m.name, _private_api.direction_of_metric(m)) for m in _metrics_of(loop) if m.name == name or name.endswith(f"_{m.name}")]
    known = [(metric, direction) for metric, direction in named if direction]
    directions = {direction for metric, direction in known if metric == name} or {direction for _, direction in known}
    if len(directions) == 1:
        return "max" if directions == {"up"} else "min"
    if "loss" in name:
        return "min"
    plain = name.replace("_", "").lower()
    plain = _ABBREVIATIONS.get(plain, plain)
    for attribute in dir(keras.metrics):
        kind = getattr(keras.metrics, attribute)
        if attribute.lower() == plain and isinstance(kind, type):
            try:
                # An explicit name leaves Keras's counter of unnamed metrics as it is.
                direction = _private_api.direction_of_metric(kind(name=name))
            except TypeError:
                continue
            return None if direction is None else "max" if direction == "up" else "min"
    return None


def _metrics_of(loop: Loop) -> list[Any]:
    found, todo = [], list(loop.task.tracked.metrics)
    while todo:
        metric = todo.pop()
        found.append(metric)
        # Keras wraps the metrics of `compile` in one metric that holds them.
        todo.extend(getattr(metric, "metrics", None) or [])
    return found


def _names_of_logs(loop: Loop) -> list[str]:
    """Names that the logs may have, as far as the metrics say it."""
    names = [metric.name for metric in _metrics_of(loop)]
    return [*names, *(f"{evaluation}_{name}" for evaluation in _evaluations(loop) for name in names)]


def _evaluations(loop: Loop) -> list[str]:
    names = {*loop.evaluations, *(hook.evaluation for hook in loop.hooks if hook.evaluation is not None)}
    return sorted(names, key=len, reverse=True)
