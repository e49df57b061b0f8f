"""The logs that a model's own step returns, as scalars that a program can carry out, and as Keras reports them. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["StepLogs", "flat_logs"]

_MOST_ELEMENTS = 1024


class StepLogs:
    """How the logs of one kind of step are packed. Keras takes those of the last batch: numbers as floats, vectors and matrices as arrays.

    Attributes:
        are_results: whether they are the results of the model's metrics, which are read when they are needed.

    Example:
        >>> logs = StepLogs()
        >>> sorted(logs.packed({"loss": tf.constant(2.0), "f1": tf.constant([0.5, 1.0])}))
        ['f1[0]', 'f1[1]', 'loss']
        >>> logs.unpacked({"loss": 2.0, "f1[0]": 0.5, "f1[1]": 1.0})
        {'loss': 2.0, 'f1': array([0.5, 1. ], dtype=float32)}
    """

    def __init__(self) -> None:
        self.are_results = True
        self._groups: dict[str, str] = {}
        self._arrays: dict[str, tuple[tuple[int, ...], Any]] = {}
        self._elements: dict[str, tuple[str, int]] = {}

    def packed(self, logs: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """Name -> scalar; an array becomes one scalar for each of its elements.

        Args:
            logs: what the step returned, symbolic; a value may be a dict of values.

        Raises:
            ValueError: for text, for an array whose shape is not known before the step runs, and for a large one.
        """
        self._groups = {name: group for group, value in logs.items() if isinstance(value, Mapping) for name in flat_logs(value)}
        self._arrays, self._elements = {}, {}
        scalars: dict[str, tf.Tensor] = {}
        for name, value in flat_logs(logs).items():
            shape = _checked_shape(name, value)
            if not shape:
                scalars[name] = value
                continue
            self._arrays[name] = shape, value.dtype.as_numpy_dtype
            for i, element in enumerate(tf.unstack(tf.reshape(value, [-1]))):
                scalars[f"{name}[{i}]"] = element
                self._elements[f"{name}[{i}]"] = name, i
        return scalars

    def unpacked(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """The logs of which `packed` made these scalars; those that a step nested are nested."""
        logs: dict[str, Any] = {}
        for name, value in scalars.items():
            array, i = self._elements.get(name, (name, 0))
            group = self._groups.get(array)
            place = logs if group is None else logs.setdefault(group, {})  # Keras sorts nested logs by the names of the outer dict
            if name in self._elements:
                shape, dtype = self._arrays[array]
                place.setdefault(array, np.zeros(shape, dtype)).reshape(-1)[i] = value
            else:
                place[name] = value
        return logs


def flat_logs(logs: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Logs without nesting, as tensors."""
    out: dict[str, tf.Tensor] = {}
    for name, value in logs.items():
        out.update(flat_logs(value) if isinstance(value, Mapping) else {name: tf.convert_to_tensor(value)})
    return out


def _checked_shape(name: str, value: tf.Tensor) -> tuple[int, ...]:
    if not (value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool):
        raise ValueError(f"The model's own step returned {name!r} of type {value.dtype.name}; a log is a number or an array of numbers.")
    if not value.shape.is_fully_defined():
        raise ValueError(
            f"The model's own step returned {name!r} with shape {value.shape}, which depends on the batch; a log is a number or an array "
            "of a fixed shape. Reduce it to one."
        )
    if value.shape.num_elements() > _MOST_ELEMENTS:
        raise ValueError(
            f"The model's own step returned {name!r} with shape {value.shape}; an array in the logs has at most {_MOST_ELEMENTS} elements. "
            "Reduce it, or hand it out with loops.Collect in the eval_step of a Task."
        )
    return tuple(value.shape)
