"""The numbers that a logged value consists of, for hooks that can write scalars only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["numbers"]

_LARGEST_VECTOR = 100  # elements of a metric that get a name each


def numbers(name: str, value: Any) -> Iterable[tuple[str, float]]:
    """Names and values: one for a scalar, one for each element of a short vector, none for other arrays.

    Example:
        >>> list(numbers("recall", np.array([0.25, 1.0])))
        [('recall/0', 0.25), ('recall/1', 1.0)]
    """
    array = np.asarray(value)
    if array.size == 1:
        yield name, float(array.reshape(()))
    elif array.ndim == 1 and array.size <= _LARGEST_VECTOR:
        for i, element in enumerate(array.tolist()):
            yield f"{name}/{i}", float(element)
