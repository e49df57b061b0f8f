"""Compares what scenarios found: bit for bit between workers, up to float tolerance with two replicas of one process."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["assert_close", "assert_same"]

OWN = "own"  # name of what each replica has for itself


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Asserts that the results of two workers are equal, bit for bit, but for what each has for itself."""
    assert type(one) is type(two), f"{where}: {type(one).__name__} and {two!r}"
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one.keys() - {OWN}:
            assert_same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_same(left, right, f"{where}/{i}")
    elif isinstance(one, np.ndarray) and one.dtype.kind == "O":
        assert one.tolist() == two.tolist(), where
    elif isinstance(one, np.ndarray):
        assert one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes(), f"{where}: {one} and {two}"
    else:
        assert one == two, where


def assert_close(one: Any, two: Any, tolerance: float, where: str = "", *, worker: int = 0) -> None:
    """Asserts that what two replicas found and a worker found are equal, arrays and floats up to a tolerance, relative and absolute."""
    if where.endswith(f"/{OWN}"):
        one = [[values[worker]] for values in one]
    if isinstance(one, dict):
        assert isinstance(two, dict) and one.keys() == two.keys(), f"{where}: {sorted(one)} and {sorted(two)} {two.get('message')}"
        for key in one:
            assert_close(one[key], two[key], tolerance, f"{where}/{key}", worker=worker)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_close(left, right, tolerance, f"{where}/{i}", worker=worker)
    elif isinstance(one, (np.ndarray, float)) and np.asarray(one).dtype.kind in "fiu":
        np.testing.assert_allclose(two, one, rtol=tolerance, atol=tolerance, err_msg=where)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(two, one, err_msg=where)
    else:
        assert one == two, f"{where}: {one!r} and {two!r}"
