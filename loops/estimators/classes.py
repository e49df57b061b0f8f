"""Classes of a classifier: labels as a model is trained on them, and a model's outputs as probabilities. It knows no training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

__all__ = [
    "check_known",
    "checked_labels",
    "codes_of",
    "found_in",
    "most_likely",
    "one_hot",
    "probabilities",
    "target_for",
    "with_logits",
]


def checked_labels(y: Any) -> np.ndarray:
    """Labels as an array `[N]`.

    Raises:
        ValueError: if they are not labels of two or more classes, one for each example.
    """
    if (kind := type_of_target(y)) in ("multilabel-indicator", "multiclass-multioutput"):
        raise ValueError(f"Only one label for each example can be learnt; y is of type {kind}.")
    check_classification_targets(y)
    return column_or_1d(y, warn=True)


def found_in(y: np.ndarray, classes: Any) -> np.ndarray:
    """The classes of a classifier, sorted.

    Args:
        y: the labels that there are.
        classes: all that there will be, None: those in `y`.

    Raises:
        ValueError: if there is only one.
    """
    found = np.unique(y if classes is None else classes)
    if len(found) < 2:
        raise ValueError(
            f"A classifier can't be trained on one class: y is {found[0]!r} in every row. Rows whose sample_weight is 0 do not count."
        )
    return np.asarray(found)


def check_known(known: np.ndarray | None, classes: Any) -> None:
    """Checks what `partial_fit` got as `classes`.

    Args:
        known: the classes so far; None before the first call.
        classes: what it got.

    Raises:
        ValueError: if they are missing in the first call, or others in a later one.
    """
    if known is None and classes is None:
        raise ValueError("classes must be passed on the first call to partial_fit.")
    if known is not None and classes is not None and not np.array_equal(np.unique(classes), known):
        raise ValueError(f"classes {list(np.unique(classes))!r} are not those of the first call: {list(known)!r}.")


def codes_of(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The index in `classes` (sorted) of each label, int64 `[N]`.

    Raises:
        ValueError: for a label that is not among them.
    """
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    if (other := classes[codes] != y).any():
        raise ValueError(f"y holds {y[other][0]!r}, which is none of the classes {list(classes)!r} that this classifier was begun with.")
    return codes


def one_hot(codes: np.ndarray, classes: int) -> np.ndarray:
    """Rows with a 1 in the place of the class, `[N, classes]` in Keras's float type."""
    return np.eye(classes, dtype=keras.config.floatx())[codes]


def wants_codes(loss: Any) -> bool:
    """Whether a loss takes class indices instead of one-hot rows: one of Keras's sparse losses, or one of that kind of name."""
    loss = _only(loss)
    name = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", None) or type(loss).__name__
    return "sparse" in str(name).lower()


def with_logits(loss: Any) -> bool:
    """Whether a loss takes logits, so that the outputs of its model are logits."""
    loss = _only(loss)
    config = loss.get_config() if isinstance(loss, keras.losses.Loss) else {}
    return bool(config.get("from_logits", False))


def _only(loss: Any) -> Any:
    """The loss of a model with one output, which Keras also takes in a list or dict."""
    values = list(loss.values()) if isinstance(loss, dict) else loss
    return values[0] if isinstance(values, (list, tuple)) and len(values) == 1 else values


def target_for(codes: np.ndarray, classes: int, units: int, loss: Any) -> np.ndarray:
    """Labels as a model with that loss is trained on them.

    Args:
        codes: class indices `[N]`.
        classes: number of classes.
        units: outputs of the model for each row.
        loss: what the model was compiled with.

    Returns:
        `[N, 1]` of 0 and 1 for a model with one unit, indices `[N]` for a sparse loss, else one-hot rows `[N, classes]`.

    Raises:
        ValueError: if the model has not as many units as there are classes.
    """
    check_units(units, classes)
    if units == 1:
        return codes[:, None].astype(keras.config.floatx())
    return codes if wants_codes(loss) else one_hot(codes, classes)


def check_units(units: int, classes: int) -> None:
    """Refuses a model that cannot tell so many classes apart, or more.

    Raises:
        ValueError: if it does not fit.
    """
    if units != classes and not (units == 1 and classes == 2):
        also = ", or 1" if classes == 2 else ""
        raise ValueError(f"The model has {units} output units, but there are {classes} classes: give its last layer {classes} units{also}.")


def probabilities(outputs: np.ndarray, classes: int, *, logits: bool) -> np.ndarray:
    """Probabilities `[N, classes]`, float32 or wider.

    Args:
        outputs: what the model gave: `[N, classes]`, or `[N, 1]` or `[N]` for the second of two classes.
        classes: number of classes.
        logits: whether these are logits. Else they are probabilities; rows that do not sum to 1 (a sigmoid for each class) are divided by
            their sum.

    Raises:
        ValueError: for outputs that are no probabilities.

    Example:
        >>> probabilities(np.array([[0.25], [1.0]], "float32"), 2, logits=False).tolist()
        [[0.75, 0.25], [0.0, 1.0]]
    """
    outputs = scores(outputs, classes)
    if outputs.dtype.itemsize < 4:
        outputs = outputs.astype(np.float32)
    if logits:
        if outputs.shape[1] == 1:
            outputs = np.concatenate([np.zeros_like(outputs), outputs], axis=1)
        weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))
    if outputs.min() < 0 or outputs.max() > 1 + 1e-5:
        raise ValueError(
            f"The model's outputs lie between {outputs.min():.4g} and {outputs.max():.4g}: these are no probabilities. Give the last layer "
            'a softmax or sigmoid, or the loss as an object with from_logits=True; "predict" needs neither.'
        )
    if outputs.shape[1] == 1:
        return np.concatenate([1 - outputs, outputs], axis=1)
    sums = outputs.sum(axis=1, keepdims=True)
    if not sums.all():
        raise ValueError("The model gives probability 0 to every class for some rows, so there is no distribution over classes.")
    return outputs if np.abs(sums - 1).max() <= 1e-5 else outputs / sums


def most_likely(outputs: np.ndarray, classes: int, *, logits: bool) -> np.ndarray:
    """The index of the class with the largest output, `[N]`; of two classes with one output, by which side of one half it lies."""
    outputs = scores(outputs, classes)
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > (0 if logits else 0.5)).astype(np.int64)
    return outputs.argmax(axis=1)


def scores(outputs: np.ndarray, classes: int) -> np.ndarray:
    """Outputs of a model as a table, one row an example, of one column or as many as there are classes.

    Raises:
        ValueError: if they have another shape.
    """
    table = outputs[:, None] if outputs.ndim == 1 else outputs
    if table.ndim != 2:
        raise ValueError(f"A classifier needs one output for each class, [N, {classes}]; the model gives {list(outputs.shape)}.")
    check_units(table.shape[1], classes)
    return table
