"""The importance-sampled likelihood is the true one where that can be computed otherwise."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import logsumexp

import loops
from research.formulas.likelihood import Likelihood, log_likelihood

PIXELS = 6


def nets(latent: int = 1):
    """An encoder that is a rough proposal, and a decoder that is far from linear."""
    keras.utils.set_random_seed(1)
    wide = keras.initializers.RandomNormal(stddev=1.5)
    x, z = keras.Input([PIXELS]), keras.Input([latent])
    mean, logvar = (keras.layers.Dense(latent, kernel_initializer=keras.initializers.RandomNormal(stddev=0.2))(x) for _ in range(2))
    h = keras.layers.Dense(8, activation="tanh", kernel_initializer=wide)(z)
    return keras.Model(x, [mean, logvar]), keras.Model(z, keras.layers.Dense(PIXELS, kernel_initializer=wide)(h))


def binary_images(n: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 2, [n, PIXELS]).astype("float32")


def on_a_grid(decoder, x: np.ndarray) -> np.ndarray:
    """log of the integral of p(x | z) N(z; 0, 1) over one z, by the trapezoidal rule in float64."""
    z = np.linspace(-9, 9, 20_001)
    logits = decoder(z[:, None].astype("float32")).numpy().astype(np.float64)
    given_z = (x[:, None] * logits - np.logaddexp(0, logits)).sum(-1)
    return logsumexp(given_z - z**2 / 2 - np.log(2 * np.pi) / 2 + np.log(z[1] - z[0]), axis=-1)


def test_it_is_the_integral_over_z():
    encoder, decoder = nets()
    x = binary_images(16)
    found = log_likelihood(encoder, decoder, tf.constant(x), [1, 2], samples=40_000, chunk=1_000).numpy()
    np.testing.assert_allclose(found, on_a_grid(decoder, x), atol=0.02)


def test_over_all_images_the_probabilities_add_up_to_one():
    encoder, decoder = nets(latent=2)
    everything = np.stack(np.meshgrid(*[[0.0, 1.0]] * PIXELS), -1).reshape(-1, PIXELS).astype("float32")
    found = log_likelihood(encoder, decoder, tf.constant(everything), [3, 4], samples=20_000, chunk=1_000)
    assert np.exp(found.numpy()).sum() == pytest.approx(1, abs=0.01)


def test_with_the_true_posterior_one_sample_is_enough():
    # A decoder that ignores z: p(z | x) is the prior, and every ratio the likelihood itself.
    x, z = keras.Input([PIXELS]), keras.Input([2])
    nothing = [keras.layers.Dense(2, kernel_initializer="zeros")(x) for _ in range(2)]
    bias = np.linspace(-2, 2, PIXELS)
    decoder = keras.Model(z, keras.layers.Dense(PIXELS, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(bias))(z))
    images = binary_images(5)
    found = log_likelihood(keras.Model(x, nothing), decoder, tf.constant(images), [5, 6], samples=1, chunk=1)
    np.testing.assert_allclose(found, (images * bias - np.logaddexp(0, bias)).sum(-1), rtol=1e-5)


def test_sums_do_not_overflow_and_are_those_of_all_samples_at_once():
    # Ratios around e^-900, which no float holds: the decoder is sure, and wrong.
    encoder, _ = nets()
    z = keras.Input([1])
    far = keras.Model(z, keras.layers.Dense(PIXELS, bias_initializer=keras.initializers.Constant(150.0))(z))
    x, seed, samples = tf.zeros([3, PIXELS]), [7, 8], 6
    found = log_likelihood(encoder, far, x, seed, samples=samples, chunk=2).numpy()
    mean, logvar = (t.numpy().astype(np.float64) for t in encoder(x))
    ratios = []
    for i in range(samples // 2):
        noise = tf.random.stateless_normal([2, 3, 1], tf.random.experimental.stateless_fold_in(seed, i)).numpy().astype(np.float64)
        drawn = mean + np.exp(logvar / 2) * noise
        logits = far(drawn.reshape(-1, 1)).numpy().reshape(2, 3, PIXELS)
        ratios.append(-np.logaddexp(0, logits).sum(-1) + (noise**2 - drawn**2 + logvar).sum(-1) / 2)
    np.testing.assert_allclose(found, logsumexp(np.concatenate(ratios), axis=0) - np.log(samples), rtol=1e-6)
    assert np.all(found < -800)


def test_more_samples_bring_the_bound_nearer_from_below():
    encoder, decoder = nets()
    x = binary_images(64)
    task = [Likelihood(encoder, decoder, samples=k, chunk=k) for k in (1, 500)]
    one, many = (loops.EvalLoop(each).run(loops.ArrayFeed(x, batch_size=64))["nll"] for each in task)
    assert one > many + 0.05
    assert many == pytest.approx(-on_a_grid(decoder, x).mean(), abs=0.03)


def test_xla_gives_the_same_estimate():
    encoder, decoder = nets()
    x = binary_images(32)
    task = Likelihood(encoder, decoder, samples=2_000, chunk=500)
    graph, xla = (loops.EvalLoop(task, compile=mode).run(loops.ArrayFeed(x, batch_size=16))["nll"] for mode in ("graph", "xla"))
    assert graph == pytest.approx(xla, abs=0.02)


def test_a_chunk_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="multiple of `chunk`; got 10 and 3"):
        Likelihood(*nets(), samples=10, chunk=3)
