"""Says how the scalars that a step returns are reduced over steps and replicas, and turns results into plain numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

__all__ = ["Collect", "Last", "Mean", "Reduction", "Sum", "to_floats"]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A scalar, and by its class the way in which it is reduced over steps and replicas.

    Attributes:
        value: scalar tensor.
        weight: scalar tensor, 0 or more. None is 1; for `Mean` it is `Task.batch_size`, the number of examples in the batch.
    """

    value: Any
    weight: Any = None


class Mean(Reduction):
    """A weighted mean over steps and replicas: `sum(weight * value) / sum(weight)`.

    Without `weight` it is weighted by `Task.batch_size`: the number of examples, unless the task counts something else there. A `weight` of
    its own changes what is logged, not the update; a loss over tokens also needs a `batch_size` that counts tokens, so that replicas weigh
    alike. Weight 0 means absent in this step.
    """


class Sum(Reduction):
    """A sum over steps and replicas. Weight 0 means absent in this step."""


class Last(Reduction):
    """The value of the last step, the mean over its replicas, weighted by their examples. Weight 0 means absent in this step."""


@dataclasses.dataclass(frozen=True)
class Collect:
    """A tensor `[B, ...]` that `eval_step` returns for `eval_end`, which gets those of all batches as one array `[N, ...]`."""

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
