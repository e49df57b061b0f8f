"""How the scalars that a step returns are joined over steps and replicas, and how results become plain numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

__all__ = ["Collect", "Last", "Mean", "Reduction", "Sum", "to_floats"]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A scalar with the way in which it is joined over steps and replicas."""

    value: Any
    weight: Any = None


class Mean(Reduction):
    """A weighted mean. Without `weight` the weight is the number of examples in the batch; weight 0 means absent in this step."""


class Sum(Reduction):
    """A sum over steps and replicas. Weight 0 means absent in this step."""


class Last(Reduction):
    """The value of the last step; over replicas the mean. Weight 0 means absent in this step."""


@dataclasses.dataclass(frozen=True)
class Collect:
    """A tensor `[B, ...]` of an `eval_step`, of which `eval_end` gets the whole set as one array `[N, ...]`."""

    value: Any


def to_floats(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens nested logs, sorted by name as Keras sorts them; scalars become floats, other values arrays."""
    out: dict[str, Any] = {}
    for name, value in sorted(logs.items()):
        if isinstance(value, Mapping):
            out.update(to_floats(value))
            continue
        array = keras.ops.convert_to_numpy(value) if not isinstance(value, (float, int)) else np.asarray(value)
        out[name] = float(array) if array.size == 1 and array.ndim == 0 else array
    return out
