"""Scalars that steps report: packed into rows within the program, reduced on the host, shown to hooks as windows.

A step packs its scalars into one row of float64: `[examples, check, value_1, weight_1, value_2, weight_2, ...]`. Rows stay on the device
until the next look.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops.tasks.reductions import Last, Mean, Reduction, Sum

__all__ = ["LogSpec", "TraceLog", "Window", "aligned"]

EXAMPLES, CHECK, FIRST = 0, 1, 2


class LogSpec:
    """The names and reductions of what a step returned, in order; fixed when the step is traced."""

    def __init__(self, kinds: Mapping[str, type[Reduction]]):
        self.kinds = dict(kinds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LogSpec) and list(self.kinds.items()) == list(other.kinds.items())

    @property
    def width(self) -> int:
        return FIRST + 2 * len(self.kinds)

    def names(self) -> list[list[str]]:
        """Pairs of name and kind of reduction, JSON-able."""
        return [[name, kind.__name__] for name, kind in self.kinds.items()]

    @classmethod
    def named(cls, names: Iterable[Sequence[str]]) -> LogSpec:
        """The spec for which `names()` returned `names`."""
        kinds = {kind.__name__: kind for kind in (Mean, Sum, Last)}
        return cls({name: kinds[kind] for name, kind in names})

    def reduce(self, rows: np.ndarray) -> dict[str, float]:
        """Reduces rows `[steps, width]` to one float for each name; a name that is absent in all rows is left out."""
        totals = Totals()
        totals.add(rows, self)
        return totals.values()


def row_of(logs: Mapping[str, Any], examples: tf.Tensor, check: tf.Tensor) -> tuple[LogSpec, tf.Tensor]:
    """Packs the scalars that a step returned into a row of this replica.

    Args:
        logs: name -> scalar tensor or `Reduction`.
        examples: number of examples in the batch, scalar.
        check: scalar that is finite if and only if the step was.

    Returns:
        The spec and the row, a float64 tensor `[width]`.

    Raises:
        ValueError: if an entry is not a scalar.
    """
    several = int(tf.distribute.get_strategy().num_replicas_in_sync) > 1
    kinds: dict[str, type[Reduction]] = {}
    cells = [tf.cast(examples, tf.float64), tf.cast(check, tf.float64)]
    for name, entry in logs.items():
        reduction = entry if isinstance(entry, Reduction) else Mean(entry)
        value = tf.convert_to_tensor(reduction.value)
        if value.shape.rank not in (0, None):
            raise ValueError(
                f"The step returned {name!r} with shape {value.shape}; what a step returns must be scalars. "
                "Reduce it, or hand it out with loops.Collect (eval_step) or self.observe."
            )
        if reduction.weight is not None:
            weight = tf.cast(reduction.weight, tf.float64)
        elif type(reduction) is Mean or (several and type(reduction) is Last):
            weight = cells[EXAMPLES]
        else:  # a replica without examples may have NaN, which counts for nothing
            weight = tf.cast(cells[EXAMPLES] > 0, tf.float64) if several else tf.ones([], tf.float64)
        kinds[name] = type(reduction)
        cells += [tf.cast(value, tf.float64), weight]
    return LogSpec(kinds), tf.stack([tf.reshape(c, []) for c in cells])


def merge_replicas(spec: LogSpec, rows: tf.Tensor) -> tf.Tensor:
    """Reduces the rows of all replicas `[replicas, width]` to the row of the step `[width]`."""
    return _averaged(spec, tf.reduce_sum(_summands(spec, rows), 0))


def merge_workers(spec: LogSpec, row: tf.Tensor) -> tf.Tensor:
    """Reduces the rows `[width]` of replicas in several processes to the row of the step, which each gets; call it on every replica.

    One collective, so that all processes find the same step to be not finite.
    """
    summed = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, _summands(spec, row[None])[0])
    return _averaged(spec, summed)


def _summands(spec: LogSpec, rows: tf.Tensor) -> tf.Tensor:
    """The rows `[replicas, width]` with each value multiplied by its weight, unless it is a sum; their sum is what `_averaged` takes."""
    values, weights = rows[:, FIRST::2], rows[:, FIRST + 1 :: 2]
    values = tf.where(weights > 0, values, tf.zeros_like(values))
    values = tf.where(_is_sum(spec), values, values * weights)
    return tf.concat([rows[:, :FIRST], tf.reshape(tf.stack([values, weights], -1), [tf.shape(rows)[0], 2 * len(spec.kinds)])], 1)


def _averaged(spec: LogSpec, summed: tf.Tensor) -> tf.Tensor:
    values, weights = summed[FIRST::2], summed[FIRST + 1 :: 2]
    values = tf.where(_is_sum(spec), values, tf.math.divide_no_nan(values, weights))
    return tf.concat([summed[:FIRST], tf.reshape(tf.stack([values, weights], -1), [-1])], 0)


def _is_sum(spec: LogSpec) -> tf.Tensor:
    return tf.constant([kind is Sum for kind in spec.kinds.values()], tf.bool)


def aligned(parts: Sequence[tuple[LogSpec, Any]]) -> tuple[LogSpec, Any]:
    """Rows of steps that may have returned other names, or the same names in another order, as rows of one spec.

    Args:
        parts: the spec and the row, float64 `[width]`, of each step.

    Returns:
        A spec with the names of all steps, and the rows `[steps, width]`; a name is absent (weight 0) in the rows of the steps without it.
    """
    first = parts[0][0]
    if all(spec == first for spec, _ in parts):
        return first, tf.stack([row for _, row in parts])
    joined = LogSpec({name: kind for spec, _ in parts for name, kind in spec.kinds.items()})
    place = {name: FIRST + 2 * i for i, name in enumerate(joined.kinds)}
    rows = np.zeros([len(parts), joined.width])
    for row, (spec, cells) in zip(rows, parts, strict=True):
        cells = np.asarray(cells)
        row[:FIRST] = cells[:FIRST]
        for i, name in enumerate(spec.kinds):
            row[place[name] : place[name] + 2] = cells[FIRST + 2 * i : FIRST + 2 * i + 2]
    return joined, rows


class Totals:
    """Running reduction of rows on the host, in float64, by name: rows may come from traces that returned other names.

    Attributes:
        kinds: name -> reduction, of all rows up to now.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, type[Reduction]] = {}
        self._sums: dict[str, list[float]] = {}

    def add(self, rows: np.ndarray, spec: LogSpec) -> None:
        """Adds rows `[steps, spec.width]`."""
        values, weights = rows[:, FIRST::2], rows[:, FIRST + 1 :: 2]
        for i, (name, kind) in enumerate(spec.kinds.items()):
            if self.kinds.setdefault(name, kind) is not kind:  # after a retrace of a step that was changed
                self.kinds[name], self._sums[name] = kind, [0.0, 0.0]
            sums = self._sums.setdefault(name, [0.0, 0.0])
            present = np.flatnonzero(weights[:, i] > 0)
            if not present.size:
                continue
            value, weight = values[present, i], weights[present, i]
            if kind is Last:
                sums[:] = value[-1], 1.0
            else:
                sums[0] = _running_sum(sums[0], value * weight if kind is Mean else value)
                sums[1] = _running_sum(sums[1], weight)

    def values(self) -> dict[str, float]:
        """One float for each name; a name that was absent in all rows is left out."""
        present = {name: sums for name, sums in self._sums.items() if sums[1] > 0}
        return {name: float(total / weight if self.kinds[name] is Mean else total) for name, (total, weight) in present.items()}

    def state(self) -> tuple[np.ndarray, list[list[str]]]:
        """The sums `[2, names]`, and the names with their reductions, JSON-able."""
        return np.array(list(self._sums.values())).reshape(-1, 2).T, LogSpec(self.kinds).names()

    @classmethod
    def restored(cls, sums: np.ndarray, names: Iterable[Sequence[str]]) -> Totals:
        """The totals for which `state` gave these."""
        totals = cls()
        totals.kinds = LogSpec.named(names).kinds
        totals._sums = {name: [float(total), float(weight)] for name, (total, weight) in zip(totals.kinds, sums.T, strict=True)}
        return totals


def _running_sum(total: float, values: np.ndarray) -> float:
    # Adds one value after the other, so that the bits do not depend on how many rows are read at once, that is, on when looks happen.
    return float(np.add.accumulate(np.concatenate([[total], values]))[-1])


class TraceLog:
    """The rows of all steps since the beginning of the oldest open window. Rows are copied from the device only when they are needed."""

    def __init__(self) -> None:
        self._unread: list[tuple[tf.Tensor, int, LogSpec]] = []
        self._chunks: list[tuple[int, np.ndarray, LogSpec]] = []
        self._end = 0
        self._totals: Totals | None = None
        self.examples = 0

    def start(self, step: int) -> None:
        """Begins at `step` completed steps, with nothing recorded."""
        self._unread, self._chunks, self._end, self._totals, self.examples = [], [], step, None, 0

    def append(self, rows: tf.Tensor, n: int, spec: LogSpec) -> None:
        """Adds the first `n` rows of a call, without reading them."""
        if n:
            self._unread.append((rows, n, spec))

    def read(self) -> None:
        """Copies all unread rows to the host."""
        if not self._unread:
            return
        self._totals = self._totals or Totals()
        unread, self._unread = self._unread, []
        for spec, calls in itertools.groupby(unread, key=lambda call: call[2]):
            rows = np.concatenate([np.asarray(r)[:n] for r, n, _ in calls])
            self._chunks.append((self._end, rows, spec))
            self._end += len(rows)
            self.examples += int(rows[:, EXAMPLES].sum())
            self._totals.add(rows, spec)

    def new_epoch(self) -> None:
        """Forgets the totals of the epoch to date."""
        self.read()
        self._totals = None

    def epoch_logs(self) -> dict[str, float]:
        """The reduction over the epoch to date."""
        self.read()
        return self._totals.values() if self._totals is not None else {}

    def rows(self, first: int, last: int) -> Iterator[tuple[np.ndarray, LogSpec]]:
        """Rows of the steps after `first` up to `last` (numbers of completed steps)."""
        self.read()
        for begin, rows, spec in self._chunks:
            part = rows[max(0, first - begin) : max(0, last - begin)]
            if len(part):
                yield part, spec

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The rows and totals that are kept, as arrays and JSON."""
        self.read()
        arrays = {f"rows/{i}": rows for i, (_, rows, _) in enumerate(self._chunks)}
        described: dict[str, Any] = {"end": self._end, "chunks": [[begin, spec.names()] for begin, _, spec in self._chunks], "totals": None}
        if self._totals is not None:
            arrays["totals"], described["totals"] = self._totals.state()
        return arrays, described

    def load_state(self, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> None:
        """Restores what `state` gave."""
        self.start(described["end"])
        for i, (begin, names) in enumerate(described["chunks"]):
            self._chunks.append((begin, arrays[f"rows/{i}"], LogSpec.named(names)))
        if described["totals"] is not None:
            self._totals = Totals.restored(arrays["totals"], described["totals"])

    @property
    def held(self) -> int:
        """How many rows are kept on the host."""
        return sum(len(rows) for _, rows, _ in self._chunks)

    def forget(self, step: int) -> None:
        """Drops the rows of steps up to `step`."""
        self._chunks = [c for c in self._chunks if c[0] + len(c[1]) > step]


class Window:
    """What a hook sees: all steps since its own last look. Values are copied from the device when they are asked for.

    Attributes:
        first_step, last_step: 1-based absolute numbers of the first and last step.
        steps: number of steps.
        seconds: wall time of these steps, in seconds, looks of other hooks included.
        observed: name -> array that the program carried out at the last step (see `Hook.observes`).
    """

    def __init__(
        self,
        trace: TraceLog,
        first_step: int,
        last_step: int,
        seconds: float,
        logs: Callable[[], dict[str, Any]],
        observed: Callable[[], dict[str, Any]],
        batch: Callable[[], Any],
    ):
        self.first_step, self.last_step, self.seconds = first_step, last_step, seconds
        self.steps = last_step - first_step + 1
        self._trace, self._logs, self._observed, self._batch = trace, logs, observed, batch

    def __repr__(self) -> str:
        return f"Window(steps {self.first_step:,} to {self.last_step:,}, {self.seconds:.3g} s)"

    @property
    def trace(self) -> dict[str, np.ndarray]:
        """name -> values float64 `[steps]`, NaN in steps where the name was absent."""
        parts: dict[str, np.ndarray] = {}
        done = 0
        for rows, spec in self._trace.rows(self.first_step - 1, self.last_step):
            for i, name in enumerate(spec.kinds):
                values = np.where(rows[:, FIRST + 2 * i + 1] > 0, rows[:, FIRST + 2 * i], np.nan)
                parts.setdefault(name, np.full(self.steps, np.nan))[done : done + len(rows)] = values
            done += len(rows)
        return {name: values[:done] for name, values in parts.items()}

    def mean(self, name: str) -> float:
        """The weighted mean of `name` over the window, or the sum or last value if the step reported one of these.

        Raises:
            KeyError: if no step of the window reported `name`.
        """
        totals = Totals()
        for rows, spec in self._trace.rows(self.first_step - 1, self.last_step):
            totals.add(rows, spec)
        values = totals.values()
        if name not in values:
            raise KeyError(f"No step of this window reported {name!r}; there is {sorted(values)}.")
        return values[name]

    @property
    def logs(self) -> dict[str, Any]:
        """The logs of the epoch to date."""
        return self._logs()

    @property
    def observed(self) -> dict[str, Any]:
        """Tensors of the last step that some hook observes, as arrays."""
        return self._observed()

    @property
    def batch(self) -> Any:
        """The batch of the last step, as arrays."""
        return self._batch()
