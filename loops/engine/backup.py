"""Values that variables had at one instant, to go back to; and whether the variables have stayed finite since then.

A value is not copied when it is taken. It shares memory with its variable until that is written next: TensorFlow then writes to new memory.
So a variable costs one copy if it is written, and nothing if not. (Those that were ever gathered from or scattered to are copied at once.)
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from loops.cluster import Cluster
from loops.engine.kept_rows import KeptRows
from loops.tasks.replicas import local_variables

__all__ = ["Backup", "FiniteCheck", "ReadAgain"]


class Backup:
    """Values of variables.

    Args:
        variables: plain `tf.Variable`s; their values now are kept.
        rows: keeps the rows of large variables from now on; see `cover_rows`.
    """

    def __init__(self, variables: Iterable[tf.Variable] = (), rows: KeptRows | None = None):
        self._kept: dict[int, tuple[tf.Variable, Any]] = {}
        self._rows, self._by_rows = rows, dict[int, tf.Variable]()
        if rows is not None:
            rows.begin()
        self.cover(variables)

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """What is covered."""
        return tuple(variable for variable, _ in self._kept.values())

    @property
    def values(self) -> tuple[Any, ...]:
        """The value of each variable."""
        return tuple(value for _, value in self._kept.values())

    def cover(self, variables: Iterable[tf.Variable], read: Callable[[Sequence[tf.Variable]], Sequence[Any]] | None = None) -> None:
        """Keeps the values of further variables too. They must not have been written since the backup was begun.

        Args:
            variables: plain variables.
            read: reads variables, see `ReadAgain`.
        """
        new = [variable for variable in variables if id(variable) not in self._kept]
        if self._rows is not None and self._by_rows:
            written = [variable for variable in new if id(variable) in self._by_rows]
            self._kept.update((id(variable), (variable, self._rows.value_before(variable))) for variable in written)
            new = [variable for variable in new if id(variable) not in self._by_rows]
        for variable, value in zip(new, (read or _read)(new), strict=True):
            self._kept[id(variable)] = variable, value

    def cover_rows(self, variables: Iterable[tf.Variable]) -> None:
        """Covers variables of which `rows` keeps what is overwritten."""
        self._by_rows.update((id(variable), variable) for variable in variables)

    @property
    def rows_stayed_finite(self) -> bool:
        """Whether the rows that were written are finite, where only rows are kept; reads from the device."""
        return self._rows is None or not self._by_rows or self._rows.stayed_finite()

    @contextlib.contextmanager
    def covering_new(self) -> Iterator[None]:
        """Covers variables that are created meanwhile, with their initial values. Only for code that runs eagerly."""

        def create(next_creator: Any, **arguments: Any) -> Any:
            variable = next_creator(**arguments)
            if tf.executing_eagerly():
                self.cover(local_variables([variable]))
            return variable

        with tf.variable_creator_scope(create):
            yield

    def restore(self) -> None:
        """Puts the values back."""
        for key, variable in self._by_rows.items():
            if self._rows is not None and key not in self._kept:
                variable.assign(self._rows.value_before(variable))
        for variable, value in self._kept.values():
            variable.assign(value)


class ReadAgain:
    """Reads variables. Those that it has read often it reads by a function, which costs a trace once and then half the time."""

    often = 50

    def __init__(self) -> None:
        self._times: collections.Counter[tuple[int, ...]] = collections.Counter()
        self._functions: dict[tuple[int, ...], Any] = {}

    def __call__(self, variables: Sequence[tf.Variable]) -> Sequence[Any]:
        key = tuple(map(id, variables))
        function = self._functions.get(key)
        if function is None:
            self._times[key] += 1
            if self._times[key] < self.often or not variables:
                return _read(variables)
            kept = tuple(variables)
            function = tf.function(lambda: [v.read_value() for v in kept], autograph=False).get_concrete_function()
            self._functions[key] = function
        return list(function())


def _read(variables: Sequence[tf.Variable]) -> list[Any]:
    # `variable.read_value()` does the same in four times the time.
    return [tf.raw_ops.ReadVariableOp(resource=v.handle, dtype=v.dtype) for v in variables]


class FiniteCheck:
    """Finds out whether variables have become non-finite since a backup was made. It is compiled once for each set of variables.

    Args:
        cluster: the workers, who have to find the same; None: each for itself.
    """

    def __init__(self, cluster: Cluster | None = None) -> None:
        self._cluster = cluster
        self._compiled: dict[tuple[int, ...], tuple[Any, tuple[tf.Variable, ...]]] = {}

    def __call__(self, backup: Backup) -> bool:
        """True unless an element is not finite, on some worker, that was finite in the backup; reads from the device."""
        finite = self._stayed_finite(backup)
        return finite if self._cluster is None else self._cluster.all(finite)

    def _stayed_finite(self, backup: Backup) -> bool:
        if not backup.rows_stayed_finite:
            return False
        pairs = [(v, old) for v, old in zip(backup.variables, backup.values, strict=True) if v.dtype.is_floating]
        if not pairs:
            return True
        variables, before = zip(*pairs, strict=True)
        key = tuple(map(id, variables))
        if key not in self._compiled:
            signature = [tf.TensorSpec(old.shape, old.dtype) for old in before]
            function = tf.function(lambda *before: _stayed_finite(variables, before), autograph=False)
            self._compiled[key] = function.get_concrete_function(*signature), variables
        return bool(self._compiled[key][0](*before))


def _stayed_finite(variables: Sequence[tf.Variable], before: Sequence[Any]) -> tf.Tensor:
    # A sum shows whatever is not finite, and costs no memory. It may overflow: only then the elements are looked at.
    sums = [tf.cast(tf.reduce_sum(v.read_value()), tf.float64) for v in variables]

    def each_element() -> tf.Tensor:
        verdicts = [
            tf.reduce_all(tf.math.is_finite(v.read_value()) | ~tf.math.is_finite(old)) for v, old in zip(variables, before, strict=True)
        ]
        return tf.reduce_all(tf.stack(verdicts))

    return tf.cond(tf.reduce_all(tf.math.is_finite(tf.stack(sums))), lambda: tf.constant(True), each_element)
