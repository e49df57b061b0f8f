"""Keeps the rows that a step overwrites in a large variable, so that going back needs no copy of the whole.

A replay buffer of hundreds of megabytes gets a few new rows in each step; to copy all of it at every look would cost a thousand
times as much as the step. So while a step is traced, each write to some rows of a large variable gets operations around it:

    before    rows that are written for the first time since the last settled state are copied to a second variable
    after     a flag is set if the new rows are not finite

Writes to the whole variable are not affected; for these `Backup` keeps a copy. A variable is kept by rows only if the graph shows that no
other operation writes it; see `writes_rows`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from loops import _private_api

__all__ = ["KeptRows", "is_ours", "writes_rows"]

_LEAST_BYTES = 8 << 20
_SCOPE = "rows_are_kept"
_NAME = "tapeloops_kept_rows"
_LAST_STAMP = 255  # a stamp of a byte for each row: with scalar rows anything more would be as large as the variable
_FLAT = ("scatter_add", "scatter_div", "scatter_max", "scatter_min", "scatter_mul", "scatter_sub", "scatter_update")
_BY_INDEX = ("scatter_nd_add", "scatter_nd_max", "scatter_nd_min", "scatter_nd_sub", "scatter_nd_update")

# The methods are those of a class: one step is traced at a time.
_watch = threading.RLock()


class KeptRows:
    """The rows of variables that were overwritten since the last settled state."""

    def __init__(self) -> None:
        self._rows: dict[int, _Rows] = {}
        self._stamp: Any = None
        self._bad: Any = None
        self._windows = 0

    def __contains__(self, variable: tf.Variable) -> bool:
        return id(variable.handle) in self._rows

    @property
    def variables(self) -> list[tf.Variable]:
        """The variables that this needs; they are no state of the run."""
        flags = [] if self._stamp is None else [self._stamp, self._bad]
        return [*flags, *(v for rows in self._rows.values() for v in (rows.values, rows.stamps))]

    @contextlib.contextmanager
    def watching(self, *, xla: bool = False) -> Iterator[None]:
        """While it is entered, writes to rows of large variables are traced with what keeps these rows.

        Args:
            xla: whether the trace is for a program that XLA compiles as a whole.
        """
        home = _class_of_variables()
        with _watch:
            found = [(name, vars(home)[name]) for name in (*_FLAT, *_BY_INDEX, _private_api.SLICE_ASSIGN) if name in vars(home)]
            for name, method in found:
                setattr(home, name, self._watched(name, method, xla))
            try:
                yield
            finally:
                for name, method in found:
                    setattr(home, name, method)

    def _watched(self, name: str, method: Callable[..., Any], xla: bool) -> Callable[..., Any]:
        read = _read_in_xla if xla else _read

        @functools.wraps(method)
        def write(variable: Any, *args: Any, **named: Any) -> Any:
            concerned = not tf.executing_eagerly() and _is_large(variable) and not is_ours(variable)
            index = _index(name, variable, xla, args, named) if concerned else None
            rows = None if index is None else self._rows_of(variable, index)
            if rows is None:
                return method(variable, *args, **named)
            index = tf.reshape(index, [-1, rows.depth])
            rows.keep(variable, index, self._stamp, read)
            with tf.name_scope(_SCOPE):
                result = method(variable, *args, **named)
            if variable.dtype.is_floating:
                well = rows.stayed_finite(variable, index, read)
                self._bad.assign(tf.where(well, self._bad.read_value(), self._stamp.read_value()))
            return result

        return write

    def _rows_of(self, variable: Any, index: tf.Tensor) -> _Rows | None:
        """What keeps the rows of a variable; None if rows of another depth are kept already."""
        depth = index.shape[-1]
        key = id(variable.handle)
        if key not in self._rows:
            with tf.init_scope(), tf.device(variable.device):
                if self._stamp is None:
                    self._stamp = tf.Variable(tf.zeros([], tf.uint8), trainable=False, name=f"{_NAME}/stamp")
                    self._bad = tf.Variable(tf.zeros([], tf.uint8), trainable=False, name=f"{_NAME}/bad")
                self._rows[key] = _Rows(variable.shape, variable.dtype, depth)
        rows = self._rows[key]
        return rows if rows.depth == depth else None

    def begin(self) -> None:
        """The state is settled now: forgets the rows that were kept."""
        if self._stamp is None:
            return
        self._windows = self._windows % _LAST_STAMP + 1
        if self._windows == 1:
            self._bad.assign(tf.zeros_like(self._bad))
            for rows in self._rows.values():
                rows.stamps.assign(tf.zeros_like(rows.stamps))
        self._stamp.assign(tf.constant(self._windows, tf.uint8))

    def value_before(self, variable: tf.Variable) -> tf.Tensor:
        """The value of a variable at the last `begin`."""
        return self._rows[id(variable.handle)].value_before(variable, self._stamp)

    def stayed_finite(self) -> bool:
        """Whether all rows that were written since `begin` were finite; reads from the device."""
        return self._stamp is None or not bool(tf.equal(self._bad, self._stamp))


class _Rows:
    """The rows of one variable: those of the first `depth` dimensions."""

    def __init__(self, shape: tf.TensorShape, dtype: tf.DType, depth: int):
        self.depth = depth
        self.values = tf.Variable(tf.zeros(shape, dtype), trainable=False, name=f"{_NAME}/values")
        self.stamps = tf.Variable(tf.zeros(shape[:depth], tf.uint8), trainable=False, name=f"{_NAME}/stamps")

    def keep(self, variable: Any, index: tf.Tensor, stamp: tf.Variable, read: Callable[..., Any]) -> None:
        now, kept = read(variable, index), read(self.values, index)
        window = stamp.read_value()
        first = tf.not_equal(read(self.stamps, index), window)
        first = tf.reshape(first, tf.concat([tf.shape(first), tf.ones([tf.rank(now) - 1], tf.int32)], 0))
        self.values.scatter_nd_update(index, tf.where(first, now, kept))
        self.stamps.scatter_nd_update(index, tf.fill(tf.shape(index)[:1], window))

    def stayed_finite(self, variable: Any, index: tf.Tensor, read: Callable[..., Any]) -> tf.Tensor:
        now, kept = read(variable, index), read(self.values, index)
        return tf.reduce_all(tf.math.is_finite(now) | ~tf.math.is_finite(kept))

    def value_before(self, variable: tf.Variable, stamp: tf.Variable) -> tf.Tensor:
        shape = [*self.stamps.shape, *[1] * (variable.shape.rank - self.depth)]
        written = tf.reshape(tf.equal(self.stamps, stamp), shape)
        return tf.where(written, self.values, variable)


def _read(variable: Any, index: tf.Tensor) -> tf.Tensor:
    return variable.gather_nd(index)


def _read_in_xla(variable: Any, index: tf.Tensor) -> tf.Tensor:
    # XLA has no `gather_nd` of a variable, and makes no copy of a whole that it reads.
    return tf.gather_nd(variable.read_value(), index)


def is_ours(variable: Any) -> bool:
    """Whether a variable belongs to this module, and not to the state of a run."""
    return _NAME in str(variable.name)  # names of scopes come before it


def writes_rows(op: tf.Operation) -> bool:
    """Whether an operation of a graph writes rows that are kept."""
    return any(part.startswith(_SCOPE) for part in op.name.split("/"))


@functools.cache
def _class_of_variables() -> type:
    """The class whose methods all plain variables share."""
    with tf.init_scope():
        made = tf.Variable(0.0, trainable=False)
    return next(kind for kind in type(made).__mro__ if _BY_INDEX[0] in vars(kind))


def _is_large(variable: Any) -> bool:
    shape, dtype = variable.shape, variable.dtype
    if not (shape.is_fully_defined() and shape.rank and (dtype.is_floating or dtype.is_integer or dtype.is_bool)):
        return False
    return int(np.prod(shape)) * dtype.size >= _LEAST_BYTES


def _index(name: str, variable: Any, xla: bool, args: tuple[Any, ...], named: dict[str, Any]) -> tf.Tensor | None:
    """The rows that a method writes, int `[..., depth]`; None if that is not known, or a row is the whole."""
    if name in _FLAT:
        delta = args[0] if args else named.get("sparse_delta")
        return tf.expand_dims(tf.convert_to_tensor(delta.indices), -1) if isinstance(delta, tf.IndexedSlices) else None
    if name in _BY_INDEX:
        index = tf.convert_to_tensor(args[0] if args else named["indices"])
        return index if index.shape.rank and index.shape[-1] else None
    return _index_of_slice(variable.shape, xla, *args, **named)


def _index_of_slice(
    shape: tf.TensorShape,
    xla: bool,
    begin: Any,
    end: Any,
    strides: Any,
    value: Any = None,
    name: Any = None,
    begin_mask: int = 0,
    end_mask: int = 0,
    ellipsis_mask: int = 0,
    new_axis_mask: int = 0,
    shrink_axis_mask: int = 0,
) -> tf.Tensor | None:
    """The rows of `v[i]`, `v[i, j]` or `v[a:b]`, also with `:` or `...` behind; None for other slices."""
    begin = tf.convert_to_tensor(begin)
    steps = tf.get_static_value(strides)
    count = begin.shape[0]
    if new_axis_mask or count is None or steps is None or any(step != 1 for step in steps):
        return None
    depth = next((i for i in range(count) if not shrink_axis_mask >> i & 1), count)
    whole = begin_mask & end_mask | ellipsis_mask
    if all(whole >> i & 1 for i in range(depth, count)) and depth:
        sizes = tf.constant(shape[:depth].as_list(), begin.dtype)
        place = begin[:depth]
        return tf.where(place < 0, place + sizes, place)
    # XLA compiles ranges only if their length is constant.
    if not xla and depth == 0 and not ellipsis_mask & 1 and all(whole >> i & 1 for i in range(1, count)):
        size = tf.constant(shape[0], begin.dtype)

        def bound(given: Any, mask: int, default: Any) -> Any:
            place = tf.convert_to_tensor(given)[0]
            return default if mask & 1 else tf.clip_by_value(tf.where(place < 0, place + size, place), 0, size)

        first = bound(begin, begin_mask, tf.zeros_like(size))
        last = bound(end, end_mask, size)
        return tf.expand_dims(tf.range(first, tf.maximum(first, last)), -1)
    return None
