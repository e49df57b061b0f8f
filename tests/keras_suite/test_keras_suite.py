"""Keras's own tests of `fit`, `evaluate` and `predict`, run on ours; see `replaced.py`, and `expected.py` for those that differ."""

import unittest

import keras
import numpy as np

from tests.keras_suite import replaced
from tests.keras_suite.expected import EXPECTED, SAMPLE

CASES = replaced.test_cases()
globals().update(CASES)


def test_the_lists_name_tests_that_exist_and_the_list_of_differences_is_short():
    loader = unittest.TestLoader()
    names = {f"{name}.{method}" for name, case in CASES.items() for method in loader.getTestCaseNames(case)}
    assert set(EXPECTED) | SAMPLE <= names
    assert len(names) > 200 and len(EXPECTED) <= 15


def test_in_the_tests_the_three_methods_are_ours():
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, before = np.ones([4, 2]), dict(replaced.calls)
    model.fit(x, x[:, :1], verbose=0)
    model.evaluate(x, x[:, :1], verbose=0)
    model.predict(x, verbose=0)
    assert {name: count - before.get(name, 0) for name, count in replaced.calls.items()} == {"fit": 1, "evaluate": 1, "predict": 1}
