"""Checks the names that `compile` was given. Keras looks losses and metrics up when the first batch comes, and blames neither by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.user_errors.near_names import did_you_mean
from loops.user_errors.reasons import reason_of

__all__ = ["check_compile_names", "check_loss", "optimizer_named"]

_SHORT = ("mse", "mae", "mape", "msle", "kld", "bce", "bfce")
_BY_OUTPUT = {"loss": ("crossentropy", "ce"), "metric": ("accuracy", "acc")}  # which one Keras takes depends on the outputs


def check_compile_names(model: keras.Model) -> None:
    """Checks that Keras knows the losses and metrics that a compiled model has by name.

    Raises:
        ValueError: if it does not know one.
    """
    losses, metrics = _private_api.given_to_compile(model)
    for name in losses:
        _check(name, "loss", keras.losses.get, keras.losses)
    for name in metrics:
        _check(name, "metric", keras.metrics.get, keras.metrics)


def check_loss(loss: Any) -> None:
    """Checks the first argument of `Task.compute_loss`.

    Raises:
        ValueError: if it is a name that Keras does not know.
        TypeError: if it is no loss.
    """
    if isinstance(loss, str):
        _check(loss, "loss", keras.losses.get, keras.losses, who="compute_loss was given")
    elif loss is None or not callable(loss):
        given = "a tensor" if tf.is_tensor(loss) else type(loss).__name__
        raise TypeError(f"compute_loss takes (loss_fn, y, y_pred): a loss, its name or a function first; got {given}.")


def optimizer_named(optimizer: Any) -> Any:
    """The optimizer itself, if it is no name that Keras does not know.

    Raises:
        ValueError: if it is.
    """
    if isinstance(optimizer, str):
        _check(optimizer, "optimizer", keras.optimizers.get, keras.optimizers)
    return optimizer


def _check(name: str, kind: str, get: Callable[[str], Any], home: Any, who: str = "The model was compiled with") -> None:
    if name.lower() in _BY_OUTPUT.get(kind, ()):
        return
    try:
        get(name)
    except ValueError as error:
        raise ValueError(
            f"{who} the {kind} {name!r}, which Keras does not know ({reason_of(error)}); give its right name, or an object."
            f"{did_you_mean(name, _names_in(kind, home))}"
        ) from None


def _names_in(kind: str, home: Any) -> list[str]:
    """What Keras knows, short names first."""
    names = [one for one in dir(home) if not one.startswith("_") and one not in ("get", "serialize", "deserialize", "schedules")]
    if kind == "optimizer":
        return [one.lower() for one in names]
    return [*_SHORT, *_BY_OUTPUT[kind], *names]
