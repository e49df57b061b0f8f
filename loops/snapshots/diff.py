"""Finds the differences of two snapshots: arrays bit for bit, state leaf by leaf, files by their digests. It knows nothing of training."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from loops.snapshots.content import state_from_bytes
from loops.snapshots.files import read_array
from loops.snapshots.manifest import STATE, Manifest

__all__ = ["Comparison", "compare", "describe_arrays"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences of two snapshots, A and B.

    Attributes:
        arrays: a sentence for each array that differs, in A's order.
        state: a sentence for each leaf of the state that differs.
        files: a sentence for each of the caller's own files that differs.
        counts: how many "arrays", "values of state" and "files" are in at least one of the two.
    """

    arrays: list[str]
    state: list[str]
    files: list[str]
    counts: dict[str, int]

    @property
    def differences(self) -> list[str]:
        """All sentences."""
        return [*self.arrays, *self.state, *self.files]

    def without(self, pattern: re.Pattern[str]) -> Comparison:
        """The comparison without the sentences whose beginning matches `pattern`."""
        arrays, state, files = ([line for line in lines if not pattern.match(line)] for lines in (self.arrays, self.state, self.files))
        return Comparison(arrays, state, files, self.counts)

    def summary(self) -> str:
        """One sentence: how many arrays, values and files differ, or that all are equal."""
        if not self.differences:
            return f"Equal, bit for bit ({', '.join(f'{what}: {count:,}' for what, count in self.counts.items())})."
        different = zip(self.counts.items(), (self.arrays, self.state, self.files), strict=True)
        return f"In all, {', '.join(f'{len(found):,} of {count:,} {what}' for (what, count), found in different)} differ."


def compare(a: tuple[pathlib.Path, Manifest], b: tuple[pathlib.Path, Manifest]) -> Comparison:
    """Compares two snapshots that have been verified, without their `info`.

    Args:
        a: folder of snapshot A, and its manifest from `files.verify`.
        b: the same for snapshot B.

    Raises:
        DamagedSnapshot: if a snapshot has changed since it was verified.
    """
    arrays, array_count = _compare_arrays(a, b)
    state, state_count = _compare_state(*(state_from_bytes((directory / STATE).read_bytes()) for directory, _ in (a, b)))
    files, file_count = _compare_files(a[1], b[1])
    return Comparison(arrays, state, files, {"arrays": array_count, "values of state": state_count, "files": file_count})


def _compare_arrays(a: tuple[pathlib.Path, Manifest], b: tuple[pathlib.Path, Manifest]) -> tuple[list[str], int]:
    ours, theirs = ({entry.name: entry for entry in manifest.entries} for _, manifest in (a, b))
    found = []
    for name in {**ours, **theirs}:
        mine, its = ours.get(name), theirs.get(name)
        if mine is None or its is None:
            found.append(f"array {name!r} is in {'A' if its is None else 'B'} only")
        elif mine.shape != its.shape:
            found.append(f"array {name!r} has shape {list(mine.shape)} in A and {list(its.shape)} in B")
        elif mine.dtype != its.dtype:
            found.append(f"array {name!r} has dtype {mine.dtype} in A and {its.dtype} in B")
        elif mine.digest != its.digest:
            found.append(f"array {name!r} differs in {describe_arrays(read_array(*a, mine), read_array(*b, its))}")
    return found, len({**ours, **theirs})


def describe_arrays(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str:
    """Says in how many places, and by how much, two arrays of the same shape and dtype differ in their bits.

    A difference in ULPs is the number of steps from one value to the other through the numbers of the dtype; +0 and -0 count as one number.

    Example:
        >>> describe_arrays(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0000000000000004]))
        '1 of 3 values, by at most 4.44e-16 (1 ULP); the first at [2]: 3.0 in A, 3.0000000000000004 in B'
    """
    first, second = a.reshape(-1), b.reshape(-1)
    if a.dtype == object:
        places = np.flatnonzero(first != second)
    else:
        itemsize = a.dtype.itemsize
        places = np.flatnonzero((first.view(np.uint8).reshape(-1, itemsize) != second.view(np.uint8).reshape(-1, itemsize)).any(axis=1))
    size = _distance(first[places], second[places])
    index = [int(at) for at in np.unravel_index(places[0], a.shape)]
    values = f"{_shown(first[places[0]])} in A, {_shown(second[places[0]])} in B"
    return f"{len(places):,} of {a.size:,} values{size}; the first{f' at {index}' if index else ''}: {values}"


def _distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str:
    kind = a.dtype.kind
    if kind in "iu":
        # The difference of two signed numbers can need one bit more; it fits into the unsigned type.
        unsigned = np.dtype(f"u{a.dtype.itemsize}")
        return f", by at most {(np.maximum(a, b).astype(unsigned) - np.minimum(a, b).astype(unsigned)).max():,}"
    if kind == "c":
        part = np.dtype(f"{a.dtype.byteorder}f{a.dtype.itemsize // 2}")
        a, b = np.ascontiguousarray(a).view(part), np.ascontiguousarray(b).view(part)
    elif not _is_float(a.dtype):
        return ""
    exact_a, exact_b = a.astype(np.float64), b.astype(np.float64)
    one_nan = np.isnan(exact_a) != np.isnan(exact_b)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(exact_a - exact_b)
    finite = np.isfinite(gaps)
    said = ""
    if finite.any():
        ulps = int(_ulps(a[finite], b[finite]).max())
        said = f", by at most {gaps[finite].max():.3g} ({ulps:,} ULP{'s' if ulps != 1 else ''})"
    if infinite := int(np.isinf(gaps).sum()):
        said += f", {infinite:,} of them by infinity"
    if one_nan.any():
        said += f", {int(one_nan.sum()):,} of them NaN in one only"
    return said


def _is_float(dtype: np.dtype[Any]) -> bool:
    try:
        ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return False
    return True


def _ulps(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bits = 8 * a.dtype.itemsize
    swapped = a.dtype.byteorder == ">"
    codes = [np.ascontiguousarray(x).view(f"{'>' if swapped else '<'}u{bits // 8}").astype(np.uint64) for x in (a, b)]
    sign = np.uint64(1 << (bits - 1))
    (size_a, size_b), (minus_a, minus_b) = ([code & ~sign for code in codes], [code & sign != 0 for code in codes])
    return np.where(minus_a == minus_b, np.maximum(size_a, size_b) - np.minimum(size_a, size_b), size_a + size_b)


def _compare_state(a: Any, b: Any) -> tuple[list[str], int]:
    ours, theirs = dict(_leaves(a, "state")), dict(_leaves(b, "state"))
    found = []
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs:
            where, there = ("A", ours) if name in ours else ("B", theirs)
            found.append(f"{name} is in {where} only: {there[name]}")
        elif ours[name] != theirs[name]:
            found.append(f"{name} is {ours[name]} in A and {theirs[name]} in B")
    return found, len({**ours, **theirs})


def _leaves(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Each leaf as its place and its JSON text, in which 1, 1.0 and true differ, and NaN equals NaN."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{where}[{key!r}]")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{where}[{index}]")
    else:
        yield where, json.dumps(value)


def _compare_files(a: Manifest, b: Manifest) -> tuple[list[str], int]:
    ours, theirs = ({file.path: file for file in manifest.files if file.path != STATE} for manifest in (a, b))
    found = []
    for path in {**ours, **theirs}:
        if path not in ours or path not in theirs:
            found.append(f"file {path!r} is in {'A' if path in ours else 'B'} only")
        elif ours[path] != theirs[path]:
            found.append(f"file {path!r} has other bytes ({ours[path].nbytes:,} in A, {theirs[path].nbytes:,} in B)")
    return found, len({**ours, **theirs})


def _shown(value: Any) -> str:
    text = repr(bytes(value)) if isinstance(value, bytes) else repr(str(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
