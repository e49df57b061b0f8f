"""Aggregations against NumPy: weights, masks, NaN under a mask, reset."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from layers.aggregation import AGGREGATIONS, aggregate

RANDOM = np.random.default_rng(0)
BATCHES = [(RANDOM.standard_normal((n, 3, 2)), RANDOM.integers(0, 3, (n, 3)).astype("float64")) for n in (4, 2, 5)]


def by_numpy(kind, batches):
    values = np.concatenate([v.reshape(-1, 2) for v, _ in batches])
    weights = np.concatenate([w.reshape(-1) for _, w in batches])
    last_values, last_weights = batches[-1]
    return {
        "mean": lambda: np.average(values, axis=0, weights=weights).mean(),
        "sum": lambda: (values * weights[:, None]).sum(),
        "max": lambda: values[weights > 0].max(),
        "min": lambda: values[weights > 0].min(),
        "last": lambda: np.average(last_values.reshape(-1, 2), axis=0, weights=last_weights.reshape(-1)).mean(),
    }[kind]()


@pytest.mark.parametrize("kind", ["mean", "sum", "max", "min", "last"])
def test_weighted_values_of_several_batches(kind):
    metric = aggregate(kind, "metric")
    for value, weight in BATCHES:
        metric.add(value, weight)
    np.testing.assert_allclose(metric.result(), by_numpy(kind, BATCHES), rtol=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 0.0
    one_sign = [(sign * np.abs(value) - sign * 9, weight) for sign, (value, weight) in zip((1, -1), BATCHES[1:], strict=True)]
    for batch in one_sign:  # all on one side of 0, which a reset must not leave behind
        metric.reset_state()
        metric.add(*batch)
        np.testing.assert_allclose(metric.result(), by_numpy(kind, [batch]), rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "sum", "max", "min", "last"])
def test_what_weighs_nothing_does_not_count_even_if_it_is_nan(kind):
    metric = aggregate(kind, "metric")
    metric.add([[1.0, 5.0], [np.nan, np.inf]], sample_weight=[True, False])
    expected = {"mean": 3.0, "sum": 6.0, "max": 5.0, "min": 1.0, "last": 3.0}
    assert float(metric.result()) == expected[kind]


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_a_nan_that_counts_shows(kind):
    metric = aggregate(kind, "metric")
    metric.add([1.0, np.nan])
    assert np.isnan(metric.result())


@pytest.mark.parametrize("kind", sorted(k for k in AGGREGATIONS if k))
def test_an_empty_batch_changes_nothing_but_the_last(kind):
    metric = aggregate(kind, "metric")
    metric.add([2.0, 4.0])
    before = float(metric.result())
    metric.add(tf.zeros([0, 3]))
    assert float(metric.result()) == (0.0 if kind == "last" else before)


def test_whole_numbers_and_truth_values_are_counted_as_numbers():
    metric = aggregate("mean", "metric")
    metric.add([True, False, True, True])
    metric.add(tf.constant([0, 0], tf.int64))
    np.testing.assert_allclose(metric.result(), 0.5)


def test_weights_of_a_higher_rank_are_refused():
    with pytest.raises(ValueError, match=r"`sample_weight` has shape \(2, 3\), which does not fit to a value of shape \(2,\)"):
        aggregate("mean", "metric").add([1.0, 2.0], np.ones([2, 3]))
