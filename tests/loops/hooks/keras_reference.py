"""Runs of `model.fit` to compare with, many of them with one model: Keras traces its train and test steps once for all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tests.loops.parity.harness import Outcome, assert_outcomes, keras_fit, loops_fit, train


class Reused:
    """Gives one model again and again, each time with the weights, seeds and optimizer state of a new one.

    Args:
        make: makes the compiled model.
    """

    def __init__(self, make: Callable[[], keras.Model]):
        self._make = make
        self._model: keras.Model | None = None
        self._initial: list[np.ndarray] = []

    def __call__(self) -> keras.Model:
        if self._model is None:
            self._model = self._make()
            self._model.optimizer.build(self._model.trainable_variables)
            self._initial = [v.numpy() for v in self._variables()]
        for variable, value in zip(self._variables(), self._initial, strict=True):
            variable.assign(value)
        return self._model

    def _variables(self) -> list[keras.Variable]:
        return [*self._model.variables, *self._model.optimizer.variables]


reused = functools.cache(Reused)


def assert_parity(make_model: Callable[[], keras.Model], data: Any, candidate: Callable[..., Any] = loops_fit, **arguments: Any):
    """As `harness.assert_parity`, with a model of Keras's side that all references of `make_model` share."""
    expected: Outcome = train(keras_fit, reused(make_model), data, **arguments)
    found: Outcome = train(candidate, make_model, data, **arguments)
    assert_outcomes(expected, found)
    return expected, found
