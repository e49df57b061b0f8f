"""Reads, sets and scales the learning rates of a run, whether an optimizer was given a number or a schedule, with or without loss scaling.

This is no collection of schedules: Keras has those in `keras.optimizers.schedules`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.tasks.replicas import local_variables

__all__ = ["LearningRates", "ScaledSchedule", "innermost", "is_function", "multipliers_of", "name_of"]


# Arguments of Keras's schedules that are rates, not steps or ratios of rates.
_RATES = ("initial_learning_rate", "end_learning_rate", "warmup_target", "values")
_STEPS_COMPARED = (0, 1, 7, 100, 1_000, 10_000, 100_000, 1_000_000)


class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a factor that can change during training: `rate(step) = schedule(step) * multiplier`.

    A multiplier of 1 changes no bit. The multiplier is a variable, so a compiled program sees a new value without a retrace.

    It stands in for the schedule where Keras saves it: as its class it names that of the schedule, and as its arguments those of the
    schedule, with the rates in them multiplied. So a saved model goes on with the rates that it had, in a program without this library.

    Args:
        schedule: the `keras.optimizers.schedules.LearningRateSchedule` to scale.
        multiplier: initial factor, a float.

    Example:
        >>> schedule = ScaledSchedule(keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=10, decay_rate=0.1))
        >>> schedule.multiplier.assign(0.5) is None
        False
        >>> float(schedule(0)), schedule.get_config()["initial_learning_rate"]
        (0.25, 0.25)
    """

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, multiplier: float = 1.0):
        self.schedule = schedule
        # Keras gives an optimizer's own learning rate the same aggregation.
        self.multiplier = keras.Variable(
            float(multiplier), dtype="float32", trainable=False, aggregation="only_first_replica", name="learning_rate_multiplier"
        )

    def __call__(self, step: Any) -> Any:
        rate = keras.ops.convert_to_tensor(self.schedule(step))
        return keras.ops.multiply(rate, keras.ops.cast(self.multiplier, rate.dtype))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.schedule)

    def get_config(self) -> dict[str, Any]:
        config, multiplier = self.schedule.get_config(), _to_float(self.multiplier)
        if multiplier == 1.0:
            return config
        scaled = {**config, **{name: _times(config[name], multiplier) for name in _RATES if config.get(name) is not None}}
        with tf.init_scope():
            if not self._agrees_with(scaled):
                warnings.warn(
                    f"A model is saved whose learning rate follows {type(self.schedule).__name__}, scaled by {multiplier:g}. Which of its "
                    "arguments are rates is not known, so the factor is not in the file: a model loaded from it begins with the rates of "
                    "the schedule as it was given.",
                    stacklevel=2,
                )
                return config
        return scaled

    def _agrees_with(self, config: dict[str, Any]) -> bool:
        try:
            other = type(self.schedule).from_config(config)
            pairs = [(_to_float(self(step)), _to_float(other(step))) for step in _STEPS_COMPARED]
        except (TypeError, ValueError, KeyError):
            return False
        return all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-30) for a, b in pairs)


def _times(rate: Any, factor: float) -> Any:
    if isinstance(rate, (list, tuple)):
        return type(rate)(each * factor for each in rate)
    return rate * factor


def multipliers_of(optimizers: Iterable[keras.optimizers.Optimizer]) -> list[keras.Variable]:
    """The factors of scaled schedules. They are no part of what a step changes; `LearningRates.state_dict` has them."""
    settings = (_private_api.learning_rate_setting(innermost(optimizer)) for optimizer in optimizers)
    return [setting.multiplier for setting in settings if isinstance(setting, ScaledSchedule)]


class LearningRates:
    """The learning rate of each optimizer of a task, by the optimizer's name.

    A rate that was given as a number can be `set` and `scale`d. One that follows a schedule can be scaled, if `make_scalable` was called
    before the program was traced; it cannot be set.

    Args:
        optimizers: the optimizers by name, in the task's order. Of a `keras.optimizers.LossScaleOptimizer` the optimizer inside it counts.

    Example:
        >>> rates = LearningRates({"optimizer": keras.optimizers.SGD(0.5)})
        >>> rates.scale(0.5)
        {'optimizer': 0.25}
        >>> float(rates), rates["optimizer"]
        (0.25, 0.25)
    """

    def __init__(self, optimizers: Mapping[str, keras.optimizers.Optimizer]):
        self._optimizers = {name: innermost(optimizer) for name, optimizer in optimizers.items()}
        # Rate before the first change since the optimizer's last update: name -> (iterations at the change, rate).
        self._before_change: dict[str, tuple[int, float]] = {}
        self._scalable = False

    def followed_by(self, optimizers: Mapping[str, keras.optimizers.Optimizer]) -> LearningRates:
        """The learning rates of the optimizers that took the place of these.

        They are made scalable if these were. Until an optimizer has made an update, the rate to log is that of the one before.
        """
        rates, used = LearningRates(optimizers), self._used()
        rates._before_change = {name: (rates._iterations(name), used[name]) for name in rates if name in used}
        if self._scalable:
            rates.make_scalable()
        return rates

    def __len__(self) -> int:
        return len(self._optimizers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizers)

    def __getitem__(self, name: str) -> float:
        return _to_float(self._named(name).learning_rate)

    def __float__(self) -> float:
        """The rate of the only, or first, optimizer."""
        if not self._optimizers:
            raise ValueError("The task has no optimizer, so there is no learning rate; keep the optimizer as an attribute of the task.")
        return self[next(iter(self._optimizers))]

    def __repr__(self) -> str:
        return f"LearningRates({', '.join(f'{name}={rate:g}' for name, rate in self.items())})"

    def items(self) -> list[tuple[str, float]]:
        """Pairs of optimizer name and current rate."""
        return [(name, self[name]) for name in self]

    def logs(self) -> dict[str, float]:
        """The rates that the last steps used, under the names that Keras logs.

        A change since an optimizer's last update (by a hook that acted earlier at the same boundary) is left out: no step has used it yet.

        Returns:
            {"learning_rate": rate} for one optimizer, {"learning_rate_<name>": rate, ...} for several.
        """
        used = self._used()
        if len(used) == 1:
            return {"learning_rate": next(iter(used.values()))}
        return {f"learning_rate_{name}": rate for name, rate in used.items()}

    def _used(self) -> dict[str, float]:
        used = {}
        for name, rate in self.items():
            changed = self._before_change.get(name)
            used[name] = changed[1] if changed is not None and changed[0] == self._iterations(name) else rate
        return used

    def check_that_they_can_be_set(self, who: str) -> None:
        """Checks before training that each rate was given as a number.

        Args:
            who: what wants to set them, for the error.

        Raises:
            ValueError: if one was not, or there is no optimizer.
        """
        for name in self._select(None):
            setting = _private_api.learning_rate_setting(self._named(name))
            if not isinstance(setting, keras.Variable):
                raise ValueError(
                    f"{who} cannot set the learning rate of optimizer {name!r}, which follows {_describe(setting)}. Give the optimizer a "
                    "number as learning rate."
                )

    def set(self, value: float, name: str | None = None) -> None:
        """Sets the rate of the optimizer `name`, or of all.

        Args:
            value: the new learning rate, a finite number.
            name: name of one optimizer; None sets all.

        Raises:
            ValueError: if `value` is not finite, there is no optimizer, or a rate follows a schedule.
            KeyError: if there is no optimizer `name`.
        """
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"A learning rate has to be a finite number, got {value}.")
        names = self._select(name)
        for each in names:
            if is_function(schedule := _private_api.learning_rate_setting(self._named(each))):
                raise ValueError(
                    f"The learning rate of optimizer {each!r} follows {_describe(schedule)}, so it cannot be set "
                    f"to {value:g}. Give the optimizer a number as learning rate, or scale the schedule with `learning_rate.scale(factor)`."
                )
        for each in names:
            self._remember(each)
            self._named(each).learning_rate = value

    def scale(self, factor: float, *, minimum: float = 0.0, name: str | None = None) -> dict[str, float]:
        """Multiplies the rate of the optimizer `name`, or of all, by `factor`.

        Args:
            factor: a finite number of 0 or more.
            minimum: lowest rate to scale down to. A rate that is not above it stays as it is. It bounds a schedule's rate at this step;
                later the schedule may go lower.
            name: name of one optimizer; None scales all.

        Returns:
            The new rates of those that changed, by name.

        Raises:
            ValueError: if `factor` is not usable, there is no optimizer, or a rate comes from a schedule without `make_scalable`.
            KeyError: if there is no optimizer `name`.
        """
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(f"A learning rate can be scaled by a finite factor of 0 or more, got {factor}.")
        changed = {}
        for each in self._select(name):
            optimizer, rate = self._named(each), self[each]
            # Rates are float32 variables. A minimum of 0.1 equals a rate of 0.1 only if both are float32.
            if not rate > np.float32(minimum):
                continue
            new = max(rate * factor, minimum)
            if not is_function(schedule := _private_api.learning_rate_setting(optimizer)):
                self._remember(each)
                optimizer.learning_rate = new
            elif isinstance(schedule, ScaledSchedule):
                self._remember(each)
                multiplier = schedule.multiplier
                multiplier.assign(_to_float(multiplier) * (factor if new == rate * factor else new / rate))
            else:
                raise ValueError(
                    f"The learning rate of optimizer {each!r} follows {_describe(schedule)}, which cannot be scaled now; "
                    "call `loop.learning_rate.make_scalable()` in on_train_begin."
                )
            changed[each] = new
        return changed

    def make_scalable(self) -> None:
        """Wraps each `LearningRateSchedule` in a `ScaledSchedule`. Call it before tracing; calling it again changes nothing.

        The multiplier is kept where the optimizer's variables are (mirrored under a strategy).

        Raises:
            ValueError: if there is no optimizer, or a rate comes from a callable that is no `LearningRateSchedule`; then nothing changes.
        """
        settings = {name: _private_api.learning_rate_setting(self._named(name)) for name in self._select(None)}
        for name, setting in settings.items():
            if not isinstance(setting, (keras.Variable, keras.optimizers.schedules.LearningRateSchedule)):
                raise ValueError(
                    f"The learning rate of optimizer {name!r} follows {_describe(setting)}, which cannot be scaled during training. Give "
                    "the optimizer a number or a keras.optimizers.schedules.LearningRateSchedule."
                )
        self._scalable = True
        for name, optimizer in self._optimizers.items():
            schedule = settings[name]
            if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule) and not isinstance(schedule, ScaledSchedule):
                strategy = getattr(optimizer.iterations.value, "distribute_strategy", None)
                with strategy.scope() if strategy is not None else contextlib.nullcontext():
                    optimizer.learning_rate = ScaledSchedule(schedule)

    def state_dict(self) -> dict[str, Any]:
        """The multipliers of scaled schedules, and the rates before changes that no step has used yet, JSON-able.

        Rates given as numbers are not in it: they are variables of their optimizers, and saved with those.
        """
        schedules = {name: _private_api.learning_rate_setting(optimizer) for name, optimizer in self._optimizers.items()}
        multipliers = {name: _to_float(s.multiplier) for name, s in schedules.items() if isinstance(s, ScaledSchedule)}
        return {"multipliers": multipliers, "before_change": {name: list(pair) for name, pair in self._before_change.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; call it before tracing."""
        if state["multipliers"]:
            self.make_scalable()
        for name, multiplier in state["multipliers"].items():
            _private_api.learning_rate_setting(self._named(name)).multiplier.assign(multiplier)
        self._before_change = {name: (iterations, rate) for name, (iterations, rate) in state["before_change"].items()}

    def _named(self, name: str) -> keras.optimizers.Optimizer:
        if name not in self._optimizers:
            raise KeyError(f"There is no optimizer {name!r}; the task has {sorted(self._optimizers)}.")
        return self._optimizers[name]

    def _select(self, name: str | None) -> list[str]:
        if name is not None:
            self._named(name)
            return [name]
        float(self)  # raises if there is no optimizer
        return list(self._optimizers)

    def _iterations(self, name: str) -> int:
        return int(_to_float(self._named(name).iterations))

    def _remember(self, name: str) -> None:
        iterations = self._iterations(name)
        if self._before_change.get(name, (-1, 0.0))[0] != iterations:
            self._before_change[name] = (iterations, self[name])


def innermost(optimizer: Any) -> Any:
    """The optimizer inside loss scaling, whose rate counts."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _to_float(value: Any) -> float:
    # float() of a Keras variable fails under a strategy. Its numpy() takes two operations, each of which, right after an XLA program has
    # run, competes with the threads of that program.
    if isinstance(value, keras.Variable) and isinstance(local := local_variables([value])[0], tf.Variable):
        value = tf.raw_ops.ReadVariableOp(resource=local.handle, dtype=local.dtype)
    return float(value.numpy() if hasattr(value, "numpy") else value)


def is_function(setting: Any) -> bool:
    """Whether a rate comes from a schedule or another function; else it is a number, which Keras keeps in a variable."""
    return callable(setting) and not isinstance(setting, keras.Variable)


def name_of(setting: Any) -> str:
    """The name of the function or of the schedule's class that gives a rate, scaled or not."""
    while isinstance(setting, ScaledSchedule):
        setting = setting.schedule
    return str(getattr(setting, "__qualname__", type(setting).__name__))


def _describe(rate: Any) -> str:
    what = "schedule" if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else "function"
    return f"the {what} {name_of(rate)}"
