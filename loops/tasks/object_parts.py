"""What kind of thing an attribute holds, and the parts of it that may hold state: for the walk over a task in `tracking.py`.

It looks into containers and into objects of the user's own classes. Objects of libraries are left alone: arrays, datasets, feeds, hooks,
strategies, functions and Keras's bookkeeping hold no state of a run, or lead back to the loop. No property or descriptor is called.
"""

from __future__ import annotations

import collections
import enum
import functools
import logging
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.base import Feed

__all__ = ["TENSORFLOWS_NOTES", "Kind", "Kinds", "attributes_of", "bookkeeping_of_layers", "has_attributes_only", "parts_of"]


class Kind(enum.Enum):
    """What the walk does with an object."""

    IGNORED = enum.auto()
    OPTIMIZER = enum.auto()
    METRIC = enum.auto()
    SEED_GENERATOR = enum.auto()
    RANDOM_GENERATOR = enum.auto()
    KERAS_VARIABLE = enum.auto()
    TF_VARIABLE = enum.auto()
    LAYER = enum.auto()
    CONTAINER = enum.auto()
    MODULE = enum.auto()
    OBJECT = enum.auto()
    NOT_SAVED = enum.auto()


_OF_CLASS = (
    (keras.optimizers.Optimizer, Kind.OPTIMIZER),
    (keras.metrics.Metric, Kind.METRIC),
    (keras.random.SeedGenerator, Kind.SEED_GENERATOR),
    (tf.random.Generator, Kind.RANDOM_GENERATOR),
    (keras.Variable, Kind.KERAS_VARIABLE),
    (tf.Variable, Kind.TF_VARIABLE),
    (keras.layers.Layer, Kind.LAYER),
)
# They have state that is in no variable, so nobody can save it.
_NOT_SAVED = (tf.data.Iterator, tf.queue.QueueBase, types.GeneratorType)
_CONTAINERS = (dict, list, tuple, collections.deque, types.MappingProxyType)
# Objects of the user's own classes are left alone, too, if they are such things.
_LEFT_ALONE = (
    type,
    types.ModuleType,
    BaseException,
    enum.Enum,
    logging.Filterer,
    threading.Thread,
    np.ndarray,
    tf.Tensor,
    tf.TypeSpec,
    tf.Graph,
    tf.data.Dataset,
    tf.distribute.Strategy,
    keras.KerasTensor,
    keras.callbacks.Callback,
    keras.utils.PyDataset,
    Feed,
)
# Of these libraries nothing is looked into: none holds variables of TensorFlow.
_LIBRARIES = frozenset({"tensorflow", "keras", "numpy", "scipy", "pandas", "torch", "jax", "PIL", "matplotlib", "h5py", "google", "absl"})
_LOOKED_INTO = (types.SimpleNamespace, types.MethodType, functools.partial, collections.UserDict, collections.UserList)
TENSORFLOWS_NOTES = "_self_"  # how attributes begin in which TensorFlow keeps account of an object's others
_MAPPINGS = (dict, types.MappingProxyType)


_known_kinds: weakref.WeakKeyDictionary[type, Kind] = weakref.WeakKeyDictionary()


class Kinds(dict[type, Kind]):
    """Kind by type, found once for each type. Make a new one for each walk; what is known of a class is kept only as long as the class.

    Args:
        task: the class of tasks, whose objects are looked into although this library defines it.

    Example:
        >>> kinds = Kinds(keras.Model)
        >>> kinds[int], kinds.of([]), kinds.of(types.SimpleNamespace()), kinds.of(np.zeros(3))
        (<Kind.IGNORED: 1>, <Kind.CONTAINER: 9>, <Kind.OBJECT: 11>, <Kind.IGNORED: 1>)
    """

    def __init__(self, task: type):
        super().__init__()
        self._task = task

    def of(self, value: Any) -> Kind:
        """The kind of an object."""
        return self[type(value)]

    def __missing__(self, kind: type) -> Kind:
        known = _known_kinds.get(kind)
        if known is None:
            known = _known_kinds[kind] = self._of_type(kind)
        self[kind] = known
        return known

    def _of_type(self, kind: type) -> Kind:
        for known, found in _OF_CLASS:
            if issubclass(kind, known):
                return found
        if issubclass(kind, _CONTAINERS) or _private_api.wraps_container(kind):
            return Kind.CONTAINER
        if issubclass(kind, _LOOKED_INTO):
            return Kind.OBJECT
        if issubclass(kind, _NOT_SAVED):
            return Kind.NOT_SAVED
        if issubclass(kind, _LEFT_ALONE):
            return Kind.IGNORED
        if issubclass(kind, tf.Module):
            return Kind.MODULE
        if issubclass(kind, self._task) or _private_api.is_trackable_object(kind):
            return Kind.OBJECT
        if _is_our_schedule(kind):
            return Kind.OBJECT
        ours = any(_root(base) == "loops" for base in kind.__mro__)
        return Kind.IGNORED if ours or _root(kind) in _LIBRARIES or _root(kind) in sys.stdlib_module_names else Kind.OBJECT

    def is_users(self, value: Any) -> bool:
        """Whether the object is of a class that no library of ours defines."""
        return _root(type(value)) not in _LIBRARIES | {"loops"}

    def has_parts(self, value: Any) -> bool:
        """False if the object is to be ignored, or is a container of such objects only."""
        kind = self[type(value)]
        if kind is Kind.CONTAINER:
            items = list(value.values() if isinstance(value, _MAPPINGS) else value)
            return any(self[kind] is not Kind.IGNORED for kind in set(map(type, items)))
        return kind is not Kind.IGNORED


def parts_of(value: Any, kinds: Kinds) -> Iterator[tuple[str, Any]]:
    """The parts of a container or object, with their names, in an order that is the same in every process.

    Args:
        value: of the kind `CONTAINER`, `MODULE` or `OBJECT`.
        kinds: the kinds of this walk.

    Yields:
        (key, index or attribute, part); parts that are ignored may be left out. Of sets nothing, as they have no order.
    """
    if _is_our_schedule(type(value)):
        # It holds one of the user's, and a multiplier, which `LearningRates` keeps.
        yield from ((name, part) for name, part in attributes_of(value) if kinds.of(part) is not Kind.KERAS_VARIABLE)
    elif kinds.of(value) is not Kind.CONTAINER:
        yield from attributes_of(value)
    elif kinds.has_parts(value):  # asks for the types of the items only, which is fast for a million numbers
        for key, item in list(value.items()) if isinstance(value, _MAPPINGS) else enumerate(list(value)):
            yield str(key), item


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes that an object holds itself, in `__dict__` or in slots."""
    if isinstance(value, types.MethodType):  # what stands here is in `_READ_APART`
        yield "__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    else:
        for kind in reversed(type(value).__mro__):
            for name, slot in vars(kind).items():
                if isinstance(slot, types.MemberDescriptorType) and kind.__module__ != "builtins":
                    try:
                        yield name, slot.__get__(value)
                    except AttributeError:  # an empty slot
                        continue
        try:
            held = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        yield from [(name, item) for name, item in list(held.items()) if not name.startswith(TENSORFLOWS_NOTES)]


def has_attributes_only(value: Any) -> bool:
    """Whether all that an object holds itself is in its `__dict__`, so that `attributes_of` reads nothing else."""
    kind = type(value)
    known = _known_to_have_only_attributes.get(kind)
    if known is None:
        own = any(
            isinstance(part, types.MemberDescriptorType)
            for one in kind.__mro__
            if one.__module__ != "builtins"
            for part in vars(one).values()
        )
        known = _known_to_have_only_attributes[kind] = bool(kind.__dictoffset__) and not own and not issubclass(kind, _READ_APART)
    return known


_known_to_have_only_attributes: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()
_READ_APART = (types.MethodType, functools.partial)


@functools.cache
def bookkeeping_of_layers() -> frozenset[str]:
    """Names of the attributes that Keras gives to every layer and model. What is in these and is state, Keras lists itself."""
    # Explicit names leave Keras's count of unnamed layers as it is.
    every = {*vars(keras.layers.Identity(name="bookkeeping")), *vars(keras.Sequential(name="bookkeeping"))}
    return frozenset(every - {"loss", "activity_regularizer"})


def _is_our_schedule(kind: type) -> bool:
    return _root(kind) == "loops" and issubclass(kind, keras.optimizers.schedules.LearningRateSchedule)


def _root(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]
