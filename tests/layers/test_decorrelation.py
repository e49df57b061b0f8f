"""BarlowTwins and VICReg: the battery against NumPy, and what their papers say of special cases."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from layers.decorrelation import BarlowTwins, VICReg
from tests.layers.house import check_layer
from tests.layers.mutations import check_caught, mutant

RANDOM = np.random.default_rng(0)
INPUTS, SEQUENCES = RANDOM.standard_normal((7, 4)), RANDOM.standard_normal((4, 6, 5))
MASK = np.arange(6) < np.array([[6], [4], [3], [6]])
VIEWS = INPUTS, 0.6 * INPUTS + 0.7 * RANDOM.standard_normal((7, 4)) + 0.3
LONG_VIEWS = SEQUENCES, 0.6 * SEQUENCES + 0.7 * RANDOM.standard_normal((4, 6, 5)) + 0.3


def barlow(kind=BarlowTwins, **arguments):
    return kind(**{"strength": 0.7, "redundancy": 0.2, **arguments})


def vicreg(kind=VICReg, **arguments):
    return kind(**{"invariance": 2.0, "variance": 3.0, "covariance": 0.5, **arguments})


def rows(mask, *views):
    """Those that count, as matrices."""
    return [view.reshape(-1, view.shape[-1]) if mask is None else view[np.asarray(mask, bool)] for view in views]


def beside_diagonal(matrix):
    return matrix[~np.eye(len(matrix), dtype=bool)]


def correlation(layer, first, second, mask=None):
    first, second = rows(mask, first, second)
    scale = [np.sqrt(z.var(0) + layer.epsilon) for z in (first, second)]
    return np.cov(first.T, second.T, bias=True)[: first.shape[1], first.shape[1] :] / np.outer(*scale)


def barlow_loss(layer, first, second, mask=None):
    c = correlation(layer, first, second, mask)
    return layer.strength.numpy() * (np.sum((1 - np.diag(c)) ** 2) + layer.redundancy.numpy() * np.sum(beside_diagonal(c) ** 2))


def barlow_metrics(layer, first, second, mask=None):
    c = correlation(layer, first, second, mask)
    std = [np.sqrt(z.var(0) + layer.epsilon).mean() for z in rows(mask, first, second)]
    return {"off_diagonal": np.sqrt(np.mean(beside_diagonal(c) ** 2)), "std": np.mean(std)}


def vicreg_loss(layer, first, second, mask=None):
    first, second = rows(mask, first, second)
    total = layer.invariance.numpy() * np.mean((first - second) ** 2)
    for z in (first, second):
        total += layer.variance.numpy() * np.mean(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + layer.epsilon)))
        total += layer.covariance.numpy() * np.sum(beside_diagonal(np.cov(z.T)) ** 2) / z.shape[1]
    return total


def vicreg_metrics(layer, first, second, mask=None):
    views = rows(mask, first, second)
    std = [np.sqrt(z.var(0, ddof=1) + layer.epsilon).mean() for z in views]
    return {"off_diagonal": np.sqrt(np.mean([beside_diagonal(np.cov(z.T)) ** 2 for z in views])), "std": np.mean(std)}


TWO_VIEWS = {"oracle": lambda layer, first, second, mask=None: (first, second), "losses": 1, "metrics": ["off_diagonal", "std"]}
BARLOW = {
    **TWO_VIEWS,
    "loss_oracle": barlow_loss,
    "metric_oracle": barlow_metrics,
    "coefficients": ["strength", "redundancy"],
    "invalid": [{"strength": -1.0}, {"redundancy": -1.0}, {"epsilon": 0.0}],
}
VICREG = {
    **TWO_VIEWS,
    "loss_oracle": vicreg_loss,
    "metric_oracle": vicreg_metrics,
    "coefficients": ["invariance", "variance", "covariance"],
    "invalid": [{"invariance": -1.0}, {"variance": -1.0}, {"covariance": -1.0}, {"epsilon": 0.0}],
}
DECORRELATION = {"BarlowTwins": (barlow, BARLOW), "VICReg": (vicreg, VICREG)}


@pytest.mark.parametrize("name", DECORRELATION)
def test_decorrelation_passes_the_battery(name, battery):
    factory, settings = DECORRELATION[name]
    check_layer(factory, LONG_VIEWS, call_kwargs={"mask": MASK}, **battery, **settings)


@pytest.mark.parametrize("name", DECORRELATION)
def test_decorrelation_passes_it_without_time_and_mask(name):
    factory, settings = DECORRELATION[name]
    check_layer(factory, VIEWS, only=["oracle", "loss_oracle", "metric_values", "gradient", "empty_batch", "single_example"], **settings)


BARLOW_MUTATIONS = {
    "sign": ("tf.square(1 - tf.linalg.diag_part", "tf.square(1 + tf.linalg.diag_part", "loss_oracle"),
    "reduction axis": ("= [tf.reduce_sum(tf.square(r), 0)", "= [tf.reduce_sum(tf.square(r))", "loss_oracle"),
    "gradient stopped": ("[r * tf.math.rsqrt(v)", "[r * tf.stop_gradient(tf.math.rsqrt(v))", "gradient"),
    "no epsilon": ("/ count + self.epsilon for r", "/ count for r", "extremes"),
    "loss counts padding": ("centered = tf.where(tf.cast(mask, tf.bool)[..., None], centered, 0.0)", "pass", "masking"),
    "baked in": ("for c in (self.strength, self.redundancy)", "for c in self.initial_weights", "coefficients"),
}
VICREG_MUTATIONS = {
    "sign": ("tf.nn.relu(1 - std)", "tf.nn.relu(1 + std)", "loss_oracle"),
    "reduction axis": ("[tf.matmul(r, r, transpose_a=True)", "[tf.matmul(r, r, transpose_b=True)", "loss_oracle"),
    "gradient stopped": ("std = tf.stack([", "std = tf.stop_gradient([", "gradient"),
    "no epsilon": ("tf.sqrt(tf.linalg.diag_part(c) + self.epsilon)", "tf.sqrt(tf.linalg.diag_part(c))", "extremes"),
    "biased": ("self._count(rows[0], mask) - 1, 1)", "self._count(rows[0], mask), 1)", "loss_oracle"),
    "half precision": ("self.loss(full_precision(first), full_precision(second), mask)", "self.loss(first, second, mask)", "policies"),
}
DECORRELATION_MUTATIONS = [(BarlowTwins, *m) for m in BARLOW_MUTATIONS.items()] + [(VICReg, *m) for m in VICREG_MUTATIONS.items()]


@pytest.mark.parametrize("kind, name, mutation", DECORRELATION_MUTATIONS)
def test_the_battery_notices_in_decorrelation(kind, name, mutation):
    old, new, found_by = mutation
    factory, settings = DECORRELATION[kind.__name__]
    check_caught(found_by, functools.partial(factory, mutant(kind, old, new)), LONG_VIEWS, call_kwargs={"mask": MASK}, **settings)


def test_uncorrelated_features_that_agree_cost_nothing():
    x = np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * 2
    for layer in (BarlowTwins(), VICReg()):
        layer(x, x)
        assert 0 <= float(layer.losses[0]) < 1e-9
        assert {m.name.partition("/")[2]: round(float(m.result()), 2) for m in layer.metrics}["off_diagonal"] == 0


def test_collapsed_views_cost_what_the_papers_say():
    x = np.ones([5, 3], "float32")
    layer = BarlowTwins()
    layer(x, x)
    assert float(layer.losses[0]) == 3.0  # C = 0
    layer = VICReg(epsilon=1e-4)
    layer(x, x)
    np.testing.assert_allclose(layer.losses[0], 25 * 2 * (1 - 0.01), rtol=1e-6)


def test_views_that_do_not_fit_are_refused_and_both_get_the_mask():
    with pytest.raises(ValueError, match="same shape; got"):
        BarlowTwins()(np.ones([4, 3]), np.ones([4, 2]))
    x = keras.layers.Masking()(tf.constant([[[1.0, 2.0], [0.0, 0.0]]]))
    first, second = VICReg()(x, tf.ones([1, 2, 2]))
    assert first._keras_mask.numpy().tolist() == second._keras_mask.numpy().tolist() == [[True, False]]


@pytest.mark.parametrize("kind", [BarlowTwins, VICReg])
def test_the_mask_that_the_first_view_carries_counts_as_one_that_is_handed_over(kind):
    first = np.where(MASK[..., None], SEQUENCES, 0.0).astype("float32")
    second = SEQUENCES[::-1].astype("float32")

    def reported(kind, first, **arguments):
        layer = kind()
        layer(first, second, **arguments)
        return [*map(float, layer.losses), *(float(metric.result()) for metric in layer.metrics)]

    carried = keras.layers.Masking()(first)
    expected = reported(kind, first, mask=MASK)
    np.testing.assert_allclose(reported(kind, carried), expected, rtol=1e-6)
    assert not np.allclose(reported(mutant(kind, "get_keras_mask(first)", "None"), carried), expected, rtol=1e-3)
