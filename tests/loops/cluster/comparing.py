"""Compares what scenarios found: bit for bit between workers, up to float tolerance with two replicas of one process."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["assert_close", "assert_same"]


def assert_same(one: Any, two: Any, where: str = "") -> None:
    """Asserts that two results are equal, bit for bit."""
    assert type(one) is type(two), f"{where}: {type(one).__name__} and {two!r}"
    if isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_same(left, right, f"{where}/{i}")
    elif isinstance(one, np.ndarray):
        assert one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes(), f"{where}: {one} and {two}"
    else:
        assert one == two, where


def assert_close(one: Any, two: Any, tolerance: float, where: str = "") -> None:
    """Asserts that two results are equal, their arrays and floats up to a tolerance, relative and absolute."""
    if isinstance(one, dict):
        assert isinstance(two, dict) and one.keys() == two.keys(), f"{where}: {sorted(one)} and {sorted(two)} {two.get('message')}"
        for key in one:
            assert_close(one[key], two[key], tolerance, f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_close(left, right, tolerance, f"{where}/{i}")
    elif isinstance(one, (np.ndarray, float)) and np.asarray(one).dtype.kind in "fiu":
        np.testing.assert_allclose(two, one, rtol=tolerance, atol=tolerance, err_msg=where)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(two, one, err_msg=where)
    else:
        assert one == two, f"{where}: {one!r} and {two!r}"
