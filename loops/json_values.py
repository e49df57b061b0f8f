"""Encodes the values that a run keeps (numbers, arrays, NaN) as JSON, and decodes them, with their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["decode", "encode", "flattened"]


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by names with dots between the levels.

    Example:
        >>> flattened({"epochs": 3, "optimizer": {"name": "sgd"}})
        {'epochs': 3, 'optimizer.name': 'sgd'}
    """
    out: dict[str, Any] = {}
    for name, value in mapping.items():
        out.update(flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return out


def encode(value: Any) -> Any:
    """A value as `json.dumps` takes it.

    Args:
        value: None, a bool, a str, a number, an array or tensor of numbers, or a list, tuple (becomes a list) or dict of such.
            Anything else becomes a text.

    Example:
        >>> import json
        >>> text = json.dumps(encode({"loss": 0.5, "recall": np.array([0.25, np.nan], "float32"), "count": np.int64(3)}))
        >>> decode(json.loads(text))
        {'loss': 0.5, 'recall': array([0.25,  nan], dtype=float32), 'count': np.int64(3)}
    """
    if value is None or type(value) in (bool, str, int, float):
        return value
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if isinstance(value, dict):
        return {"items": [[encode(k), encode(v)] for k, v in value.items()]}
    array = np.asarray(value)
    # Other objects have the kind "O" as arrays. bfloat16 and similar types have "V", as have records, which have names.
    if array.dtype.kind not in "biufV" or array.dtype.names:
        return str(value)
    return {"array": array.tolist(), "dtype": array.dtype.name, "scalar": isinstance(value, np.generic)}


def decode(value: Any) -> Any:
    """The value from which `encode` made this one."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "items" in value:
        return {decode(k): decode(v) for k, v in value["items"]}
    array = np.asarray(value["array"], value["dtype"])
    return array[()] if value["scalar"] else array
