"""Targets and predictions of a regressor: one number, or several, for each row. It knows no training."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from sklearn.exceptions import DataConversionWarning

__all__ = ["check_width", "checked_numbers", "of_width", "predicted"]


def checked_numbers(y: Any) -> np.ndarray:
    """Targets in Keras's float type, `[N]` or `[N, outputs]`; one column becomes `[N]`, which scikit-learn wants to be said.

    Raises:
        ValueError: for numbers that this type cannot hold.
    """
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        said = "A column-vector y was passed when a 1d array was expected. Please change the shape of y to (n_samples,), by y.ravel()."
        warnings.warn(said, DataConversionWarning, stacklevel=5)
        y = y[:, 0]
    with np.errstate(over="ignore"):
        y = y.astype(keras.config.floatx())
    if not np.isfinite(y).all():
        raise ValueError(f"y holds numbers that {y.dtype} cannot hold; rescale it.")
    return np.asarray(y)


def of_width(y: np.ndarray, width: tuple[int, ...]) -> np.ndarray:
    """The targets, if each row has as many numbers as those before.

    Raises:
        ValueError: if not.
    """
    if y.shape[1:] != width:
        raise ValueError(f"y has {_numbers(y.shape[1:])} for each row, but this regressor was begun with {_numbers(width)}.")
    return y


def check_width(units: int, width: tuple[int, ...]) -> None:
    """Refuses a model whose outputs would be broadcast against the targets.

    Raises:
        ValueError: if it does not give as many numbers as a target has.
    """
    if units != (expected := width[0] if width else 1):
        raise ValueError(f"The model has {units} output units, but y has {_numbers(width)} for each row: give its last layer {expected}.")


def predicted(outputs: np.ndarray, width: tuple[int, ...]) -> np.ndarray:
    """Outputs of a model as predictions in the shape of targets, float64."""
    if outputs.ndim > 2:
        raise ValueError(f"A regressor needs outputs [N] or [N, outputs]; the model gives {list(outputs.shape)}.")
    check_width(outputs.shape[1] if outputs.ndim > 1 else 1, width)
    return outputs.astype(np.float64).reshape(len(outputs), *width)


def _numbers(width: tuple[int, ...]) -> str:
    return f"{width[0]} numbers" if width else "1 number"
