"""Layers that sample: GaussianSampling passes the battery against the closed-form divergence."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from layers.stochastic import GaussianSampling
from layers.testing import BrokenLayer
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
MEAN, LOGVAR = RANDOM.standard_normal((6, 4)), RANDOM.standard_normal((6, 4))
SEQUENCES = RANDOM.standard_normal((4, 6, 3)), RANDOM.standard_normal((4, 6, 3))
MASK = np.arange(6) < np.array([[6], [4], [3], [6]])


def divergence(mean, logvar):
    """KL(N(mean, exp(logvar)) || N(0, 1)), as log of the ratio of standard deviations and second moments."""
    sigma = np.exp(logvar / 2)
    return -np.log(sigma) + (sigma**2 + mean**2) / 2 - 0.5


def mean_kl(mean, logvar, mask=None):
    """Mean over unmasked examples, for each dimension."""
    kl = divergence(mean, logvar)
    return kl.reshape(-1, kl.shape[-1]).mean(0) if mask is None else kl[np.asarray(mask, bool)].mean(0)


def loss(layer, mean, logvar, mask=None):
    return float(layer.beta.numpy()) * np.maximum(mean_kl(mean, logvar, mask), layer.free_bits).sum()


def metrics(layer, mean, logvar, mask=None):
    return {"kl": mean_kl(mean, logvar, mask).sum(), "max_kl": mean_kl(mean, logvar, mask).max()}


SETTINGS = {
    "oracle": lambda layer, mean, logvar, mask=None: mean,
    "losses": 1,
    "loss_oracle": loss,
    "metrics": ["kl", "max_kl"],
    "metric_oracle": metrics,
    "coefficients": ["beta"],
    "stochastic": True,
    "invalid": [{"beta": -1.0}, {"free_bits": -0.1}, {"clip_logvar": 0.0}, {"clip_logvar": 1000.0}, {"beta": float("nan")}],
    "extremes": [(SEQUENCES[0], np.full_like(SEQUENCES[1], 1e6)), (SEQUENCES[0], np.full_like(SEQUENCES[1], -1e6))],
}


def test_gaussian_sampling_keeps_its_promises(battery):
    factory = functools.partial(GaussianSampling, beta=2.0, free_bits=0.3, seed=1)
    check_layer(factory, SEQUENCES, call_kwargs={"mask": MASK}, **battery, **SETTINGS)


def test_it_does_so_without_time_mask_and_free_bits():
    only = ["oracle", "loss_oracle", "metric_values", "gradient", "empty_batch", "single_example"]
    check_layer(functools.partial(GaussianSampling, beta=0.7, seed=1), (MEAN, LOGVAR), only=only, **SETTINGS)


MUTATIONS = {
    "sign": ("- wide_logvar - 1", "+ wide_logvar - 1", "loss_oracle"),
    "reduction axis": ("tf.reduce_sum(tf.maximum(", "tf.reduce_mean(tf.maximum(", "loss_oracle"),
    "gradient stopped": ("wide_mean + sigma *", "wide_mean + tf.stop_gradient(sigma) *", "gradient"),
    "metric over dimensions": ("tf.reduce_sum(doubled, -1)", "tf.reduce_mean(doubled, -1)", "metric_values"),
    "loss counts padding": ("masked_mean(doubled, mask,", "masked_mean(doubled, None,", "masking"),
    "metric counts padding": ("sample_weight=mask", "sample_weight=None", "masking"),
    "no clipping": ("-self.clip_logvar, self.clip_logvar", "-1e9, 1e9", "extremes"),
    "half precision": ("= full_precision(mean), full_precision(logvar)", "= tf.identity(mean), tf.identity(logvar)", "policies"),
    "beta is baked in": ("tf.cast(self.beta, sigma.dtype)", "self.initial_beta", "coefficients"),
    "same noise": ("replica_seed(self.seed_generator)", "self.seed_generator.next()", "replica_noise"),
    "config": ('"free_bits": self.free_bits, ', "", "config"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_battery_notices(name, two_replicas):
    old, new, found_by = MUTATIONS[name]
    factory = functools.partial(mutant(GaussianSampling, old, new), beta=2.0, free_bits=0.3, seed=1)
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory, SEQUENCES, call_kwargs={"mask": MASK}, strategy=two_replicas, only=[found_by], **SETTINGS)
    assert [*caught.value.broken] == [found_by]


def test_at_mean_and_sigma_one_the_divergence_is_half_for_each_dimension():
    layer = GaussianSampling()
    layer(np.ones([5, 3], "float32"), np.zeros([5, 3], "float32"))
    assert float(layer.losses[0]) == 1.5
    assert {m.name.rpartition("/")[2]: float(m.result()) for m in layer.metrics} == {"kl": 1.5, "max_kl": 0.5}


def test_samples_have_the_given_mean_and_deviation():
    mean, sigma = np.float32([2.0, -1.0]), np.float32([0.5, 3.0])
    found_mean, found_sigma = moments(GaussianSampling, mean, sigma)
    np.testing.assert_allclose(found_mean, mean, atol=0.07)  # 3 standard errors of the wider one
    np.testing.assert_allclose(found_sigma, sigma, rtol=0.02)
    _, wrong = moments(mutant(GaussianSampling, "tf.exp(wide_logvar / 2)", "tf.exp(wide_logvar)"), mean, sigma)
    np.testing.assert_allclose(wrong, sigma**2, rtol=0.02)


def moments(kind, mean, sigma):
    samples = kind(seed=3)(np.tile(mean, [20_000, 1]), np.tile(2 * np.log(sigma), [20_000, 1]), training=True).numpy()
    return samples.mean(0), samples.std(0)


def test_the_noise_is_the_same_in_every_mode_another_in_each_step_and_goes_on_after_a_restart(tmp_path):
    mean, logvar = (tf.constant(x, tf.float32) for x in SEQUENCES)
    eager, graph, compiled = (GaussianSampling(seed=7) for _ in range(3))
    calls = [
        lambda: eager(mean, logvar, training=True),
        tf.function(lambda: graph(mean, logvar, training=True)),
        tf.function(lambda: compiled(mean, logvar, training=True), jit_compile=True),
    ]
    seen = [[call().numpy() for _ in range(3)] for call in calls]
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen[2], seen[0], rtol=1e-4, atol=1e-5)
    first, second, _ = seen[0]
    assert (np.abs(first - second) > 1e-4).mean() > 0.99
    path = tf.train.Checkpoint(layer=eager).write(str(tmp_path / "layer"))
    expected = eager(mean, logvar, training=True)
    again = GaussianSampling(seed=99)
    again(mean, logvar)
    tf.train.Checkpoint(layer=again).read(path).assert_consumed()
    np.testing.assert_array_equal(again(mean, logvar, training=True), expected)


def test_below_the_free_bits_nothing_presses():
    mean, logvar = tf.constant([[0.1, 2.0]]), tf.zeros([1, 2])
    layer = GaussianSampling(free_bits=0.5)
    with tf.GradientTape() as tape:
        tape.watch(mean)
        layer(mean, logvar)
        total = layer.losses[0]
    np.testing.assert_allclose(tape.gradient(total, mean), [[0.0, 2.0]])
    np.testing.assert_allclose(total, 0.5 + 2.0)


def test_the_mask_that_the_mean_carries_counts():
    mean, logvar = np.where(MASK[..., None], SEQUENCES[0], 0.0).astype("float32"), SEQUENCES[1].astype("float32")
    expected = mean_kl(mean, logvar, MASK).sum()
    unmasked = mutant(GaussianSampling, "get_keras_mask(mean)", "None")
    for kind, found in ((GaussianSampling, expected), (unmasked, mean_kl(mean, logvar).sum())):
        layer = kind()
        z = layer(keras.layers.Masking()(mean), logvar)
        np.testing.assert_allclose(float(layer.losses[0]), found, rtol=1e-5)
        np.testing.assert_allclose({m.name.rpartition("/")[2]: float(m.result()) for m in layer.metrics}["kl"], found, rtol=1e-5)
        assert z._keras_mask.numpy().tolist() == MASK.tolist()
    x = keras.Input([6, 3])
    masked = keras.layers.Masking()(x)
    model = keras.Model(x, GaussianSampling()(masked, keras.layers.Dense(3, kernel_initializer="zeros")(masked)))
    model(mean)
    np.testing.assert_allclose(float(model.losses[0]), mean_kl(mean, 0 * logvar, MASK).sum(), rtol=1e-5)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="same shape; got"):
        GaussianSampling()(np.ones([2, 3]), np.ones([2, 4]))
