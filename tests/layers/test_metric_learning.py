"""CenterLoss and MarginSoftmax: the battery against NumPy, and what their papers say of special cases."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.preprocessing import normalize

from layers.metric_learning import CenterLoss, MarginSoftmax
from tests.layers.graph_fit import graph_fit
from tests.layers.house import check_layer
from tests.layers.mutations import check_caught, mutant

RANDOM = np.random.default_rng(0)
INPUTS, LABELS = RANDOM.standard_normal((7, 4)), np.array([0, 2, 2, 1, 2, 0, 2], "int32")
SEQUENCES, TAGS = RANDOM.standard_normal((4, 6, 5)), RANDOM.integers(0, 3, (4, 6)).astype("int32")
MASK = np.arange(6) < np.array([[6], [4], [3], [6]])
WITHOUT_TIME = ["oracle", "loss_oracle", "metric_values", "gradient", "replica_state", "empty_batch", "single_example"]


def unmasked(mask, *arrays):
    """The rows that count."""
    mask = np.ones(arrays[0].shape[:2] if arrays[0].ndim == 3 else len(arrays[0]), bool) if mask is None else np.asarray(mask, bool)
    return [a[mask] for a in arrays]


# CenterLoss


def center_loss(kind=CenterLoss, **arguments):
    return kind(**{"num_classes": 3, "strength": 0.6, "update_rate": 0.4, "centers_initializer": "random_normal", **arguments})


def distances(layer, x, labels, mask=None):
    x, labels = unmasked(mask, x, labels)
    return np.linalg.norm(x - layer.centers.numpy()[labels], axis=-1)


CENTER = {
    "oracle": lambda layer, x, labels, mask=None: x,
    "losses": 1,
    "loss_oracle": lambda layer, *batch, **more: layer.strength.numpy() * np.mean(distances(layer, *batch, **more) ** 2),
    "metrics": ["distance"],
    "metric_oracle": lambda layer, *batch, **more: {"distance": distances(layer, *batch, **more).mean()},
    "coefficients": ["strength"],
    "invalid": [{"num_classes": 0}, {"strength": -1.0}, {"update_rate": 1.5}, {"update_rate": -0.1}],
}


def test_center_loss_passes_the_battery(two_replicas):
    check_layer(center_loss, (SEQUENCES, TAGS), call_kwargs={"mask": MASK}, strategy=two_replicas, fit=graph_fit, **CENTER)


def test_center_loss_passes_it_without_time_and_mask(two_replicas):
    check_layer(center_loss, (INPUTS, LABELS), strategy=two_replicas, only=WITHOUT_TIME, **CENTER)


CENTER_MUTATIONS = {
    "sign": ("difference = wide - tf.where(", "difference = wide + tf.where(", "loss_oracle"),
    "reduction axis": ("= tf.reduce_sum(tf.square(difference), -1)", "= tf.reduce_mean(tf.square(difference), -1)", "loss_oracle"),
    "gradient stopped": ("masked_mean(squared, mask))", "masked_mean(tf.stop_gradient(squared), mask))", "gradient"),
    "loss counts padding": ("masked_mean(squared, mask))", "masked_mean(squared))", "masking"),
    "padding moves centers": ("if mask is None else tf.cast(mask, difference.dtype)", "", "masking"),
    "centers of one replica": ("= sum_over_replicas(", "= (", "replica_state"),
    "moves at inference": ("if training and self.trainable", "if self.trainable", "inference"),
    "moves when frozen": ("if training and self.trainable", "if training", "frozen"),
    "baked in": ("tf.cast(self.strength, wide.dtype) * masked_mean", "self.initial_strength * masked_mean", "coefficients"),
}  # fmt: skip


@pytest.mark.parametrize("name", CENTER_MUTATIONS)
def test_the_battery_notices_in_center_loss(name, two_replicas):
    old, new, found_by = CENTER_MUTATIONS[name]
    factory = functools.partial(center_loss, mutant(CenterLoss, old, new))
    check_caught(found_by, factory, (SEQUENCES, TAGS), call_kwargs={"mask": MASK}, strategy=two_replicas, **CENTER)


def moved(centers, x, labels, rate):
    """The paper's equation 4, example by example."""
    centers = centers.copy()
    for j in range(len(centers)):
        mine = [x[i] for i in range(len(x)) if labels[i] == j]
        centers[j] -= rate * sum((centers[j] - one for one in mine), np.zeros_like(centers[j])) / (1 + len(mine))
    return centers


def test_centers_move_as_in_the_paper_with_duplicate_and_missing_labels():
    labels = np.array([2, 2, 0, 2, 0, 2, 2])  # none of class 1
    expected = None
    for kind, right in ((CenterLoss, True), (mutant(CenterLoss, "/ (1 + count[:, None])", "/ 1"), False)):
        layer = center_loss(kind, dtype="float64")
        layer.build(INPUTS.shape)
        expected = layer.centers.numpy()
        for x in (INPUTS, INPUTS * 2):
            expected = moved(expected, x, labels, 0.4)
            layer(tf.constant(x), tf.constant(labels), training=True)
        assert np.allclose(layer.centers, expected, rtol=1e-12, atol=0) == right


def test_labels_may_be_a_column_or_missing_or_anything_where_masked():
    layer = center_loss()
    layer(INPUTS, LABELS)
    loss = float(layer.losses[0])
    layer(INPUTS, LABELS[:, None])
    assert float(layer.losses[0]) == loss
    np.testing.assert_array_equal(layer(INPUTS.astype("float32")), INPUTS.astype("float32"))
    assert not layer.losses
    mask = LABELS != 1
    layer(INPUTS, np.where(mask, LABELS, -1), mask=mask, training=True)
    assert np.isfinite(layer.losses[0]) and np.isfinite(layer.centers).all()


def test_a_mask_on_the_inputs_is_taken_though_there_are_labels():
    x = np.float32([[[3.0, 4.0], [0.0, 0.0]]])
    layer = CenterLoss(num_classes=2)
    layer(keras.layers.Masking()(x), np.array([[0, 1]]))
    assert float(layer.losses[0]) == 25.0


# MarginSoftmax


def margin_softmax(kind=MarginSoftmax, **arguments):
    defaults = {"num_classes": 3, "scale": 4.0, "angular_margin": 1.2, "cosine_margin": 0.2}
    return kind(**{**defaults, "kernel_initializer": keras.initializers.RandomNormal(seed=3), **arguments})


def angles(layer, x):
    cosines = normalize(x.reshape(-1, x.shape[-1])) @ normalize(layer.kernel.numpy(), axis=0)
    return np.arccos(cosines).reshape(*x.shape[:-1], -1)


def margin_logits(layer, x, labels, mask=None):
    t, m, c = angles(layer, x), layer.angular_margin.numpy(), layer.cosine_margin.numpy()
    right = labels[..., None] == np.arange(t.shape[-1])
    turned = np.where(t + m <= np.pi, np.cos(t + m), np.cos(t) - m * np.sin(m))
    return layer.scale * np.where(right, turned - c, np.cos(t))


def target_angle(layer, x, labels, mask=None):
    t, labels = unmasked(mask, angles(layer, x), labels)
    return {"target_angle": np.take_along_axis(t, labels[..., None], -1).mean()}


def softmax_logits(layer, x, labels, mask=None):
    return layer.scale * np.cos(angles(layer, x))


MARGIN = {
    "oracle": margin_logits,
    "metrics": ["target_angle"],
    "metric_oracle": target_angle,
    "coefficients": ["angular_margin", "cosine_margin"],
    "degenerate": {"no margin": ({"angular_margin": 0.0, "cosine_margin": 0.0}, softmax_logits)},
    "invalid": [{"num_classes": 0}, {"scale": 0.0}, {"angular_margin": -0.1}, {"angular_margin": 30.0}, {"cosine_margin": -0.1}],
}


def test_margin_softmax_passes_the_battery(battery):
    check_layer(margin_softmax, (SEQUENCES, TAGS), call_kwargs={"mask": MASK}, **battery, **MARGIN)


def test_margin_softmax_passes_it_without_time_and_mask(two_replicas):
    check_layer(margin_softmax, (INPUTS, LABELS), strategy=two_replicas, only=WITHOUT_TIME, **MARGIN)


def test_both_sides_of_pi_are_among_the_examples_of_the_battery():
    layer = margin_softmax()
    layer.build(SEQUENCES.shape)
    t = np.take_along_axis(angles(layer, SEQUENCES), TAGS[..., None], -1)
    assert 0 < np.sum(t + 1.2 > np.pi) < t.size


MARGIN_MUTATIONS = {
    "sign": ("turned = cos * tf.cos(angular) - sin *", "turned = cos * tf.cos(angular) + sin *", "oracle"),
    "reduction axis": ("_unit(tf.cast(self.kernel, wide.dtype), 0)", "_unit(tf.cast(self.kernel, wide.dtype), 1)", "oracle"),
    "gradient stopped": ("squared_sine = 1 - tf.square(cos)", "squared_sine = tf.stop_gradient(1 - tf.square(cos))", "gradient"),
    "margin for all": ("cosines + target *", "cosines +", "oracle"),
    "beyond pi": ("turned = tf.where(cos >= -tf.cos(angular), turned,", "turned = tf.where(cos >= -1.0, turned,", "oracle"),
    "metric counts padding": ("counted & tf.cast(mask, tf.bool)", "counted", "masking"),
    "baked in": ("for margin in (self.angular_margin, self.cosine_margin)", "for margin in self.initial_margins", "coefficients"),
    "zeros": ("tf.where(squared > 0, squared, 1.0)", "squared", "extremes"),
    "metric counts no class": ("counted = labels >= 0", "counted = labels > 0", "metric_values"),
}


@pytest.mark.parametrize("name", MARGIN_MUTATIONS)
def test_the_battery_notices_in_margin_softmax(name):
    old, new, found_by = MARGIN_MUTATIONS[name]
    factory = functools.partial(margin_softmax, mutant(MarginSoftmax, old, new))
    check_caught(found_by, factory, (SEQUENCES, TAGS), call_kwargs={"mask": MASK}, **MARGIN)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.matrix), "mixed_float16"])
def test_nothing_is_nan_where_an_example_lies_on_its_class_or_opposite(dtype):
    def gradients(kind):
        layer = margin_softmax(kind, kernel_initializer="identity", cosine_margin=0.0, dtype=dtype)
        x = tf.constant([[2.0, 0, 0], [-4.0, 0, 0], [0, 0.5, 0], [0, 0, 0]], "float16" if "16" in dtype else dtype)

        @tf.function(jit_compile=True, autograph=False)  # elsewhere, TensorFlow's gradient of the root lets 0 win over infinity
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                logits = layer(x, tf.constant([0, 0, 1, 2]))
            return logits, *tape.gradient(logits, [x, layer.kernel.value])

        layer.build(x.shape)
        return run(x)

    logits, *found = gradients(MarginSoftmax)
    # On its class, opposite, on its class; the zero vector stands at right angles to everything.
    expected = 4 * np.array([np.cos(1.2), -1 - 1.2 * np.sin(1.2), np.cos(1.2), np.cos(np.pi / 2 + 1.2)])
    np.testing.assert_allclose(np.diag(logits.numpy()[[0, 2, 3]]), expected[[0, 2, 3]], rtol=1e-3 if "16" in dtype else 1e-6)
    np.testing.assert_allclose(logits[1, 0], expected[1], rtol=1e-3 if "16" in dtype else 1e-6)
    assert all(np.isfinite(g).all() for g in found)
    if dtype == "float32":
        *_, broken = gradients(mutant(MarginSoftmax, "tf.sqrt(tf.where(squared_sine > 0, squared_sine, 1.0))", "tf.sqrt(squared_sine)"))
        assert not np.isfinite(broken).all()


def test_without_a_label_that_is_a_class_there_is_no_margin():
    layer = margin_softmax()
    plain = layer(INPUTS)
    np.testing.assert_allclose(plain, softmax_logits(layer, INPUTS, None), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer(INPUTS, np.full(7, -1)), plain)
    assert float(layer.metrics[0].result()) == 0
    assert not np.allclose(layer(INPUTS, LABELS), plain)
    np.testing.assert_array_equal(layer(INPUTS, LABELS[:, None]), layer(INPUTS, LABELS))


CARRIED = {
    "CenterLoss": (CenterLoss, "get_keras_mask(inputs) if mask is None else mask\n        wide", center_loss),
    "MarginSoftmax": (MarginSoftmax, "get_keras_mask(inputs) if mask is None else mask\n            cos", margin_softmax),
}


@pytest.mark.parametrize("name", CARRIED)
def test_the_mask_that_the_inputs_carry_counts_as_one_that_is_handed_over(name):
    kind, old, factory = CARRIED[name]
    inputs = np.where(MASK[..., None], SEQUENCES, 0.0).astype("float32")

    def reported(kind, inputs, **arguments):
        keras.utils.set_random_seed(0)  # the same weights
        layer = factory(kind)
        layer(inputs, TAGS, **arguments)
        return [*map(float, layer.losses), *(float(metric.result()) for metric in layer.metrics)]

    carried = keras.layers.Masking()(inputs)
    expected = reported(kind, inputs, mask=MASK)
    np.testing.assert_allclose(reported(kind, carried), expected, rtol=1e-6)
    deaf = mutant(kind, old, old.replace("get_keras_mask(inputs)", "None"))
    assert not np.allclose(reported(deaf, carried), expected, rtol=1e-3)
