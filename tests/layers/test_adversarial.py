"""GradientReversal passes the battery: the identity forward, the negative backward."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from layers.adversarial import GradientReversal
from layers.testing import BrokenLayer
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

INPUTS = np.random.default_rng(0).standard_normal((6, 4))


SETTINGS = {
    "oracle": lambda layer, x: x,
    "gradient_oracle": lambda layer, x, upstream: -float(layer.strength.numpy()) * upstream,
    "metrics": ["strength"],
    "metric_oracle": lambda layer, x: {"strength": float(layer.strength.numpy())},
    "coefficients": ["strength"],
    "invalid": [{"strength": -1.0}],
}


def test_gradient_reversal_keeps_its_promises(battery):
    check_layer(functools.partial(GradientReversal, strength=0.3), INPUTS, **battery, **SETTINGS)


def test_it_does_so_with_sequences():
    only = ["oracle", "gradient", "masking", "output_spec"]
    check_layer(functools.partial(GradientReversal, strength=0.3), INPUTS.reshape(4, 3, 2), only=only, **SETTINGS)


MUTATIONS = {
    "sign": ("tf.cast(-strength *", "tf.cast(strength *", "gradient"),
    "no strength": ("-strength * tf.cast(upstream, strength.dtype)", "-upstream", "gradient"),
    "gradient stopped": ("return turn(inputs)", "return tf.stop_gradient(inputs)", "gradient"),
    "not the identity": ("return tf.identity(x), lambda", "return -x, lambda", "oracle"),
    "baked in": ("strength = tf.convert_to_tensor(self.strength)", "strength = tf.constant(self.initial_strength)", "coefficients"),
    "not a weight": ('self.add_coefficient("strength", strength)', "tf.constant(strength)", "coefficients"),
    "mask lost": ("self.supports_masking = True", "self._supports_masking, self.compute_mask = True, lambda *_: None", "masking"),
    "config": ('return {**super().get_config(), "strength": self.initial_strength}', "return super().get_config()", "config"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_battery_notices(name):
    old, new, found_by = MUTATIONS[name]
    factory = functools.partial(mutant(GradientReversal, old, new), strength=0.3)
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory, INPUTS, only=[found_by], **SETTINGS)
    assert [*caught.value.broken] == [found_by]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_gradient_is_turned_in_every_precision(dtype):
    layer = GradientReversal(strength=0.25, dtype=f"mixed_{dtype}" if "16" in dtype else dtype)
    x = tf.constant([1.0, -2.0], dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    gradient = tape.gradient(y, x, output_gradients=tf.constant([4.0, 8.0], dtype))
    assert gradient.dtype == y.dtype == x.dtype
    assert gradient.numpy().tolist() == [-1.0, -2.0]


def test_a_classifier_behind_it_learns_as_without_it_and_features_are_pushed_the_other_way():
    weights = tf.Variable([[0.5], [-1.0]])
    x = tf.Variable(INPUTS[:, :2].astype("float32"))

    def gradients(turn):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(turn(x) @ weights - 1.0))
        return tape.gradient(loss, [weights, x])

    with_it, without = gradients(GradientReversal(strength=2.0)), gradients(tf.identity)
    np.testing.assert_allclose(with_it[0], without[0], rtol=1e-6)
    np.testing.assert_allclose(with_it[1], -2.0 * without[1], rtol=1e-6)
