"""Values that a run keeps (numbers, arrays, NaN) as JSON and back, with their types."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["from_json", "to_json"]


def to_json(value: Any) -> Any:
    """A value as `json.dumps` takes it.

    Args:
        value: None, a bool, a str, a number, an array or tensor of numbers, or a list, tuple (becomes a list) or dict of such.
            Anything else becomes a text.

    Example:
        >>> import json
        >>> text = json.dumps(to_json({"loss": 0.5, "recall": np.array([0.25, np.nan], "float32"), "count": np.int64(3)}))
        >>> from_json(json.loads(text))
        {'loss': 0.5, 'recall': array([0.25,  nan], dtype=float32), 'count': np.int64(3)}
    """
    if value is None or type(value) in (bool, str, int, float):
        return value
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {"items": [[to_json(k), to_json(v)] for k, v in value.items()]}
    array = np.asarray(value)
    # Kinds: what `np.asarray` makes of other objects has the kind "O"; bfloat16 and its like have "V" and no complex part.
    if array.dtype.kind not in "biufV" or array.dtype.names:
        return str(value)
    return {"array": array.tolist(), "dtype": array.dtype.name, "scalar": isinstance(value, np.generic)}


def from_json(value: Any) -> Any:
    """The value that `to_json` was given."""
    if isinstance(value, list):
        return [from_json(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "items" in value:
        return {from_json(k): from_json(v) for k, v in value["items"]}
    array = np.asarray(value["array"], value["dtype"])
    return array[()] if value["scalar"] else array
