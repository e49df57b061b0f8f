"""Reads many variables in one call.

Each read of a single variable from Python is an operation of its own: it releases Python's interpreter lock, and then has to wait for it
behind the threads that write files. For a small model that takes as long as a hundred steps of training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops.tasks.replicas import local_variables

__all__ = ["VariableReads"]

_MOST_PACKED = 16_384  # elements of a variable that is copied once more, to be fetched together with others
_PACKED_TYPES = ("float32", "float64", "float16", "bfloat16", "int32", "int64", "uint32", "bool")  # all devices can join these


class VariableReads:
    """Reads the same variables again and again, by compiled functions.

    Small variables of one type come in one array, of which each gets its part: a fetch of its own costs more than the values do.

    Args:
        variables: Keras or TensorFlow variables. Of a variable with a copy on each replica, the first copy is read.
        watched: the variables of which `finite` tells whether they are finite; None: `variables`.

    Example:
        >>> import keras
        >>> reads = VariableReads([keras.Variable([1.0, 2.0]), keras.Variable([3], dtype="int32")])
        >>> reads.arrays()
        [array([1., 2.], dtype=float32), array([3], dtype=int32)]
        >>> reads.finite()
        [True, True]
    """

    def __init__(self, variables: Sequence[Any], watched: Sequence[Any] | None = None):
        self._given, self._given_watched = list(variables), list(variables if watched is None else watched)
        self._variables = [local_variables([v])[0] for v in self._given]
        self._watched = [local_variables([v])[0] for v in self._given_watched]
        packed: dict[str, list[int]] = {}
        for i, v in enumerate(self._variables):
            small = v.dtype.name in _PACKED_TYPES and v.shape.is_fully_defined() and math.prod(v.shape) <= _MOST_PACKED
            packed.setdefault(v.dtype.name if small else f"variable {i}", []).append(i)
        self._packs = list(packed.values())

    @functools.cached_property
    def _values(self) -> Any:
        return tf.function(self._read, autograph=False).get_concrete_function()

    @functools.cached_property
    def _finite(self) -> Any:
        return tf.function(self._are_finite, autograph=False).get_concrete_function()

    @functools.cached_property
    def _both(self) -> Any:
        return tf.function(lambda: (self._read(), self._are_finite()), autograph=False).get_concrete_function()

    def of(self, variables: Sequence[Any], watched: Sequence[Any] | None = None) -> bool:
        """Whether this object reads, and watches, exactly these variables."""
        asked = [*variables, *(variables if watched is None else watched)]
        known = [*self._given, *self._given_watched]
        return len(self._given) == len(variables) and len(known) == len(asked) and all(a is b for a, b in zip(known, asked, strict=True))

    def arrays(self) -> list[np.ndarray]:
        """Copies of the values, in order."""
        return self._unpacked(self._values())

    def finite(self) -> list[bool]:
        """For each watched variable, whether all its elements are finite."""
        return np.asarray(self._finite()).tolist() if self._watched else []

    def arrays_and_finite(self) -> tuple[list[np.ndarray], list[bool]]:
        """What `arrays` and `finite` return, of the same moment, by one call."""
        packs, finite = self._both()
        return self._unpacked(packs), np.asarray(finite).tolist()

    def _read(self) -> list[Any]:
        values = [v.read_value() for v in self._variables]
        return [values[pack[0]] if len(pack) == 1 else tf.concat([tf.reshape(values[i], [-1]) for i in pack], 0) for pack in self._packs]

    def _unpacked(self, packs: Sequence[Any]) -> list[np.ndarray]:
        arrays: list[Any] = [None] * len(self._variables)
        for pack, tensor in zip(self._packs, packs, strict=True):
            array, begin = np.array(tensor), 0
            if len(pack) == 1:
                arrays[pack[0]] = array
                continue
            for i in pack:
                shape = self._variables[i].shape.as_list()
                end = begin + math.prod(shape)
                arrays[i], begin = array[begin:end].reshape(shape), end
        return arrays

    def _are_finite(self) -> Any:
        flags = [tf.reduce_all(tf.math.is_finite(v.read_value())) if v.dtype.is_floating else tf.constant(True) for v in self._watched]
        return tf.stack(flags) if flags else tf.constant([], tf.bool)
