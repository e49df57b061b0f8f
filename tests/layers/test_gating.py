"""Maxout, NetVLAD and GatedResidual pass the battery against NumPy, SciPy's functions and Keras's layer normalisation."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from layers.gating import GatedResidual, Maxout, NetVLAD
from layers.testing import BrokenLayer
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((5, 6))
SEQUENCES = RANDOM.standard_normal((4, 7, 6))
MASK = np.arange(7) < np.array([[7], [4], [3], [7]])


def largest(layer, x):
    x = np.moveaxis(x, layer.axis, -1)
    size = x.shape[-1] // layer.units
    return np.moveaxis(np.stack([x[..., i * size : (i + 1) * size].max(-1) for i in range(layer.units)], -1), -1, layer.axis)


MAXOUT = {"oracle": largest, "degenerate": {"groups of one": ({"units": 6}, lambda layer, x: x)}}


def test_maxout_keeps_its_promises(battery_of_a_function):
    factory = functools.partial(Maxout, **{"units": 2})
    check_layer(factory, INPUTS, invalid=[{"units": 0}, {"units": 1.5}, {"axis": 0}], **battery_of_a_function, **MAXOUT)


@pytest.mark.parametrize("axis", [-1, 2, 1, -2])
def test_maxout_takes_any_axis(axis):
    factory = functools.partial(Maxout, **{"units": 2, "axis": axis})
    inputs = SEQUENCES if axis in (-1, 2) else np.swapaxes(SEQUENCES, 1, 2)
    check_layer(factory, inputs, oracle=largest, only=["config", "oracle", "gradient", "output_spec", "masking"])


def test_a_mask_over_the_channels_ends_at_maxout():
    mask = tf.ones([4, 6], tf.bool)
    assert Maxout(units=2, axis=1).compute_mask(tf.zeros([4, 6, 7]), mask) is None
    assert Maxout(units=2).compute_mask(tf.zeros([4, 6, 8]), mask) is mask


def test_channels_that_make_no_groups_are_refused():
    with pytest.raises(ValueError, match=r"`units`=4 must divide the channels, of which inputs of shape \(5, 6\) have 6"):
        Maxout(units=4)(INPUTS)
    with pytest.raises(ValueError, match=r"`axis`=2 does not fit to inputs of shape \(5, 6\)"):
        Maxout(units=2, axis=2)(INPUTS)


def described(layer, x, mask=None):
    """Vector by vector and cluster by cluster."""
    kernel, bias, centers = layer.kernel.numpy(), layer.bias.numpy(), layer.centers.numpy()
    rows = []
    for i, vectors in enumerate(x):
        vectors = vectors if mask is None else vectors[mask[i]]
        total = np.zeros(centers.shape)
        for vector in vectors:
            for k, share in enumerate(scipy.special.softmax(vector @ kernel + bias)):
                total[k] += share * (vector - centers[k])
        total /= np.sqrt(np.maximum((total**2).sum(-1, keepdims=True), 1e-12))
        rows.append(total.ravel() / np.sqrt(max((total**2).sum(), 1e-12)))
    return np.stack(rows)


def one_cluster(layer, x, mask=None):
    total = (x - layer.centers.numpy()).sum(1) if mask is None else ((x - layer.centers.numpy()) * mask[..., None]).sum(1)
    return total / np.linalg.norm(total, axis=-1, keepdims=True)


VLAD = {"oracle": described, "degenerate": {"one cluster": ({"clusters": 1}, one_cluster)}}


def test_netvlad_keeps_its_promises(battery_of_a_function):
    invalid = [{"clusters": 0}, {"sharpness": 0.0}, {"sharpness": float("nan")}, {"clusters": 2.5}]
    check_layer(
        functools.partial(NetVLAD, clusters=3), SEQUENCES, call_kwargs={"mask": MASK}, invalid=invalid, **battery_of_a_function, **VLAD
    )


def test_netvlad_does_so_without_a_mask():
    check_layer(functools.partial(NetVLAD, clusters=3), SEQUENCES, only=["oracle", "degenerate", "gradient", "build"], **VLAD)


def test_vectors_belong_to_the_nearest_cluster_when_it_begins():
    layer = NetVLAD(clusters=3, sharpness=50.0)
    layer.build((None, None, 6))
    centers = RANDOM.standard_normal((3, 6)).astype("float32")
    layer.centers.assign(centers)
    layer.reset_assignment()
    logits = SEQUENCES.reshape(-1, 6) @ layer.kernel.numpy() + layer.bias.numpy()
    squares = np.square(SEQUENCES.reshape(-1, 1, 6) - centers).sum(-1)
    np.testing.assert_array_equal(logits.argmax(-1), squares.argmin(-1))
    np.testing.assert_allclose(np.diff(logits), -50 * np.diff(squares), rtol=1e-3, atol=1e-3)


def test_a_set_of_nothing_is_zero_and_nan_under_the_mask_does_not_count():
    x = np.where(MASK[..., None], SEQUENCES, np.nan).astype("float32")
    layer = NetVLAD(clusters=3)
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = layer(tensor, mask=MASK & np.array([[True], [True], [True], [False]]))
        loss = tf.reduce_sum(y * tf.range(18.0))
    np.testing.assert_array_equal(y[3], np.zeros(18))
    np.testing.assert_allclose(y[:3], described(layer, SEQUENCES, MASK)[:3], rtol=1e-3, atol=1e-5)
    assert np.isfinite(tape.gradient(loss, tensor)).all()


def test_netvlad_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"NetVLAD takes inputs \[B, N, D\] with a known D; got shape \(5, 6\)"):
        NetVLAD(clusters=3)(INPUTS)


CONTEXT = RANDOM.standard_normal((4, 3))


def keras_norm(layer, x):
    norm = keras.layers.LayerNormalization(epsilon=layer.epsilon, dtype="float64")
    norm.build(x.shape)
    norm.set_weights([layer.scale.numpy(), layer.offset.numpy()])
    return norm(x).numpy()


def gated(layer, x, context=None):
    """The paper's equations 2 to 5 in NumPy and SciPy; the last step is Keras's."""
    w = {v.name: v.numpy() for v in layer.weights}
    h = x @ w["input_kernel"] + w["input_bias"]
    if context is not None:
        h += (context @ w["context_kernel"])[:, None]
    n = np.where(h > 0, h, np.expm1(np.minimum(h, 0))) @ w["hidden_kernel"] + w["hidden_bias"]
    skip = x @ w["skip_kernel"] + w["skip_bias"] if "skip_kernel" in w else x
    added = scipy.special.expit(n @ w["gate_kernel"] + w["gate_bias"]) * (n @ w["value_kernel"] + w["value_bias"])
    return keras_norm(layer, skip + added)


def close_the_gate(layer):
    layer.gate_bias.assign(layer.gate_bias - 1e4)


def some_biases(layer):
    for i, weight in enumerate(layer.weights):
        if len(weight.shape) == 1:
            weight.assign(weight + np.cos(np.arange(weight.shape[0]) + i))


GATED = {
    "oracle": gated,
    "degenerate": {
        "the gate is closed": (close_the_gate, lambda layer, x, context=None: keras_norm(layer, x)),
        "biases": (some_biases, gated),
    },
}


def test_gated_residual_keeps_its_promises(battery_of_a_function):
    invalid = [{"units": 0}, {"output_units": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"epsilon": 0.0}]
    check_layer(functools.partial(GatedResidual, **{"units": 5}), (SEQUENCES, CONTEXT), invalid=invalid, **battery_of_a_function, **GATED)


def test_without_context_and_of_another_size_it_does_too():
    checks = ["config", "build", "oracle", "gradient", "masking", "unknown_dimensions", "keras_file"]
    check_layer(functools.partial(GatedResidual, **{"units": 5, "output_units": 9}), SEQUENCES, oracle=gated, only=checks)


def test_with_dropout_it_does_too(two_replicas):
    check_layer(
        functools.partial(GatedResidual, **{"units": 5, "dropout": 0.4, "seed": 1}),
        SEQUENCES,
        oracle=gated,
        stochastic=True,
        strategy=two_replicas,
        only=["config", "oracle", "gradient", "policies", "seeds", "inference", "replica_noise", "checkpoint"],
    )


def test_dropout_keeps_the_mean_and_the_given_share():
    """With gates wide open and an identity behind the hidden layer, what is added shows what was dropped."""
    layer = GatedResidual(units=400, dropout=0.3, seed=1)
    x = np.zeros([100, 400], "float32")
    layer(x)
    for weight in layer.weights:
        weight.assign(0 * weight)
    layer.hidden_bias.assign(layer.hidden_bias + 1.0)
    layer.gate_bias.assign(layer.gate_bias + 30.0)
    layer.value_kernel.assign(np.eye(400))
    layer._normalised = lambda values: values
    y = layer(x, training=True).numpy()
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-5)
    np.testing.assert_allclose((y == 0).mean(), 0.3, atol=4 * np.sqrt(0.21 / y.size))


def test_a_context_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"`context` of shape \(4, 7, 6\) has more dimensions than the inputs, \(5, 6\)"):
        GatedResidual(units=2)(INPUTS, SEQUENCES)


CASES = {
    Maxout: ({"units": 2}, INPUTS, {}, MAXOUT),
    NetVLAD: ({"clusters": 3}, SEQUENCES, {"mask": MASK}, VLAD),
    GatedResidual: ({"units": 5}, (SEQUENCES, CONTEXT), {}, GATED),
}
MUTATIONS = {
    "smallest": (Maxout, "tf.reduce_max(", "tf.reduce_min(", "oracle"),
    "groups are strided": (
        Maxout,
        "[self.units, inputs.shape[axis] // self.units]",
        "[inputs.shape[axis] // self.units, self.units]",
        "oracle",
    ),
    "largest of the wrong axis": (Maxout, "groups), axis + 1)", "groups), axis)", "oracle"),
    "sign of the centers": (NetVLAD, "near - count *", "near + count *", "oracle"),
    "softmax over vectors": (
        NetVLAD,
        "tf.convert_to_tensor(self.bias))\n        if",
        "tf.convert_to_tensor(self.bias), 1)\n        if",
        "oracle",
    ),
    "padding belongs to clusters": (NetVLAD, "belongs = tf.where(mask, belongs,", "belongs = tf.where(True, belongs,", "masking"),
    "norm of each dimension": (NetVLAD, "l2_normalize(distances, -1)", "l2_normalize(distances, -2)", "oracle"),
    "no gradient for the centers": (NetVLAD, "tf.cast(full_precision(self.centers)", "tf.cast(tf.stop_gradient(self.centers)", "gradient"),
    "sign of the gate": (GatedResidual, "tf.sigmoid(linear(", "tf.sigmoid(-linear(", "oracle"),
    "gate and value share a bias": (
        GatedResidual,
        "self.value_kernel, self.value_bias)\n",
        "self.value_kernel, self.gate_bias)\n",
        "degenerate",
    ),
    "variance over time": (GatedResidual, "tf.square(centered), -1,", "tf.square(centered), -2,", "oracle"),
    "mean is a constant to the gradient": (
        GatedResidual,
        "values - tf.reduce_mean(values, -1, keepdims=True)",
        "values - tf.stop_gradient(tf.reduce_mean(values, -1, keepdims=True))",
        "gradient",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_battery_notices(name):
    kind, old, new, found_by = MUTATIONS[name]
    arguments, inputs, call_kwargs, settings = CASES[kind]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(mutant(kind, old, new), **arguments), inputs, call_kwargs=call_kwargs, only=[found_by], **settings)
    assert [*caught.value.broken] == [found_by]
