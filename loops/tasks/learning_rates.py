"""Reads, sets and scales the learning rates of a run, whether an optimizer was given a number or a schedule, with or without loss scaling.

This is no collection of schedules: Keras has those in `keras.optimizers.schedules`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from loops import _private_api

__all__ = ["CalledSchedule", "LearningRates", "ScaledSchedule", "innermost", "is_function", "multipliers_of", "name_of"]


@keras.saving.register_keras_serializable(package="tapeloops")
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a factor that can change during training: `rate(step) = schedule(step) * multiplier`.

    A multiplier of 1 changes no bit. The multiplier is a variable, so a compiled program sees a new value without a retrace.

    Args:
        schedule: the `keras.optimizers.schedules.LearningRateSchedule` to scale.
        multiplier: initial factor, a float.

    Example:
        >>> schedule = ScaledSchedule(keras.optimizers.schedules.ExponentialDecay(0.5, decay_steps=10, decay_rate=0.1))
        >>> schedule.multiplier.assign(0.5) is None
        False
        >>> float(schedule(0))
        0.25
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

    def get_config(self) -> dict[str, Any]:
        return {"schedule": keras.optimizers.schedules.serialize(self.schedule), "multiplier": _to_float(self.multiplier)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScaledSchedule:
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["multiplier"])


class CalledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A function without arguments, which Keras takes as a learning rate, as a schedule.

    Args:
        function: returns the rate.

    Example:
        >>> CalledSchedule(lambda: 0.5)(3)
        0.5
    """

    def __init__(self, function: Callable[[], Any]):
        self.function = function

    def __call__(self, step: Any) -> Any:
        return self.function()


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
        used = {}
        for name, rate in self.items():
            changed = self._before_change.get(name)
            used[name] = changed[1] if changed is not None and changed[0] == self._iterations(name) else rate
        if len(used) == 1:
            return {"learning_rate": next(iter(used.values()))}
        return {f"learning_rate_{name}": rate for name, rate in used.items()}

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
        """Wraps each `LearningRateSchedule`, or function, in a `ScaledSchedule`. Call it before tracing; calling it again changes nothing.

        The multiplier is kept where the optimizer's variables are (mirrored under a strategy).
        """
        for optimizer in self._optimizers.values():
            schedule = _private_api.learning_rate_setting(optimizer)
            if is_function(schedule) and not isinstance(schedule, ScaledSchedule):
                if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
                    schedule = CalledSchedule(schedule)
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
    # float() of a Keras variable fails under a strategy, .numpy() does not.
    return float(value.numpy() if hasattr(value, "numpy") else value)


def is_function(setting: Any) -> bool:
    """Whether a rate comes from a schedule or another function; else it is a number, which Keras keeps in a variable."""
    return callable(setting) and not isinstance(setting, keras.Variable)


def name_of(setting: Any) -> str:
    """The name of the function or of the schedule's class that gives a rate, scaled or not."""
    while isinstance(setting, (ScaledSchedule, CalledSchedule)):
        setting = setting.schedule if isinstance(setting, ScaledSchedule) else setting.function
    return str(getattr(setting, "__qualname__", type(setting).__name__))


def _describe(rate: Any) -> str:
    return f"the schedule {name_of(rate)}"
