"""ConcreteDropout and HardConcreteGate: the battery, the papers' formulas, and what they do to their own parameters."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from layers.regularization import ConcreteDropout, HardConcreteGate
from layers.testing import BrokenLayer
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((6, 4))
SEQUENCES = RANDOM.standard_normal((4, 6, 3))


def concrete(kind=ConcreteDropout, layer=None, dtype=None, **arguments):
    layer = keras.layers.Dense(3, dtype=dtype, bias_initializer="normal") if layer is None else layer
    defaults = {"rate": 0.3, "weight_regularizer": 0.2, "dropout_regularizer": 0.4, "seed": 1}
    return kind(layer, dtype=dtype, **{**defaults, **arguments})


def concrete_loss(layer, x):
    p = 1 / (1 + np.exp(-layer.p_logit.numpy()))
    l2, scale = layer.weight_regularizer.numpy(), layer.dropout_regularizer.numpy()
    negative_entropy = -float(stats.bernoulli(p).entropy())
    return l2 * np.sum(layer.layer.kernel.numpy() ** 2) / (1 - p) + scale * x.shape[-1] * negative_entropy


def never_drop(layer):
    layer.p_logit.assign(-200.0)


CONCRETE = {
    "oracle": lambda layer, x: x @ layer.layer.kernel.numpy() + layer.layer.bias.numpy(),
    "losses": 1,
    "loss_oracle": concrete_loss,
    "metrics": ["p"],
    "metric_oracle": lambda layer, x: {"p": special.expit(layer.p_logit.numpy())},
    "coefficients": ["weight_regularizer", "dropout_regularizer"],
    "stochastic": True,
    "degenerate": {"p = 0": (never_drop, lambda layer, x: x @ layer.layer.kernel.numpy() + layer.layer.bias.numpy())},
    "invalid": [
        {"rate": 0.0},
        {"rate": 1.0},
        {"weight_regularizer": -1.0},
        {"dropout_regularizer": float("nan")},
        {"temperature": 0.0},
        {"layer": "dense"},
    ],
}


def test_concrete_dropout_passes_the_battery(battery):
    check_layer(concrete, INPUTS, **battery, **CONCRETE)


def test_it_does_so_with_sequences():
    only = ["oracle", "loss_oracle", "masking", "output_spec"]
    check_layer(concrete, SEQUENCES, only=only, **CONCRETE)


CONCRETE_MUTATIONS = {
    "sign": ("(p * log_p + kept * log_kept)", "(p * log_p - kept * log_kept)", "loss_oracle"),
    "reduction": ("squares = tf.reduce_sum(", "squares = tf.reduce_mean(", "loss_oracle"),
    "gradient stopped": ("tf.cast(logit, wide.dtype) + noise", "tf.stop_gradient(tf.cast(logit, wide.dtype)) + noise", "gradient"),
    "dimension": ("* self.dimension *", "*", "loss_oracle"),
    "half precision": ("with autocast_scope(None):", "with autocast_scope('float16'):", "loss_oracle"),
    "baked in": ("in (self.weight_regularizer, self.dropout_regularizer)", "in self.initial_regularizers", "coefficients"),
}


@pytest.mark.parametrize("name", CONCRETE_MUTATIONS)
def test_the_battery_notices_in_concrete_dropout(name):
    old, new, found_by = CONCRETE_MUTATIONS[name]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(concrete, mutant(ConcreteDropout, old, new)), SEQUENCES, only=[found_by], **CONCRETE)
    assert [*caught.value.broken] == [found_by]


def kept_by_concrete_dropout(kind):
    """What comes of ones, with the identity as the wrapped layer and hardly any relaxation."""
    identity = keras.layers.Dense(8, use_bias=False, kernel_initializer="identity")
    return concrete(kind, identity, rate=0.3, temperature=0.01)(tf.ones([4000, 8]), training=True).numpy()


def test_concrete_dropout_drops_at_the_rate_and_keeps_the_expectation():
    kept = kept_by_concrete_dropout(ConcreteDropout)
    assert stats.binomtest(int(np.sum(kept < 0.5)), kept.size, 0.3).pvalue > 1e-3
    assert abs(kept.mean() - 1) < 4 * kept.std() / np.sqrt(kept.size)
    not_scaled = kept_by_concrete_dropout(mutant(ConcreteDropout, "not_dropped / tf.cast(kept, wide.dtype)", "not_dropped"))
    assert abs(not_scaled.mean() - 1) > 0.25
    reversed_sign = kept_by_concrete_dropout(mutant(ConcreteDropout, "(-1 / self.temperature)", "(1 / self.temperature)"))
    assert abs(reversed_sign.mean() - 1) > 0.25


def learned_rate(**arguments):
    """The rate after gradient descent on the layer's loss alone."""
    layer, x = concrete(rate=0.3, **arguments), tf.constant(INPUTS, tf.float32)
    layer.build(x.shape)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            layer(x)
            loss = layer.losses[0]
        layer.p_logit.assign_sub(0.5 * tape.gradient(loss, layer.p_logit.value))

    for _ in range(100):
        step()
    return float(layer.p)


def test_entropy_drives_the_rate_to_a_half_and_large_weights_drive_it_down():
    assert abs(learned_rate(weight_regularizer=0.0) - 0.5) < 1e-3
    assert learned_rate(dropout_regularizer=0.0) < 0.1
    assert 0.1 < learned_rate(weight_regularizer=0.05) < 0.5


class SeesMasks(keras.layers.Dense):
    def call(self, inputs, mask=None):
        self.seen = mask
        return super().call(inputs)


def test_the_wrapped_layer_sees_the_mask_when_training_too():
    x = keras.layers.Masking()(tf.constant([[[1.0], [0.0]]]))
    for kind, arrives in ((ConcreteDropout, True), (mutant(ConcreteDropout, "set_keras_mask(inputs, mask)", "pass"), False)):
        layer = SeesMasks(2)
        concrete(kind, layer)(x, training=True)
        assert (layer.seen is not None) == arrives


def test_the_wrapped_layer_decides_what_becomes_of_the_mask():
    x = keras.layers.Masking()(tf.constant([[[1.0], [0.0]]]))
    assert concrete()(x, training=True)._keras_mask.numpy().tolist() == [[True, False]]
    destroys = keras.layers.Conv1D(2, 1, strides=2)
    for kind, destroyed in ((ConcreteDropout, True), (mutant(ConcreteDropout, " if self.layer.supports_masking else None", ""), False)):
        with pytest.warns(UserWarning, match="does not support masking"):
            y = concrete(kind, destroys)(x, training=True)
        assert (getattr(y, "_keras_mask", None) is None) == destroyed


def test_concrete_dropout_goes_around_convolutions_and_refuses_what_has_no_kernel():
    # In float64: the terms nearly cancel.
    layer = concrete(layer=keras.layers.Conv2D(2, 3, padding="same", dtype="float64"), dtype="float64")
    assert layer(tf.ones([2, 5, 5, 4]), training=True).shape == (2, 5, 5, 2)
    np.testing.assert_allclose(layer.losses[0], concrete_loss(layer, np.ones([2, 5, 5, 4])), rtol=1e-6)
    with pytest.raises(ValueError, match="regularizes a kernel, and ReLU has none"):
        concrete(layer=keras.layers.ReLU())(tf.ones([2, 3]))
    with pytest.raises(TypeError, match="`layer` must be a Keras layer"):
        ConcreteDropout("dense")


def gated(kind=HardConcreteGate, **arguments):
    return kind(**{"strength": 0.3, "seed": 1, "keep_rate": 0.8, "temperature": 0.6, "low": -0.2, "high": 1.3, **arguments})


def gates(layer, x):
    """Gates at inference."""
    s = special.expit(layer.log_alpha.numpy())
    return np.minimum(1, np.maximum(0, s * (layer.high - layer.low) + layer.low))


def chance(layer, x):
    """P(gate != 0), by the distribution of what is clipped: logistic, squashed and stretched."""
    at_zero = special.logit((0 - layer.low) / (layer.high - layer.low)) * layer.temperature
    return stats.logistic(loc=layer.log_alpha.numpy()).sf(at_zero)


HARD = {
    "oracle": lambda layer, x: x * gates(layer, x),
    "losses": 1,
    "loss_oracle": lambda layer, x: layer.strength.numpy() * chance(layer, x).sum(),
    "metrics": ["sparsity"],
    "metric_oracle": lambda layer, x: {"sparsity": 1 - chance(layer, x).mean()},
    "coefficients": ["strength"],
    "stochastic": True,
    "degenerate": {
        "open gates": (lambda layer: layer.log_alpha.assign(layer.log_alpha * 0 + 60), lambda layer, x: x),
        "closed gates": (lambda layer: layer.log_alpha.assign(layer.log_alpha * 0 - 60), lambda layer, x: 0 * x),
    },
    "invalid": [{"strength": -1.0}, {"keep_rate": 0.0}, {"temperature": 1.0}, {"low": 0.0}, {"high": 1.0}],
}


def test_hard_concrete_gates_pass_the_battery(battery):
    check_layer(gated, INPUTS, **battery, **HARD)


def test_they_do_so_with_sequences():
    only = ["oracle", "loss_oracle", "gradient", "masking", "output_spec", "single_example"]
    check_layer(gated, SEQUENCES, only=only, **HARD)


HARD_MUTATIONS = {
    "sign": ("tf.sigmoid(log_alpha - self.temperature *", "tf.sigmoid(log_alpha + self.temperature *", "loss_oracle"),
    "reduction": ("tf.reduce_sum(open_probability)", "tf.reduce_mean(open_probability)", "loss_oracle"),
    "gradient stopped": ("inputs * tf.cast(gate, inputs.dtype)", "inputs * tf.stop_gradient(tf.cast(gate, inputs.dtype))", "gradient"),
    "not stretched": ("s * (self.high - self.low) + self.low", "s", "oracle"),
    "metric": ("self.add_metric(1 - open_probability", "self.add_metric(open_probability", "metric_values"),
    "baked in": ("tf.cast(self.strength, log_alpha.dtype)", "self.initial_strength", "coefficients"),
}


@pytest.mark.parametrize("name", HARD_MUTATIONS)
def test_the_battery_notices_in_hard_concrete_gates(name):
    old, new, found_by = HARD_MUTATIONS[name]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(gated, mutant(HardConcreteGate, old, new)), INPUTS, only=[found_by], **HARD)
    assert [*caught.value.broken] == [found_by]


def p_value_of_gates(kind):
    """That drawn gates have the closed-form distribution, between 0 and 1 and at both ends."""
    layer = gated(kind)
    drawn = layer(tf.ones([20_000, 1]), training=True).numpy()
    closed, opened = np.sum(drawn == 0), np.sum(drawn == 1)
    stretched = stats.logistic(loc=layer.log_alpha.numpy()[0], scale=1)

    def below(v):
        return stretched.cdf(special.logit((v - layer.low) / (layer.high - layer.low)) * layer.temperature)

    inside = drawn[(drawn > 0) & (drawn < 1)]
    expected = np.array([below(0), below(1) - below(0), 1 - below(1)]) * drawn.size
    ends = stats.chisquare([closed, inside.size, opened], expected).pvalue
    return min(ends, stats.kstest((below(inside) - below(0)) / (below(1) - below(0)), "uniform").pvalue)


def test_drawn_gates_have_the_papers_distribution():
    assert p_value_of_gates(HardConcreteGate) > 1e-3
    for old, new in (
        (") / self.temperature)", "))"),
        ("(log_alpha + tf.math.log(u", "(-log_alpha + tf.math.log(u"),
        ("tf.math.log(u / (1 - u))) / self", "tf.math.log(u)) / self"),
    ):
        assert p_value_of_gates(mutant(HardConcreteGate, old, new)) < 1e-9


def test_each_example_has_its_own_gates_and_all_its_steps_have_the_same():
    y = gated()(tf.ones([50, 7, 3]), training=True).numpy()
    assert (y == y[:, :1]).all()
    assert len(np.unique(y[:, 0, 0])) > 10


def test_pressure_closes_the_gates_of_features_that_nobody_uses():
    layer, x = gated(strength=0.05, keep_rate=0.5), tf.constant(RANDOM.standard_normal((64, 4)), tf.float32)
    layer.build(x.shape)
    optimizer = keras.optimizers.Adam(0.2)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((tf.reduce_sum(layer(x, training=True)[:, :2], 1) - tf.reduce_sum(x[:, :2], 1)) ** 2) + layer.losses[0]
        optimizer.apply(tape.gradient(loss, [layer.log_alpha.value]), [layer.log_alpha])

    optimizer.build([layer.log_alpha])
    for _ in range(150):
        step()
    np.testing.assert_array_equal(gates(layer, x), [1, 1, 0, 0])
