"""Reads many variables in one call.

Each read of a single variable from Python is an operation of its own: it releases Python's interpreter lock, and then has to wait for it
behind the threads that write files. For a small model that takes as long as a hundred steps of training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops.tasks.replicas import local_variables

__all__ = ["VariableReads"]


class VariableReads:
    """Reads the same variables again and again, by compiled functions.

    Args:
        variables: Keras or TensorFlow variables. Of a variable with a copy on each replica, the first copy is read.

    Example:
        >>> import keras
        >>> reads = VariableReads([keras.Variable([1.0, 2.0]), keras.Variable([3], dtype="int32")])
        >>> reads.arrays()
        [array([1., 2.], dtype=float32), array([3], dtype=int32)]
        >>> reads.finite()
        [True, True]
    """

    def __init__(self, variables: Sequence[Any]):
        self._given = list(variables)
        self._variables = [local_variables([v])[0] for v in variables]

    @functools.cached_property
    def _values(self) -> Any:
        return tf.function(lambda: [v.read_value() for v in self._variables], autograph=False).get_concrete_function()

    @functools.cached_property
    def _finite(self) -> Any:
        return tf.function(self._are_finite, autograph=False).get_concrete_function()

    def of(self, variables: Sequence[Any]) -> bool:
        """Whether this object reads exactly these variables."""
        return len(self._given) == len(variables) and all(a is b for a, b in zip(self._given, variables, strict=True))

    def arrays(self) -> list[np.ndarray]:
        """Copies of the values, in order."""
        return [np.array(value) for value in self._values()]

    def finite(self) -> list[bool]:
        """For each variable, whether all its elements are finite."""
        return [bool(flag) for flag in np.asarray(self._finite())] if self._variables else []

    def _are_finite(self) -> Any:
        return tf.stack(
            [tf.reduce_all(tf.math.is_finite(v.read_value())) if v.dtype.is_floating else tf.constant(True) for v in self._variables]
        )
