"""What kind of thing a traced step may have read in Python, and how it is compared: for the walk in `python_inputs.py`."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import sys
import types
import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.base import Feed
from loops.tasks.learning_rates import ScaledSchedule

__all__ = ["NOTES_OF_KERAS", "InputKind", "is_of_keras", "is_plain", "is_users", "is_users_module", "kind_of"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), range, slice, tf.DType, tf.TensorShape, np.dtype, np.generic)
_LIBRARIES = frozenset({"tensorflow", "keras", "numpy", "scipy", "pandas", "torch", "jax", "PIL", "matplotlib", "h5py", "google", "absl"})
_INSTALLED = ("site-packages", "dist-packages")
_OF_PYTHON = frozenset({bool, int, float, complex, str, bytes, type(None)})
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, staticmethod, classmethod, property, functools.cached_property)
_OF_KERAS = (
    keras.layers.Layer,
    keras.optimizers.Optimizer,
    keras.metrics.Metric,
    keras.losses.Loss,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.optimizers.schedules.LearningRateSchedule,
)
# They are compared by identity alone: they lead back to the loop, or hold data.
_LEFT_ALONE = (
    tf.Tensor,
    tf.Variable,
    tf.TypeSpec,
    tf.Graph,
    tf.data.Dataset,
    tf.distribute.Strategy,
    types.ModuleType,
    BaseException,
    keras.KerasTensor,
    keras.callbacks.Callback,
    keras.utils.PyDataset,
    Feed,
)
# What Keras notes on its objects while it builds and runs them, and no step takes for constant. Layers and variables that they list are
# found by other attributes, or compared by `TraceChanges`.
NOTES_OF_KERAS = frozenset({
    "_auto_config", "_build_shapes_dict", "_call_signature", "_called", "_compiled_trainable_state", "_epoch_iterator",
    "_eval_epoch_iterator", "_flat_losses", "_flat_metrics", "_flat_weighted_metrics", "_inbound_nodes", "_initial_epoch",
    "_input_layers", "_inputs", "_jit_compile", "_layers_by_depth", "_lock", "_loss_ids", "_losses", "_losses_override", "_metrics",
    "_nodes", "_nodes_by_depth", "_non_trainable_variables", "_operations_by_depth", "_outbound_nodes", "_output_layers", "_outputs",
    "_parent_path", "_path", "_saved_model_arg_spec", "_saved_model_inputs_spec", "_tapeloops_tasks", "_tracked", "_tracker",
    "_trainable_variables", "_trainable_variables_indices", "_variables", "_y_pred_build_structure", "_y_true_build_structure", "built",
    "history", "output_names", "predict_function", "stop_evaluating", "stop_predicting", "stop_training", "test_function",
    "train_function",
})  # fmt: skip


class InputKind(enum.Enum):
    """How an object is compared, and whether the walk goes on into it."""

    PLAIN = enum.auto()
    ENUM = enum.auto()
    ARRAY = enum.auto()
    MAPPING = enum.auto()
    SEQUENCE = enum.auto()
    SET = enum.auto()
    FUNCTION = enum.auto()
    CLASS = enum.auto()
    KERAS = enum.auto()
    VARIABLE = enum.auto()
    POLICY = enum.auto()
    USERS = enum.auto()
    OURS = enum.auto()
    OTHER = enum.auto()


_kinds: weakref.WeakKeyDictionary[type, InputKind] = weakref.WeakKeyDictionary()


def kind_of(kind: type) -> InputKind:
    """The kind of the objects of a class, found once for each class."""
    known = _kinds.get(kind)
    if known is None:
        known = _kinds[kind] = _found(kind)
    return known


def _found(kind: type) -> InputKind:
    of_class: tuple[tuple[Any, InputKind], ...] = (
        (enum.Enum, InputKind.ENUM),
        (_PLAIN, InputKind.PLAIN),
        (np.ndarray, InputKind.ARRAY),
        (_FUNCTIONS, InputKind.FUNCTION),
        (type, InputKind.CLASS),
        (keras.DTypePolicy, InputKind.POLICY),
        (keras.Variable, InputKind.VARIABLE),
        (_OF_KERAS, InputKind.KERAS),
        ((dict, types.MappingProxyType, collections.UserDict), InputKind.MAPPING),
        ((list, tuple, collections.deque, collections.UserList), InputKind.SEQUENCE),
        ((set, frozenset), InputKind.SET),
        (_LEFT_ALONE, InputKind.OTHER),
    )
    if issubclass(kind, ScaledSchedule):
        return InputKind.KERAS
    for classes, found in of_class:
        if issubclass(kind, classes):
            return found
    if _private_api.wraps_container(kind):
        return InputKind.MAPPING if hasattr(kind, "keys") else InputKind.SEQUENCE
    if issubclass(kind, types.SimpleNamespace | argparse.Namespace):
        return InputKind.USERS
    if kind.__module__ == "loops.tasks.clipping":
        return InputKind.OURS
    return InputKind.USERS if _has_attributes(kind) else InputKind.OTHER


def is_users(what: Any) -> bool:
    """Whether a class or function is the user's own: not of this library, nor of Python or an installed package."""
    return is_users_module(str(getattr(what, "__module__", "")))


@functools.lru_cache(maxsize=4096)
def is_users_module(name: str) -> bool:
    """Whether a module is the user's own."""
    root = name.partition(".")[0]
    if not root or root == "loops" or root in _LIBRARIES or root in sys.stdlib_module_names - {"__main__"}:
        return False
    file = str(getattr(sys.modules.get(name), "__file__", None) or "")
    return not any(folder in file for folder in _INSTALLED)


def _has_attributes(kind: type) -> bool:
    """Whether the attributes of such objects are looked at: settings may be kept in objects of an installed package, too."""
    root = kind.__module__.partition(".")[0]
    return root != "loops" and root not in _LIBRARIES and root not in sys.stdlib_module_names - {"__main__"}


def is_of_keras(value: Any) -> bool:
    """Whether an object is one of Keras's, or of a class made from it, that has settings."""
    return isinstance(value, _OF_KERAS)


def is_plain(values: Any) -> bool:
    """Whether all values are numbers, strings or None of Python."""
    return set(map(type, values)) <= _OF_PYTHON
