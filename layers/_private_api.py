"""Every name of TensorFlow and Keras that `layers` uses though it is not public: one function for each, and what a release must have.

A release may rename these without notice. The functions are the only place to change then, and when `layers` is imported, `check` says
what the installed release does not have.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

__all__ = [
    "SeparateLosses",
    "all_layers",
    "autocast_scope",
    "check",
    "functional_class",
    "get_keras_mask",
    "has_default_build",
    "inner_layers",
    "kernel_attribute",
    "missing",
    "replica_variables",
    "set_keras_mask",
    "track",
    "who_lists_metrics",
]

# The releases that have these names, and that the tests run with.
SUPPORTED = {"TensorFlow": "2.21", "Keras": "3.15"}

_MASKING = "keras.src.backend.common.masking"
_VARIABLES = "keras.src.backend.common.variables"
_FUNCTIONAL = "keras.src.models.functional"
_UTILS = "keras.src.utils"

# Module or class -> its names, or the attributes of its objects.
NEEDED: dict[str, tuple[str, ...]] = {
    _MASKING: ("get_keras_mask", "set_keras_mask"),
    _VARIABLES: ("AutocastScope",),
    _FUNCTIONAL: ("Functional",),
    _UTILS: ("is_default",),
    "keras.src.utils.tracking.Tracker": ("add_to_store", "lock", "locked", "unlock"),
    "keras.Layer": ("_flatten_layers", "_layers", "_losses", "_tracker"),
    "tensorflow.python.distribute.values.DistributedVariable": ("values",),
}


# What is there.


def missing(names: Mapping[str, Sequence[str]] = NEEDED) -> list[str]:
    """Which of `names` the installed TensorFlow and Keras do not have.

    Example:
        >>> missing(), missing({"keras.Layer": ("_losses", "_made_up")})
        ([], ['keras.Layer._made_up'])
    """
    return [f"{home}.{name}" for home, wanted in names.items() for name in wanted if not _has(_resolved(home), name)]


def check() -> None:
    """Refuses a TensorFlow or Keras that lacks a needed name.

    Raises:
        ImportError: with a sentence that names what is missing, and the releases that have it.
    """
    if absent := missing():
        supported = " and ".join(f"{package} {version}" for package, version in SUPPORTED.items())
        raise ImportError(
            f"layers does not work with TensorFlow {tf.__version__} and Keras {keras.__version__}, which lack {', '.join(absent)}; "
            f"it supports {supported}."
        )


@functools.cache
def _resolved(path: str) -> Any:
    """The module or object of a dotted path, None if there is none."""
    try:
        return importlib.import_module(path)
    except ImportError:
        home, _, name = path.rpartition(".")
        return getattr(_resolved(home), name, None) if home else None


def _has(owner: Any, name: str) -> bool:
    if hasattr(owner, name):
        return True
    # Attributes that methods give to an object. Making an object to see them would count Keras's names on.
    return isinstance(owner, type) and any(name in _names_in(method) for kind in owner.__mro__ for method in vars(kind).values())


def _names_in(method: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
    return () if code is None else code.co_names


check()  # before any other module of this package uses one of the names


# Models and layers.


def functional_class() -> Any:
    """The class of `keras.Model(inputs, outputs)`."""
    return _resolved(_FUNCTIONAL).Functional


class SeparateLosses:
    """Mixin in front of a Keras layer that keeps a list of losses for each value of `_losses_key()`.

    Keras's own code for losses works on the attribute `_losses`. When that is another list for each replica, replicas cannot see or
    clear each other's losses.
    """

    def _losses_key(self) -> int:
        """Names the list that is in use now."""
        raise NotImplementedError

    @property
    def _losses(self) -> list[Any]:
        return self.__dict__.setdefault("_losses_of_replicas", {}).setdefault(self._losses_key(), [])

    @_losses.setter
    def _losses(self, losses: list[Any]) -> None:
        self.__dict__.setdefault("_losses_of_replicas", {})[self._losses_key()] = losses


def track(layer: Any, kind: str, item: Any) -> None:
    """Makes a metric or a layer part of `layer`. Keras forbids this for a layer that is built; here it is allowed.

    Args:
        layer: the layer that has it from now on.
        kind: "metrics" or "layers".
        item: the metric or layer.
    """
    tracker = layer._tracker
    locked = tracker.locked
    tracker.unlock()
    tracker.add_to_store(kind, item)
    if locked:
        tracker.lock()


def all_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layer and all layers inside of it, at any depth."""
    return list(layer._flatten_layers())


def inner_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside of a layer."""
    return list(layer._layers)


def who_lists_metrics(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The outermost layer that is putting together its `metrics` just now, if it asks `layer`, which calls this, for a part of them.

    A layer knows nothing of those around it, and Keras asks from the outside to the inside.
    """
    frame, found = sys._getframe(1), layer
    while frame is not None and (frame.f_code.co_name == "metrics" or frame.f_code.co_name.startswith("<")):  # "<listcomp>"
        asking = frame.f_locals.get("self")
        found = asking if isinstance(asking, keras.layers.Layer) else found
        frame = frame.f_back  # type: ignore[assignment]
    return found


def kernel_attribute(layer: keras.layers.Layer) -> str | None:
    """The attribute that holds a layer's kernel as a variable; None if there is none.

    In `Dense` and `EinsumDense` this is `_kernel`: their public `kernel` is a property that adds LoRA's matrices.
    """
    variables = {name for name, value in vars(layer).items() if isinstance(value, keras.Variable)}
    return next((name for name in ("_kernel", "kernel") if name in variables), None)


def has_default_build(kind: type[keras.layers.Layer]) -> bool:
    """Whether a class of layers leaves `build` to Keras."""
    return bool(_resolved(_UTILS).is_default(kind.build))


# Calls: masks, precision, replicas.


def get_keras_mask(tensor: Any) -> Any:
    """The mask that a tensor carries, or None."""
    return _resolved(_MASKING).get_keras_mask(tensor)


def set_keras_mask(tensor: Any, mask: Any) -> None:
    """Lets a tensor carry a mask to the layer that it goes to."""
    _resolved(_MASKING).set_keras_mask(tensor, mask)


def autocast_scope(dtype: str | None) -> Any:
    """Context in which variables are read in another dtype, as in a call of a Keras layer; None reads them in their own."""
    return _resolved(_VARIABLES).AutocastScope(dtype)


def replica_variables(variable: keras.Variable) -> list[Any] | None:
    """The TensorFlow variables of all replicas, of a variable that was made in a strategy's scope; None for any other."""
    parts = getattr(variable.value, "values", None)
    return None if parts is None else list(parts)
