"""DenseVariational passes the battery against Keras's Dense and the integral of the divergence, RandomFeatureGP against the posterior
over functions; broken ones do not."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import sklearn.gaussian_process as gp
import tensorflow as tf

from layers.base import register
from layers.bayesian import DenseVariational, RandomFeatureGP
from layers.testing import BrokenLayer
from tests.layers.house import check_layer

RANDOM = np.random.default_rng(0)
INPUTS, SEQUENCES = RANDOM.standard_normal((6, 5)), RANDOM.standard_normal((4, 6, 5))


def dense(layer, x):
    """Keras's own layer with the means."""
    plain = keras.layers.Dense(layer.units, layer.activation, dtype="float64")
    plain.build(x.shape)
    plain.set_weights([layer.kernel.numpy(), layer.bias.numpy()])
    return plain(x).numpy()


def sigma(layer):
    return np.log1p(np.exp(layer.rho.numpy().astype("float64")))


def divergence(layer, x=None):
    """Cross entropy minus entropy, of each weight."""
    s = sigma(layer)
    second_moment = s**2 + layer.kernel.numpy().astype("float64") ** 2
    cross = 0.5 * np.log(2 * np.pi * layer.prior_stddev**2) + second_moment / (2 * layer.prior_stddev**2)
    return (cross - scipy.stats.norm(scale=s).entropy()).sum()


def without_deviation(layer):
    layer.rho.assign(tf.fill(layer.rho.shape, -60.0))


SETTINGS = {
    "oracle": dense,
    "losses": 1,
    "loss_oracle": lambda layer, x: float(layer.kl_weight.numpy()) * divergence(layer) / layer.examples,
    "metrics": ["kl", "sigma"],
    "metric_oracle": lambda layer, x: {"kl": divergence(layer), "sigma": sigma(layer).mean()},
    "coefficients": ["kl_weight"],
    "stochastic": True,
    "degenerate": {"rho at minus infinity": (without_deviation, dense)},
    "invalid": [
        {"units": 0},
        {"examples": 0},
        {"estimator": "reinforce"},
        {"kl_weight": -1.0},
        {"prior_stddev": 0.0},
        {"initial_stddev": float("nan")},
    ],
}
factory_of = functools.partial(
    DenseVariational,
    units=3,
    examples=20,
    activation="tanh",
    kl_weight=0.7,
    prior_stddev=0.5,
    initial_stddev=0.3,
    bias_initializer="random_normal",
    seed=1,
)


def test_dense_variational_keeps_its_promises_in_sequences(battery):
    check_layer(functools.partial(factory_of, estimator="flipout"), SEQUENCES, **battery, **SETTINGS)


def test_the_other_estimator_does_too(two_replicas):
    only = ["config", "oracle", "degenerate", "gradient", "function", "policies", "replica_noise", "seeds"]
    check_layer(functools.partial(factory_of, estimator="local"), INPUTS, strategy=two_replicas, only=only, **SETTINGS)


def test_the_divergence_is_the_integral():
    layer = DenseVariational(units=1, examples=1, prior_stddev=0.7, initial_stddev=0.4)
    layer.build([None, 1])
    layer.kernel.assign([[0.9]])
    q, p = scipy.stats.norm(0.9, 0.4), scipy.stats.norm(0, 0.7)
    expected, _ = scipy.integrate.quad(lambda w: q.pdf(w) * (q.logpdf(w) - p.logpdf(w)), -5, 6)
    layer(np.ones([1, 1], "float32"))
    np.testing.assert_allclose(layer.losses[0], expected, rtol=1e-5)


def draws(layer, x, calls):
    """Outputs of many calls, `[calls, *output]`, less the mean."""
    outputs = tf.function(lambda: tf.map_fn(lambda _: layer(x, training=True), tf.range(calls), fn_output_signature=tf.float32))()
    return outputs.numpy() - layer(x, training=False).numpy()


def check_variance(kind, estimator):
    x = np.tile(np.float32([[0.5, -2.0, 1.0]]), [50, 1])
    layer = kind(units=2, examples=1, estimator=estimator, seed=3)
    layer.build(x.shape)
    layer.rho.assign([[0.0, 1.0], [-1.0, 0.5], [-2.0, 2.0]])
    noise = draws(layer, x, 600)
    assert abs(noise.mean((0, 1))).max() < 0.1
    np.testing.assert_allclose(noise.var((0, 1)), x[0] ** 2 @ sigma(layer) ** 2, rtol=0.15)  # 3 standard errors of 600 kernels
    return noise


def check_independence(kind, estimator):
    """Examples that are alike get noise without a correlation, in each of the calls."""
    noise = check_variance(kind, estimator)
    products = [(noise[:, i, u] * noise[:, j, u]).mean() for i, j in ((0, 1), (2, 7), (30, 4)) for u in (0, 1)]
    assert (np.abs(products) / noise.var() < 0.25).all()


@pytest.mark.parametrize("estimator", ["flipout", "local"])
def test_outputs_have_the_variance_of_sampled_kernels_and_differ_between_examples(estimator):
    check_independence(DenseVariational, estimator)


def test_a_deviation_that_vanishes_leaves_everything_finite():
    layer = DenseVariational(units=2, examples=1)
    layer.build([None, 3])
    layer.rho.assign(tf.fill(layer.rho.shape, -1000.0))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.ones([2, 3]), training=True)) + layer.losses[0]
    assert np.isfinite(total)
    assert all(np.isfinite(g).all() for g in tape.gradient(total, layer.trainable_weights))


# Mutations: each has to be found by the check beside it.


@register
class EntropyTurned(DenseVariational):
    def _divergence(self, mean, stddev):
        return super()._divergence(mean, stddev) + 2 * tf.reduce_sum(tf.math.log(stddev))


@register
class MeanOverUnits(DenseVariational):
    def _divergence(self, mean, stddev):
        return super()._divergence(mean, stddev) / self.units


@register
class NoGradientToDeviations(DenseVariational):
    def _divergence(self, mean, stddev):
        return super()._divergence(mean, tf.stop_gradient(stddev))


MUTATIONS = [(EntropyTurned, "loss_oracle"), (MeanOverUnits, "loss_oracle"), (NoGradientToDeviations, "gradient")]


@pytest.mark.parametrize("kind, broken", MUTATIONS, ids=[kind.__name__ for kind, _ in MUTATIONS])
def test_a_broken_divergence_is_caught(kind, broken):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(kind, **factory_of.keywords), INPUTS, only=[broken], **SETTINGS)
    assert [*caught.value.broken] == [broken]


class SameKernelForAll(DenseVariational):
    def _flipout(self, inputs, stddev):
        return inputs @ (stddev * tf.random.stateless_normal(tf.shape(stddev), tf.cast(self.seed_generator.next(), tf.int32)))


class VarianceForDeviation(DenseVariational):
    def _local(self, inputs, stddev):
        return super()._local(inputs, tf.square(stddev))


@pytest.mark.parametrize("kind, estimator", [(SameKernelForAll, "flipout"), (VarianceForDeviation, "local")])
def test_broken_noise_is_caught(kind, estimator):
    with pytest.raises(AssertionError):
        check_independence(kind, estimator)


# RandomFeatureGP.

MASK = np.arange(6) < np.array([[6], [4], [2], [6]])


def features(layer, x):
    angles = x @ layer.frequencies.numpy() / layer.length_scale + layer.phases.numpy()
    return np.sqrt(2 / layer.features) * np.cos(angles)


def variances(layer, x, training):
    phi = features(layer, x)
    if training:
        return (phi**2).sum(-1)
    return layer.ridge * np.einsum("...m,mn,...n", phi, np.linalg.inv(layer.precision.numpy()), phi)


def process(layer, x, mask=None, training=False):
    logits, variance = features(layer, x) @ layer.kernel.numpy(), variances(layer, x, training)
    return logits if training else logits / np.sqrt(1 + layer.mean_field * variance)[..., None], variance


def mean_variance(layer, x, mask=None, training=False):
    variance = variances(layer, x, training)
    return {"variance": variance.mean() if mask is None else variance[mask].mean()}


PROCESS = {
    "call_kwargs": {"mask": MASK},
    "oracle": process,
    "metrics": ["variance"],
    "metric_oracle": mean_variance,
    "invalid": [{"units": 0}, {"features": 0}, {"length_scale": 0.0}, {"ridge": -1.0}, {"mean_field": -0.1}],
}
process_of = functools.partial(RandomFeatureGP, units=3, features=20, length_scale=2.0, ridge=0.5, return_variance=True, seed=1)


def test_random_feature_gp_keeps_its_promises(battery):
    check_layer(process_of, SEQUENCES, **battery, **PROCESS)


def check_posterior(kind):
    """The variance after three batches and a forgotten one, against the posterior by the examples' own kernel matrix."""
    layer = kind(units=1, features=30, ridge=0.3, return_variance=True, dtype="float64")
    x, new = RANDOM.standard_normal((12, 2)), RANDOM.standard_normal((5, 2))
    layer(10 * x, training=True)
    layer.reset_precision()
    for i in range(0, 12, 4):
        layer(x[i : i + 4], training=True)
    seen, phi = features(layer, x), features(layer, new)
    cross = phi @ seen.T
    expected = (phi**2).sum(-1) - np.einsum("ij,jk,ik->i", cross, np.linalg.inv(seen @ seen.T + 0.3 * np.eye(12)), cross)
    np.testing.assert_allclose(layer(new)[1], expected, rtol=1e-6)


def test_the_variance_is_that_of_the_posterior_over_functions():
    check_posterior(RandomFeatureGP)


def test_with_many_features_it_is_that_of_the_exact_process():
    x, new = np.linspace(-2, 2, 15)[:, None], np.linspace(-6, 6, 40)[:, None]
    exact = gp.GaussianProcessRegressor(gp.kernels.RBF(0.8), alpha=0.2, optimizer=None).fit(x, np.zeros(15))
    layer = RandomFeatureGP(units=1, features=1500, length_scale=0.8, ridge=0.2, return_variance=True, seed=4)
    layer(x.astype("float32"), training=True)
    expected = exact.predict(new, return_std=True)[1] ** 2
    np.testing.assert_allclose(layer(new.astype("float32"))[1], expected, atol=0.1)
    assert expected.min() < 0.15 < 0.99 < expected.max()


def test_the_error_of_the_kernel_falls_with_the_root_of_the_number_of_features():
    x = RANDOM.standard_normal((40, 3)).astype("float32")
    exact = gp.kernels.RBF(1.5)(x)
    errors = []
    for number in (100, 10_000):
        layer = RandomFeatureGP(units=1, features=number, length_scale=1.5, seed=2)
        layer.frequencies = tf.constant(RANDOM.standard_normal((3, number)), tf.float32)
        layer.phases = tf.constant(RANDOM.uniform(0, 2 * np.pi, number), tf.float32)
        phi = layer._features(tf.constant(x)).numpy()
        errors.append(np.sqrt(((phi @ phi.T - exact) ** 2).mean()))
    assert 5 < errors[0] / errors[1] < 20


def test_frequencies_and_phases_are_drawn_as_they_should_and_stay():
    layer = RandomFeatureGP(units=1, features=300, seed=1)
    layer.build([None, 30])
    assert scipy.stats.kstest(layer.frequencies.numpy().ravel(), "norm").pvalue > 0.01
    assert scipy.stats.kstest(layer.phases.numpy() / (2 * np.pi), "uniform").pvalue > 0.01
    assert [w.name for w in layer.trainable_weights] == ["kernel"]


@register
class Forgets(RandomFeatureGP):
    def _observe(self, phi, mask):
        self.reset_precision()
        super()._observe(phi, mask)


@register
class MeanOfExamples(RandomFeatureGP):
    def _observe(self, phi, mask):
        super()._observe(phi / tf.sqrt(tf.cast(tf.shape(phi)[0], phi.dtype)), mask)


@pytest.mark.parametrize("kind", [Forgets, MeanOfExamples])
def test_a_precision_of_other_examples_is_caught(kind):
    with pytest.raises(AssertionError):
        check_posterior(kind)


@register
class CovarianceForPrecision(RandomFeatureGP):
    def _variance(self, phi):
        return self.ridge * tf.einsum("...m,mn,...n", phi, tf.convert_to_tensor(self.precision), phi)


@register
class LearnsFromPadding(RandomFeatureGP):
    def _observe(self, phi, mask):
        super()._observe(phi, None)


@register
class NoGradientToInputs(RandomFeatureGP):
    def _features(self, inputs):
        return super()._features(tf.stop_gradient(inputs))


GP_MUTATIONS = [(CovarianceForPrecision, "oracle"), (LearnsFromPadding, "masking"), (NoGradientToInputs, "gradient")]


@pytest.mark.parametrize("kind, broken", GP_MUTATIONS, ids=[kind.__name__ for kind, _ in GP_MUTATIONS])
def test_a_broken_process_is_caught(kind, broken):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(kind, **process_of.keywords), SEQUENCES, only=[broken], **PROCESS)
    assert [*caught.value.broken] == [broken]
