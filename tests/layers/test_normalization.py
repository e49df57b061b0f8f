"""WeightNormalization and SpectralNorm pass the battery against NumPy's norms and singular values, around dense layers and convolutions."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers.normalization as normalization
from layers.normalization import SpectralNorm, WeightNormalization
from layers.testing import BrokenLayer
from tests.layers.graph_fit import graph_fit
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((6, 5))
IMAGES = RANDOM.standard_normal((4, 6, 7, 2))


def around(kind, make=None, **arguments):
    """A factory that wraps a new layer of the given dtype."""
    make = make or functools.partial(keras.layers.Dense, 3, activation="tanh")
    return lambda **given: kind(make(dtype=given.get("dtype"), name="inner", kernel_initializer=initializer()), **{**arguments, **given})


def initializer():
    return keras.initializers.RandomNormal(
        stddev=0.5, seed=8
    )  # its singular values are 1.82, 0.45 and 0.31: power iterations converge at once


def unit(matrix):
    return matrix / np.sqrt((matrix**2).sum(0))


def weight_normalised(layer, x):
    return np.tanh(x @ (layer.gain.numpy() * unit(layer.layer.kernel.numpy())) + layer.layer.bias.numpy())


def plain(layer, x):
    return np.tanh(x @ layer.layer.kernel.numpy() + layer.layer.bias.numpy())


def move_away(layer):
    layer.gain.assign(layer.gain * [0.5, -2.0, 3.0])


WEIGHT = {"oracle": weight_normalised, "degenerate": {"as it begins": (lambda layer: None, plain)}}


def test_weight_normalization_keeps_its_promises(battery_of_a_function):
    check_layer(around(WeightNormalization), INPUTS, invalid=[{"axis": ()}, {"axis": 1.5}], **battery_of_a_function, **WEIGHT)


CONVOLUTIONS = {
    "Conv2D": (functools.partial(keras.layers.Conv2D, 3, 3), -1),
    "Conv2DTranspose": (functools.partial(keras.layers.Conv2DTranspose, 3, 3), -2),
    "DepthwiseConv2D": (
        lambda dtype, name, kernel_initializer: keras.layers.DepthwiseConv2D(
            3, depth_multiplier=2, dtype=dtype, name=name, depthwise_initializer=kernel_initializer
        ),
        (-2, -1),
    ),
    "EinsumDense": (functools.partial(keras.layers.EinsumDense, "abcd,def->abcef", output_shape=(None, None, 2, 3)), (1, 2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_wrapping_changes_no_output_and_each_output_has_its_length(name):
    make, axis = CONVOLUTIONS[name]
    check_layer(
        around(WeightNormalization, make, axis=axis),
        IMAGES,
        degenerate={"as it begins": (lambda layer: None, lambda layer, x: layer.layer(x))},
        only=["degenerate", "gradient", *(["config", "policies", "xla", "keras_file"] if name == "Conv2D" else [])],
    )
    layer = around(WeightNormalization, make, axis=axis)()
    before = layer(IMAGES).numpy()
    layer.gain.assign(-2.0 * layer.gain)
    np.testing.assert_allclose(layer(IMAGES), -2.0 * before, rtol=1e-4, atol=1e-5)  # biases are 0


def test_the_gradient_of_the_direction_is_orthogonal_to_it():
    layer = around(WeightNormalization)()
    layer.build((None, 5))
    move_away(layer)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(INPUTS)))
    gradient = tape.gradient(loss, layer.layer.kernel.value).numpy()
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose((gradient * layer.layer.kernel.numpy()).sum(0), 0, atol=1e-5)


def data_initialised(layer, x, training):
    """The outputs before tanh have mean 0 and variance 1."""
    if not training:
        return weight_normalised(layer, x)
    linear = x @ unit(layer.layer.kernel.numpy())
    return np.tanh((linear - linear.mean(0)) / np.sqrt(linear.var(0) + 1e-10))


def test_the_first_training_batch_sets_gain_and_bias():
    check_layer(
        around(WeightNormalization, data_init=True),
        INPUTS,
        oracle=data_initialised,
        only=["config", "build", "oracle", "function", "xla", "unknown_dimensions", "keras_file", "checkpoint"]
        + ["frozen", "inference", "empty_batch", "training"],
        fit=graph_fit,
    )


def test_later_batches_set_nothing():
    layer = around(WeightNormalization, data_init=True)()
    layer(np.zeros([0, 5]), training=True)
    assert not layer.initialized.numpy()
    layer(INPUTS, training=True)
    assert layer.initialized.numpy()
    weights = layer.get_weights()
    layer(10 * INPUTS + 3, training=True)
    for before, after in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_replicas_set_what_one_device_sets(two_replicas):
    single = around(WeightNormalization, data_init=True)()
    single(INPUTS.astype("float32"), training=True)
    with two_replicas.scope():
        layer = around(WeightNormalization, data_init=True)()
        layer.build((None, 5))
    parts = INPUTS[:4].astype("float32"), INPUTS[4:].astype("float32")
    spread = two_replicas.experimental_distribute_values_from_function(lambda c: tf.constant(parts[c.replica_id_in_sync_group]))
    tf.function(lambda x: two_replicas.run(lambda x: layer(x, training=True), args=(x,)))(spread)
    for ours, theirs in zip(layer.weights, single.weights, strict=True):
        for local in two_replicas.experimental_local_results(ours.value):
            np.testing.assert_allclose(np.asarray(local), theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_a_convolution_is_set_from_all_places():
    layer = around(WeightNormalization, functools.partial(keras.layers.Conv2D, 3, 3), data_init=True)()
    outputs = layer(IMAGES, training=True).numpy()
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(outputs.std((0, 1, 2)), 1, rtol=1e-4)


def singular_values(layer):
    kernel = layer.layer.kernel.numpy()
    return np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)


def spectrally_normalised(layer, x):
    return np.tanh(x @ (layer.coefficient.numpy() / singular_values(layer)[0] * layer.layer.kernel.numpy()))


SPECTRAL = {
    "oracle": spectrally_normalised,
    "metrics": ["sigma"],
    "metric_oracle": lambda layer, x: {"sigma": singular_values(layer)[0]},
    "coefficients": ["coefficient"],
    "degenerate": {"coefficient sigma": (lambda layer: layer.coefficient.assign(singular_values(layer)[0]), plain)},
}


def test_spectral_norm_keeps_its_promises(two_replicas):
    check_layer(
        around(SpectralNorm, coefficient=0.7, iterations=2),
        INPUTS,
        invalid=[{"coefficient": 0.0}, {"coefficient": float("inf")}, {"iterations": 0}, {"axis": ()}],
        strategy=two_replicas,
        fit=graph_fit,
        **SPECTRAL,
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_largest_singular_value_of_any_kernel_becomes_the_coefficient(name):
    make, axis = CONVOLUTIONS[name]
    layer = around(SpectralNorm, make, axis=axis, coefficient=2.0, iterations=30)()
    before = layer(IMAGES, training=True).numpy()
    kernel = layer.layer.kernel.numpy()
    axes = [i % kernel.ndim for i in ((axis,) if isinstance(axis, int) else axis)]
    matrix = np.moveaxis(kernel, axes, range(len(axes))).reshape(int(np.prod([kernel.shape[i] for i in axes])), -1)
    sigma = np.linalg.svd(matrix, compute_uv=False)[0]
    np.testing.assert_allclose(layer.metrics[0].result(), sigma, rtol=1e-4)
    np.testing.assert_allclose(before, layer.layer(IMAGES) * (2.0 / sigma), rtol=1e-3, atol=1e-5)


def test_the_gradient_holds_the_term_of_sigma():
    """d/dW of sum(G * W / sigma) is G / sigma - (sum(G * W) / sigma^2) u v^T."""
    layer = around(SpectralNorm, functools.partial(keras.layers.Dense, 3), iterations=30)(dtype="float64")
    layer.build((None, 5))
    kernel, upstream = layer.layer.kernel.numpy(), RANDOM.standard_normal((6, 3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(INPUTS, training=True) * upstream)
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    outer = INPUTS.T @ upstream
    expected = outer / values[0] - (outer * kernel).sum() / values[0] ** 2 * np.outer(left[:, 0], right[0])
    np.testing.assert_allclose(tape.gradient(loss, layer.layer.kernel.value), expected, rtol=1e-6, atol=1e-8)


def test_the_kernel_is_not_overwritten_and_u_follows_it_one_iteration_a_step():
    layer = around(SpectralNorm)()
    layer.build((None, 5))
    kernel = layer.layer.kernel.numpy()
    start = np.float32([1.0, 0.0, 0.0])
    layer.u.assign(start)
    layer(INPUTS)
    layer.trainable = False
    layer(INPUTS, training=True)
    np.testing.assert_array_equal(layer.u, start)
    layer.trainable = True
    layer(INPUTS, training=True)
    turned = kernel.T @ kernel @ start
    np.testing.assert_allclose(layer.u, turned / np.linalg.norm(turned), rtol=1e-5)
    np.testing.assert_array_equal(layer.layer.kernel, kernel)


def test_shrink_only_leaves_a_small_kernel_alone():
    factory = around(SpectralNorm, shrink_only=True, coefficient=100.0)
    check_layer(factory, INPUTS, only=["config", "degenerate"], degenerate={"large coefficient": (lambda layer: None, plain)})
    layer = factory()
    layer(INPUTS)
    layer.coefficient.assign(0.01)
    np.testing.assert_allclose(layer(INPUTS), spectrally_normalised(layer, INPUTS), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [WeightNormalization, SpectralNorm])
def test_a_kernel_of_zeros_stays_finite(kind):
    layer = kind(keras.layers.Dense(3, kernel_initializer="zeros"))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(INPUTS.astype("float32"), training=True) - 1.0))
    assert np.isfinite(tape.gradient(loss, layer.layer.kernel.value)).all()
    assert not [w.name for w in layer.weights if not np.isfinite(w).all()]


MUTATIONS = {
    "length of the wrong axis": (WeightNormalization, "tf.square(kernel), self._inputs", "tf.square(kernel), self._outputs", "build"),
    "gain has no sign": (WeightNormalization, "gain * inverse", "tf.abs(gain) * inverse", "degenerate"),
    "norm is a constant to the gradient": (
        WeightNormalization,
        "self._squares(direction)",
        "tf.stop_gradient(self._squares(direction))",
        "gradient",
    ),
    "inverse is missing": (WeightNormalization, "gain * inverse", "gain", "oracle"),
    "config forgets": (WeightNormalization, '"axis": self.axis}', "}", "config"),
    "sigma is a constant to the gradient": (
        SpectralNorm,
        "tf.linalg.matvec(matrix, u))), 1e-12",
        "tf.linalg.matvec(tf.stop_gradient(matrix), u))), 1e-12",
        "gradient",
    ),
    "sigma squared": (SpectralNorm, "sigma = tf.sqrt(", "sigma = tf.identity(", "metric_values"),
    "coefficient is baked in": (SpectralNorm, "tf.cast(self.coefficient, sigma.dtype)", "self.initial_coefficient", "coefficients"),
    "sign": (SpectralNorm, "kernel * (tf.minimum", "-kernel * (tf.minimum", "oracle"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_battery_notices(name):
    kind, old, new, found_by = MUTATIONS[name]
    settings = WEIGHT if kind is WeightNormalization else SPECTRAL
    if kind is WeightNormalization:
        settings = {**settings, "degenerate": {"negative gain": (move_away, weight_normalised)}}
    arguments = {} if kind is WeightNormalization else {"iterations": 2}
    with pytest.raises(BrokenLayer) as caught:
        check_layer(around(mutant(kind, old, new), **arguments), INPUTS, only=[found_by], **settings)
    assert [*caught.value.broken] == [found_by]


def test_a_layer_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="wraps a Keras layer; got `layer`=3"):
        SpectralNorm(3)
    with pytest.raises(ValueError, match="needs a layer with a `kernel`; 'norm' has"):
        WeightNormalization(keras.layers.LayerNormalization(name="norm")).build((None, 3))
    with pytest.raises(ValueError, match="does not fit to the kernel of 'dense', which has 2 dimensions"):
        WeightNormalization(keras.layers.Dense(2, name="dense"), axis=2).build((None, 3))
    with pytest.raises(ValueError, match="`data_init` needs a layer whose last dimension is its 2 outputs"):
        WeightNormalization(keras.layers.Conv2D(2, 3, data_format="channels_first"), data_init=True).build((None, 2, 8, 8))


def test_nothing_is_left_replaced_when_a_call_fails():
    layer = around(SpectralNorm)()
    layer.build((None, 5))
    with pytest.raises(Exception, match="."):
        layer(np.zeros([2, 4]))
    assert isinstance(layer.layer.kernel, keras.Variable)
    assert normalization.master(layer.layer.kernel).shape == (5, 3)
