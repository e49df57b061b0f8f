"""What TensorBoard shows of a model: its weights by name, a weight as a picture, its layers as JSON."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

__all__ = ["layers_as_json", "named_weights", "picture"]

_LARGEST_PICTURE = 4_000_000  # pixels; a picture of a larger matrix, such as an embedding, shows nothing useful


def named_weights(tracked: Any) -> dict[str, npt.NDArray[Any]]:
    """Copies all weights of a task, those included that a model owns directly and not through a layer.

    Args:
        tracked: what belongs to the task, a `loops.tasks.tracking.Tracked`.

    Returns:
        Path -> array, each weight once, in the order of the models; a number distinguishes weights with the same path.
    """
    owned = [w for model in tracked.layers for w in (model.weights if isinstance(model, keras.layers.Layer) else model.variables)]
    arrays: dict[str, npt.NDArray[Any]] = {}
    for weight in {id(w): w for w in [*owned, *(v for v in tracked.model_variables() if v.trainable)]}.values():
        path = getattr(weight, "path", None) or weight.name.removesuffix(":0")
        names = (path if i == 0 else f"{path}_{i}" for i in range(len(arrays) + 1))
        arrays[next(name for name in names if name not in arrays)] = keras.ops.convert_to_numpy(weight)
    return arrays


def picture(weight: npt.ArrayLike) -> npt.NDArray[np.float32] | None:
    """A weight as a grey image, scaled from its smallest value to its largest.

    Args:
        weight: any shape. A vector becomes one row; a matrix is turned so that it is wide; kernels [height, width, inputs, outputs] are
            tiled, with inputs from top to bottom and outputs from left to right.

    Returns:
        Values from 0 to 1, shape [height, width], or None if the weight has more than four dimensions or millions of values.

    Example:
        >>> picture([[1.0], [2.0], [3.0]]).tolist()
        [[0.0, 0.5, 1.0]]
    """
    array = np.squeeze(np.asarray(weight, np.float32))
    if not array.size or array.size > _LARGEST_PICTURE or array.ndim > 4:
        return None
    finite = array[np.isfinite(array)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    array = np.nan_to_num((array - low) / (high - low) if high > low else array * 0.0 + 0.5, posinf=1.0, neginf=0.0)
    if array.ndim < 2:
        return array.reshape(1, -1)
    if array.ndim == 2:
        return array.T if array.shape[0] > array.shape[1] else array
    kernel = array[:, :, None, :] if array.ndim == 3 else array
    tiles = np.pad(kernel, [(0, 1), (0, 1), (0, 0), (0, 0)])  # a black line between tiles
    height, width, inputs, outputs = tiles.shape
    return tiles.transpose(2, 0, 3, 1).reshape(inputs * height, outputs * width)


def layers_as_json(model: Any) -> str | None:
    """The configuration of a model as JSON; None if Keras cannot list its layers."""
    try:
        text = str(model.to_json())
    except Exception:  # to_json calls users' code, whose errors must not end the training here
        return None
    return text if "layers" in json.loads(text).get("config", {}) else None
