"""NoisyDense passes the battery: it is Keras's Dense without its noise, and the noise has the paper's moments."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest

from layers.noisy import NoisyDense
from layers.testing import BrokenLayer
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

INPUTS = np.random.default_rng(0).standard_normal((6, 5))


def dense(layer, x):
    """Keras's own layer with the means."""
    plain = keras.layers.Dense(layer.units, activation=layer.activation, dtype=layer.dtype)
    plain.build(x.shape)
    plain.set_weights([layer.kernel.numpy(), layer.bias.numpy()])
    return plain(x).numpy()


SETTINGS = {
    "oracle": dense,
    "metrics": ["sigma"],
    "metric_oracle": lambda layer, x: {"sigma": np.abs(layer.kernel_sigma.numpy()).mean()},
    "stochastic": True,
    "degenerate": {"sigma 0": ({"sigma": 0.0}, dense)},
}
INVALID = [{"units": 0}, {"units": 2.5}, {"noise": "pink"}, {"sigma": -0.1}, {"sigma": float("nan")}]


def test_noisy_dense_keeps_its_promises(battery):
    factory = functools.partial(NoisyDense, **{"units": 3, "activation": "tanh", "seed": 1})
    check_layer(factory, INPUTS, invalid=INVALID, **battery, **SETTINGS)


def test_independent_noise_does_too():
    factory = functools.partial(NoisyDense, **{"units": 3, "noise": "independent", "sigma": 0.3, "seed": 1})
    check_layer(factory, INPUTS, only=["config", "oracle", "degenerate", "gradient", "policies", "seeds"], **SETTINGS)


MUTATIONS = {
    "noise without a scale": ("kernel += sigma * kernel_noise", "kernel += kernel_noise", "degenerate"),
    "sign of the metric": ("tf.abs(full_precision(sigma))", "-tf.abs(full_precision(sigma))", "metric_values"),
    "metric of another axis": (
        'tf.abs(full_precision(sigma)), "sigma"',
        'tf.reduce_sum(tf.abs(full_precision(sigma)), 0), "sigma"',
        "metric_values",
    ),
    "gradient stopped": (
        "+ tf.convert_to_tensor(self.bias_sigma)",
        "+ tf.stop_gradient(tf.convert_to_tensor(self.bias_sigma))",
        "gradient",
    ),
    "same noise on replicas": ("replica_seed(self.seed_generator)", "self.seed_generator.next()", "replica_noise"),
    "noise always": ("if training:", "if True:", "oracle"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_battery_notices(name, two_replicas):
    old, new, found_by = MUTATIONS[name]
    factory = functools.partial(mutant(NoisyDense, old, new), **{"units": 3, "seed": 1})
    settings = {k: v for k, v in SETTINGS.items() if k != "degenerate" or found_by == "degenerate"}
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory, INPUTS, strategy=two_replicas, only=[found_by], **settings)
    assert [*caught.value.broken] == [found_by]


def noise(kind, size=400, units=300):
    """What training adds to the kernel and the bias, divided by sigma."""
    layer = NoisyDense(units=units, noise=kind, sigma=1.0, seed=2)
    unit_vectors = np.concatenate([np.eye(size), np.zeros([1, size])]).astype("float32")
    drawn = layer(unit_vectors, training=True).numpy() - layer(unit_vectors).numpy()
    bias = drawn[-1] / layer.bias_sigma.numpy()
    return (drawn[:-1] - drawn[-1]) / layer.kernel_sigma.numpy(), bias


def test_factorised_noise_is_a_product_with_variance_two_over_pi():
    kernel, bias = noise("factorised")
    row, column = np.unravel_index(np.abs(kernel).argmax(), kernel.shape)
    np.testing.assert_allclose(np.outer(kernel[:, column], kernel[row]) / kernel[row, column], kernel, atol=1e-4 * np.abs(kernel).max())
    standard_error = 2 / np.pi * np.sqrt((np.pi / 2 - 1) * (1 / 400 + 1 / 300))  # of mean |p| times mean |q|
    np.testing.assert_allclose(np.mean(kernel**2), 2 / np.pi, atol=4 * standard_error)
    np.testing.assert_allclose(np.mean(bias**2), np.sqrt(2 / np.pi), atol=0.15)
    np.testing.assert_allclose(np.abs(np.corrcoef(kernel[row], bias)[0, 1]), 1, rtol=1e-4)  # one draw for each output
    assert 0.4 < np.mean(bias > 0) < 0.6


def test_independent_noise_is_normal():
    kernel, _ = noise("independent")
    np.testing.assert_allclose(kernel.std(), 1.0, rtol=0.01)
    np.testing.assert_allclose(kernel.mean(), 0.0, atol=0.01)
    np.testing.assert_allclose(np.mean(kernel**4), 3.0, rtol=0.05)
    assert np.linalg.svd(kernel[:80, :60], compute_uv=False)[1] > 10  # of a product it would be 0


@pytest.mark.parametrize(("kind", "bound", "sigma"), [("factorised", 0.1, 0.05), ("independent", np.sqrt(0.03), 0.017)])
def test_weights_begin_as_in_the_paper(kind, bound, sigma):
    layer = NoisyDense(units=50, noise=kind)
    layer.build((None, 100))
    means = layer.kernel.numpy()
    assert 0.98 * bound < means.max() <= bound
    assert -bound <= means.min() < -0.98 * bound
    np.testing.assert_allclose(layer.kernel_sigma.numpy(), sigma, rtol=1e-6)
    np.testing.assert_allclose(layer.bias_sigma.numpy(), sigma, rtol=1e-6)


def test_without_bias_there_are_two_weights():
    layer = NoisyDense(units=2, use_bias=False)
    layer(INPUTS, training=True)
    assert [w.name for w in layer.weights] == ["kernel", "kernel_sigma"]
