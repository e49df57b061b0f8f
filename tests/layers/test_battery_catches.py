"""Layers that are broken as people break them, each caught by the name of what it breaks, with no oracle but what everybody can give."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from layers.base import full_precision, masked_mean
from layers.testing import HOUSE_RULES, BrokenLayer, check_layer

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((4, 6, 3))

#: The others take most of the time and add nothing here.
ONLY = ["config", "build", "output_spec", "loss_count", "variables", "python_state", "loss_oracle", "function", "masking", "keras_file"]
ONLY += ["inference", "seeds", "single_example", "examples"]


class Gate(layers.Layer):
    """A right layer, which each of those below breaks in one place."""

    def __init__(self, *, factor=1.5, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
        self.supports_masking = True

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="kernel")

    def call(self, inputs, mask=None):
        self.add_loss(masked_mean(tf.square(full_precision(inputs)), mask))
        return self.output_of(inputs) * tf.cast(self.kernel, inputs.dtype)

    def output_of(self, inputs):
        return inputs * self.factor

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class DropsTheMask(Gate):
    def compute_mask(self, inputs, previous_mask):
        return None


class ShiftsTheMask(Gate):
    def compute_mask(self, inputs, previous_mask):
        return None if previous_mask is None else keras.ops.roll(previous_mask, 1, 1)


class HoldsAVariable(Gate):
    """Keras neither trains nor saves it."""

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = tf.Variable(1.0)

    def output_of(self, inputs):
        return inputs * tf.cast(self.scale, inputs.dtype)


class HidesAVariable(Gate):
    """In a plain object, where nothing looks for it."""

    def build(self, input_shape):
        super().build(input_shape)
        self.hidden = type("Holder", (), {})()
        self.hidden.scale = tf.Variable(1.0)

    def output_of(self, inputs):
        return inputs * tf.cast(self.hidden.scale, inputs.dtype)


class CountsInAVariable(HidesAVariable):
    """Which is written, and never read."""

    def output_of(self, inputs):
        self.hidden.scale.assign_add(1.0)
        return inputs * self.factor


class SaysAConstant(Gate):
    def get_config(self):
        return {**super().get_config(), "factor": 1.5}


class ForgetsAnArgument(Gate):
    def get_config(self):
        return {k: v for k, v in super().get_config().items() if k != "factor"}


class Counts(Gate):
    """Its calls are counted in Python: in a compiled step, once."""

    def build(self, input_shape):
        super().build(input_shape)
        self.calls = 0

    def output_of(self, inputs):
        self.calls += 1
        return inputs * self.factor


class Remembers(Gate):
    """The tensor of a graph, where the next call finds it."""

    def build(self, input_shape):
        super().build(input_shape)
        self.seen = []

    def output_of(self, inputs):
        self.seen.append(inputs)
        return inputs * self.factor


class AddsUpTheBatch(Gate):
    """The first example, which is compared with itself alone, does not see it."""

    def output_of(self, inputs):
        return tf.cumsum(inputs, 0)


class ComparesWithTheLast(Gate):
    def output_of(self, inputs):
        return inputs - inputs[-1:] * 0.1


#: Layer -> the property that it breaks, and what has to be said.
BROKEN = {
    DropsTheMask: ("masking", "the mask does not arrive at output/0"),
    ShiftsTheMask: ("masking", "the mask on output/0"),
    HoldsAVariable: ("variables", "self.scale: a variable that Keras does not know"),
    HidesAVariable: ("variables", "a variable that Keras does not know"),
    CountsInAVariable: ("variables", "`call` uses: a variable that Keras does not know"),
    SaysAConstant: ("config", "get_config() says factor=1.5 of a layer that was made with factor=0.875"),
    ForgetsAnArgument: ("config", "get_config() lacks 'factor'"),
    Counts: ("python_state", "a call changes `self.calls` (from "),
    Remembers: ("python_state", "a call changes `self.seen`"),
    AddsUpTheBatch: ("examples", "the other examples before and after example 0 was replaced"),
    ComparesWithTheLast: ("examples", "the other examples before and after example 3 was replaced"),
}


def settings(kind):
    mask = np.arange(6) < np.array([[6], [4], [3], [6]])
    loss = lambda layer, x, mask=None: np.mean(np.square(x)[mask])  # noqa: E731
    return {"inputs": X, "call_kwargs": {"mask": mask}, "losses": 1, "loss_oracle": loss, "only": ONLY}


@pytest.mark.parametrize("rules", [(), tuple(set(HOUSE_RULES) - {"registered"})], ids=["any layer", "house rules"])
def test_the_right_layer_passes(rules):
    check_layer(Gate, **settings(Gate), rules=rules)


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_layer_is_caught_by_name_without_an_oracle(kind):
    name, said = BROKEN[kind]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(kind, **settings(kind))
    assert said in caught.value.broken[name]
    messages = [found for found in caught.value.broken.values() if not found.startswith("the same as")]
    assert len(messages) == len({*messages}) and all(str(caught.value).count(found) == 1 for found in messages)
    # A cause may have other effects, of which each is true; it is not drowned in them.
    assert len(caught.value.broken) <= 3, caught.value


def test_what_two_properties_find_alike_is_said_once():
    class Fails(Gate):
        def output_of(self, inputs):
            raise RuntimeError("no output today")

    with pytest.raises(BrokenLayer) as caught:
        check_layer(Fails, **settings(Fails))
    assert str(caught.value).count("no output today") == 1
    assert [v for v in caught.value.broken.values() if "today" not in v and v != "the same as `config`"] == []
    assert "config, build, " in str(caught.value)


@pytest.mark.parametrize(
    "rule, broken",
    [
        ("keywords", "constructor"),
        ("registered", "constructor"),
        ("complete_config", "config"),
        ("full_precision", "policies"),
        ("masks", "masking"),
    ],
)
def test_house_rules_are_for_those_who_ask(rule, broken):
    class Plain(keras.layers.Layer):
        """As many write layers: arguments in order, defaults left out of the config, a loss in half precision."""

        def __init__(self, factor=1.5, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, inputs, mask=None):
            self.add_loss(tf.reduce_mean(inputs))
            return inputs * self.factor

        def compute_output_shape(self, input_shape):
            return input_shape

        def get_config(self):
            return {**super().get_config(), **({"factor": self.factor} if self.factor != 1.5 else {})}

    check = functools.partial(check_layer, Plain, X, losses=1, loss_oracle=lambda layer, x: np.mean(x))
    check(only=[broken])
    with pytest.raises(BrokenLayer) as caught:
        check(rules=[rule], only=[broken])
    assert [*caught.value.broken] == [broken]
    with pytest.raises(ValueError, match="No such rule: speed; there are keywords, registered"):
        check(rules=["speed"])
