"""Describes the settings of an optimizer, also where Keras's `get_config` cannot: with a schedule or function that has none."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from loops import _private_api
from loops.tasks.learning_rates import innermost, is_function, name_of

__all__ = ["config_of"]


class _NoSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step: Any) -> Any:
        return 0.0

    def get_config(self) -> dict[str, Any]:
        return {}


def config_of(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    """The settings of an optimizer, to compare and to show; `get_config()` fails if its schedule has none, as many in tutorials.

    Returns:
        `optimizer.get_config()`. Where a schedule or function gives the rate, "learning_rate" is a dict that describes it: by its own
        settings if it has `get_config`, else by its name.

    Example:
        >>> config_of(keras.optimizers.SGD(lambda: 0.5))["learning_rate"]
        {'name': '<lambda>'}
    """
    inner = innermost(optimizer)
    setting = _private_api.learning_rate_setting(inner)
    if not is_function(setting):
        return dict(optimizer.get_config())
    inner.learning_rate = _NoSchedule()
    try:
        config = dict(optimizer.get_config())
    finally:
        inner.learning_rate = setting
    return {**config, "learning_rate": _config_of_schedule(setting)}


def _config_of_schedule(setting: Any) -> dict[str, Any]:
    if isinstance(setting, keras.optimizers.schedules.LearningRateSchedule):
        with contextlib.suppress(NotImplementedError, TypeError, ValueError):
            return dict(keras.optimizers.schedules.serialize(setting))
    return {"name": name_of(setting)}
