"""Convolutions and pooling under XLA are those of TensorFlow's kernels, with their first and second derivatives, in forms that are fast."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.xla.replaced_ops import FastOps
from tests.loops.sampling import sample

RNG = np.random.default_rng(5)

# input, kernel, strides, padding
CONVOLUTIONS = {
    "few taps": ([3, 7, 6, 1], [3, 2, 1, 5], 1, "VALID"),
    "few taps, the same size": ([2, 5, 4, 2], [2, 2, 2, 2], 1, "SAME"),
    "few taps, strides": ([2, 7, 6, 1], [3, 2, 1, 2], (2, 1), "SAME"),
    "many taps": ([3, 7, 8, 4], [3, 4, 4, 5], 1, "VALID"),
    "many taps, the same size": ([2, 6, 5, 5], [4, 3, 5, 3], 1, "SAME"),
    "many channels": ([2, 6, 5, 10], [3, 2, 10, 3], 1, "SAME"),
    "many channels, strides": ([2, 8, 7, 10], [3, 3, 10, 3], (2, 1), "SAME"),
    "strides, rows left over": ([2, 9, 8, 9], [2, 3, 9, 2], (3, 2), "VALID"),
    "tiles": ([2, 7, 6, 3], [3, 2, 3, 4], (3, 2), "VALID"),
    "one by one": ([3, 4, 5, 6], [1, 1, 6, 7], 1, "SAME"),
    "explicit pads": ([2, 6, 7, 9], [3, 3, 9, 2], 1, [[0, 0], [2, 0], [1, 3], [0, 0]]),
    "a kernel as large as the image": ([4, 3, 3, 5], [3, 3, 5, 2], 1, "VALID"),
}
# input, window, strides, padding
POOLS = {
    "tiles": ([2, 6, 8, 3], (3, 2), (3, 2), "VALID"),
    "tiles, rows left over": ([2, 7, 9, 3], 2, 2, "VALID"),
    "tiles, padded": ([2, 7, 9, 3], 2, 2, "SAME"),
    "windows overlap": ([2, 6, 5, 2], (3, 2), (2, 1), "SAME"),
    "windows overlap in rows": ([2, 7, 6, 2], (3, 2), (1, 2), "VALID"),
    "gaps": ([2, 9, 9, 2], 2, 3, "VALID"),
}


def numbers(shape):
    return tf.constant(RNG.normal(size=shape))


def with_derivatives(op, arguments):
    """Output, gradients, and gradients of a function of the gradients."""
    with tf.GradientTape() as outer:
        outer.watch(arguments)
        with tf.GradientTape() as inner:
            inner.watch(arguments)
            output = op(*arguments)
            loss = tf.reduce_sum(tf.sin(output))
        first = inner.gradient(loss, arguments)
        bent = tf.add_n([tf.reduce_sum(tf.square(g) * tf.cos(g)) for g in first])
    return [output, *first, *outer.gradient(bent, arguments)]


def by_xla(function):
    def given(*arguments):
        with FastOps():
            return function(*arguments)

    return tf.function(given, jit_compile=True, autograph=False)


def under_xla(function, *arguments):
    return by_xla(function)(*arguments)


# Each form of an output and of both gradients (see loops/xla/convolutions.py), with each kind of padding, and strides where they matter.
OF_EACH_FORM = ["few taps, the same size", "few taps, strides", "many taps", "many channels, strides", "tiles", "explicit pads"]


@pytest.mark.parametrize("name", sample(CONVOLUTIONS, *OF_EACH_FORM))
def test_convolutions_and_their_derivatives_are_those_of_the_kernels(name):
    x, w, strides, padding = CONVOLUTIONS[name]

    def op(x, w):
        return tf.nn.conv2d(x, w, strides, padding)

    arguments = [numbers(x), numbers(w)]
    for found, expected in zip(under_xla(with_derivatives, op, arguments), with_derivatives(op, arguments), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


TRANSPOSED = ["many taps", "few taps, strides", "strides, rows left over"]


@pytest.mark.parametrize("name", sample(TRANSPOSED, "strides, rows left over"))
def test_transposed_convolutions_and_their_derivatives_are_those_of_the_kernels(name):
    x, w, strides, padding = CONVOLUTIONS[name]
    image, kernel = numbers(x), numbers(w)
    dy = tf.nn.conv2d(image, kernel, strides, padding)

    def op(dy, w):
        return tf.nn.conv2d_transpose(dy, w, x, strides, padding)

    for found, expected in zip(under_xla(with_derivatives, op, [dy, kernel]), with_derivatives(op, [dy, kernel]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", sample(POOLS, "tiles, rows left over", "tiles, padded", "windows overlap", "gaps"))
def test_pooling_and_its_gradient_are_those_of_the_kernel_also_where_places_are_tied(name):
    shape, size, strides, padding = POOLS[name]
    x = numbers(shape)

    def all_of(x):
        return with_derivatives(lambda x: tf.nn.max_pool2d(x, size, strides, padding), [x])

    compiled = by_xla(all_of)
    for values in (x, tf.round(x)):  # many of the second are tied
        for found, expected in zip(compiled(values), all_of(values), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_what_is_not_replaced_and_what_goes_another_way_still_works():
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Conv2D(4, 3, dilation_rate=2),
        keras.layers.Conv2D(4, 3, groups=2),
        keras.layers.Conv2D(4, 3, dtype="mixed_bfloat16"),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.Conv1D(4, 3),
        keras.layers.Conv3D(4, 2),
        keras.layers.AveragePooling2D(2),
        keras.layers.MaxPooling1D(2),
    ]
    inputs = []
    for layer in layers:
        rank = {"Conv1D": 3, "MaxPooling1D": 3, "Conv3D": 5}.get(type(layer).__name__, 4)
        inputs.append(tf.constant(np.random.default_rng(1).normal(size=[2, *[7, 6, 5][: rank - 2], 4]), "float32"))
        layer.build(inputs[-1].shape)

    def output_and_gradients(layer, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.square(tf.cast(y, tf.float32)))
        gradients = tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])
        return [tf.cast(v, tf.float32) for v in (y, *gradients)]

    def of_all(*inputs):
        return [output_and_gradients(layer, x) for layer, x in zip(layers, inputs, strict=True)]

    for layer, compiled, by_kernels in zip(layers, under_xla(of_all, *inputs), of_all(*inputs), strict=True):
        relative = 2**-6 if layer.compute_dtype == "bfloat16" else 1e-5  # a bfloat16 has 8 bits
        for found, expected in zip(compiled, by_kernels, strict=True):
            assert float(tf.reduce_max(tf.abs(found - expected))) <= relative * float(tf.reduce_max(tf.abs(expected))), layer.name


def test_a_batch_of_unknown_size_is_left_to_the_stock_op():
    @tf.function(input_signature=[tf.TensorSpec([None, 5, 5, 1], tf.float64), tf.TensorSpec([3, 3, 1, 2], tf.float64)])
    def op(x, w):
        with FastOps():
            return tf.nn.max_pool2d(tf.nn.conv2d(x, w, 1, "SAME"), 2, 2, "VALID")

    x, w = numbers([2, 5, 5, 1]), numbers([3, 3, 1, 2])
    np.testing.assert_array_equal(op(x, w), tf.nn.max_pool2d(tf.nn.conv2d(x, w, 1, "SAME"), 2, 2, "VALID"))


def test_derivatives_in_single_precision_and_of_arguments_that_are_not_tensors():
    x = tf.constant(RNG.normal(size=[2, 8, 8, 3]), "float32")
    blur = np.ones([3, 3, 3, 2])

    def op(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.max_pool2d(tf.nn.conv2d(x, blur, 1, "SAME"), 2, 2, "VALID")
            again = tf.nn.conv2d_transpose(y, tf.cast(blur, x.dtype), [tf.shape(x)[0], 8, 8, 3], 2, "SAME")
            loss = tf.reduce_sum(tf.square(again))
        return [again, tape.gradient(loss, x)]

    for found, expected in zip(under_xla(op, x), op(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-3)


def test_pooling_of_16_bit_numbers():
    whole = tf.round(numbers([2, 6, 6, 2]) * 4)

    def op(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nn.max_pool2d(x, 2, 2, "VALID")
            loss = tf.reduce_sum(y * y)
        return [y, tape.gradient(loss, x)]

    def both(x):
        return [tensor for dtype in ("float16", "bfloat16") for tensor in op(tf.cast(x, dtype))]

    for found, expected in zip(under_xla(both, whole), both(whole), strict=True):
        np.testing.assert_array_equal(tf.cast(found, tf.float32), tf.cast(expected, tf.float32))


def test_jacobians_vectorized_maps_and_tangents_go_by_the_stock_ops():
    x, w = tf.cast(numbers([2, 6, 6, 1]), "float32"), tf.cast(numbers([3, 3, 1, 2]), "float32")

    def model(x):
        return tf.reduce_sum(tf.nn.max_pool2d(tf.nn.conv2d(x, w, 1, "SAME"), 2, 2, "VALID"), [1, 2])

    def jacobian(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x)
        return tape.batch_jacobian(y, x)

    def mapped(x):
        return tf.vectorized_map(tf.function(lambda image: model(image[None])), x)

    def tangent(x):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = model(x)
        return accumulator.jvp(y)

    for function in (jacobian, mapped, tangent):
        np.testing.assert_allclose(under_xla(function, x), function(x), rtol=1e-5, atol=1e-5, err_msg=function.__name__)


def test_a_net_of_convolutions_trains_under_xla_as_in_a_graph():
    x, y = RNG.normal(size=[64, 12, 12, 1]).astype("float32"), np.arange(64) % 3
    weights = {}
    for mode in ("graph", "xla"):
        keras.utils.set_random_seed(4)
        convolutions = [keras.layers.Conv2D(6, 3, activation="relu"), keras.layers.MaxPooling2D(), keras.layers.Conv2D(12, 3, strides=2)]
        head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
        model = keras.Sequential([keras.Input([12, 12, 1]), *convolutions, *head])
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
        loops.fit(model, x, y, batch_size=16, epochs=3, shuffle=False, verbose=0, compile=mode)
        weights[mode] = model.get_weights()
    for graph, xla in zip(weights["graph"], weights["xla"], strict=True):
        np.testing.assert_allclose(xla, graph, rtol=1e-4, atol=1e-5)
