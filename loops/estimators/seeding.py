"""Seeds of estimators: where they come from, and making a model from one."""

from __future__ import annotations

import contextlib
import numbers
import random
import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from sklearn.utils import check_random_state

__all__ = ["seed_of", "seed_of_call", "seeded"]

_ONE_AT_A_TIME = threading.Lock()


def seed_of(random_state: Any) -> int:
    """The seed of a fit: an integer is the seed itself; else it is drawn, from NumPy's global state for None.

    Example:
        >>> seed_of(7), seed_of(np.random.RandomState(0)) == seed_of(np.random.RandomState(0))
        (7, True)
    """
    generator = check_random_state(random_state)
    if isinstance(random_state, numbers.Integral):
        return int(random_state)
    return int(generator.randint(np.iinfo(np.int32).max))


def seed_of_call(seed: int, call: int) -> int:
    """The seed for the order of the data in the call of that number that trains the same model; the first has the seed itself.

    So that many calls of `partial_fit` do not all read in one order.

    Example:
        >>> seed_of_call(3, 0), seed_of_call(3, 1) == seed_of_call(3, 2)
        (3, False)
    """
    return seed if call == 0 else int(np.random.SeedSequence([seed, call]).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """In its block a model is made as after `keras.utils.set_random_seed(seed)`; after it Python and NumPy draw on as if nothing had been.

    TensorFlow and the generator of `keras.random` keep the seed: their state before cannot be read. Threads take turns.
    """
    with _ONE_AT_A_TIME:
        python, numpy = random.getstate(), np.random.get_state()
        keras.utils.set_random_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
