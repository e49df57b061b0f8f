"""A table of metrics shows counts as counts, and all else with four digits."""

from __future__ import annotations

import numpy as np

from research.report import metrics_table


def cells(rows):
    return [line.split() for line in metrics_table(rows).splitlines()]


def test_a_column_of_whole_numbers_has_no_decimals():
    rows = {"a": {"weights": 21450.0, "updates": np.float32(0)}, "b": {"weights": 13_130, "updates": np.int64(600)}}
    assert cells(rows) == [["weights", "updates"], ["a", "21,450", "0"], ["b", "13,130", "600"]]


def test_a_whole_number_among_others_is_written_as_they_are():
    rows = {"a": {"accuracy": 1.0, "loss": 0.0}, "b": {"accuracy": 0.98125, "loss": 1e-5}}
    assert cells(rows) == [["loss", "accuracy"], ["a", "0.0000", "1.0000"], ["b", "1.000e-05", "0.9812"]]


def test_what_is_no_number_is_no_count():
    assert cells({"a": {"loss": float("nan")}, "b": {"loss": float("inf")}, "c": {"loss": 1.0}})[1:] == [
        ["a", "nan"],
        ["b", "inf"],
        ["c", "1.0000"],
    ]
