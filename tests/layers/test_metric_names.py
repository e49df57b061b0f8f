"""What layers report has one name each in a model, keeps it in a `.keras` file, and is counted by the layer alone."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from layers.base import register
from tests.layers.graph_fit import graph_fit

X = np.ones([8, 3], "float32")

pytestmark = pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")


@register
class Gate(layers.Layer):
    """Reports the mean of its inputs; `declare=False` does so from the first call on."""

    def __init__(self, *, declare=True, **kwargs):
        super().__init__(**kwargs)
        self.declare = declare
        if declare:
            self.declare_metric("mean")

    def call(self, inputs):
        self.add_metric(inputs, "mean")
        return tf.identity(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "declare": self.declare}


@register
class Block(keras.layers.Layer):
    """A plain Keras layer that scales what it hands to one or more gates (or blocks) inside of it."""

    def __init__(self, factor=1.0, gate="gate", depth=1, count=1, declare=True, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"factor": factor, "gate": gate, "depth": depth, "count": count, "declare": declare}
        inner = [Block(gate=gate, depth=depth - 1, name="inner") if depth > 1 else Gate(name=gate, declare=declare) for _ in range(count)]
        self.inner = inner

    def build(self, input_shape):
        for layer in self.inner:
            layer.build(input_shape)

    def call(self, inputs):
        x = inputs * self.arguments["factor"]
        for layer in self.inner:
            x = layer(x)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), **self.arguments}


@register
class Cell(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size = self.output_size = 3
        self.declare_metric("mean")

    def call(self, inputs, states, training=None):
        self.add_metric(inputs, "mean")
        return inputs, [inputs]

    def compute_output_shape(self, input_shape, states_shape=None):
        return input_shape, [input_shape]


def chained(*parts, shape=(3,)):
    x = inputs = keras.Input(shape)
    for part in parts:
        x = part(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
    return model


class Pair(keras.Model):
    """Two models, as in adversarial training."""

    def __init__(self):
        super().__init__()
        self.one, self.two = chained(Gate(name="gate")), chained(keras.layers.Rescaling(100.0), Gate(name="gate"))

    def call(self, inputs):
        return self.one(inputs) + self.two(inputs)


def pair():
    model = Pair()
    model.one.name, model.two.name = "one", "two"
    model.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
    return model


def own_models():
    class Inner(layers.Model):
        def __init__(self, factor):
            super().__init__(name="inner")
            self.factor = factor
            self.declare_metric("mean")

        def call(self, inputs):
            self.add_metric(inputs * self.factor, "mean")
            return inputs

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [Inner(1.0), Inner(100.0)]

        def call(self, inputs):
            return self.parts[1](self.parts[0](inputs))

    model = Outer()
    model.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
    return model


MODELS = {
    "blocks": (lambda: chained(Block(name="one"), Block(100.0, name="two")), {"one/gate/mean": 1, "two/gate/mean": 100}),
    "undeclared": (
        lambda: chained(Block(name="one", declare=False), Block(100.0, name="two", declare=False)),
        {"one/gate/mean": 1, "two/gate/mean": 100},
    ),
    "deep blocks": (
        lambda: chained(Block(name="one", depth=3), Block(100.0, name="two", depth=3)),
        {"one/inner/inner/gate/mean": 1, "two/inner/inner/gate/mean": 100},
    ),
    "a block and a layer": (lambda: chained(Gate(name="gate"), Block(100.0, name="two")), {"gate/mean": 1, "two/gate/mean": 100}),
    "one block only": (lambda: chained(Block(name="one"), Gate(name="other")), {"gate/mean": 1, "other/mean": 1}),
    "a block of three": (
        lambda: chained(Block(2.0, name="one", count=3)),
        {"one/gate/mean": 2, "one/gate_1/mean": 2, "one/gate_2/mean": 2},
    ),
    "two models": (pair, {"one/gate/mean": 1, "two/gate/mean": 100}),
    "models that report": (own_models, {"inner/mean": 1, "inner_1/mean": 100}),
    "both directions": (
        lambda: chained(keras.layers.Bidirectional(keras.layers.RNN(Cell(name="cell"), unroll=True, name="rnn")), shape=(4, 3)),
        {"forward_rnn/cell/mean": 1, "backward_rnn/cell/mean": 1},
    ),
}


def reported(history):
    return {k: v[-1] for k, v in history.items() if k.endswith("mean")}


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_reports_under_a_name_of_its_own(name):
    make, expected = MODELS[name]
    model = make()
    x = np.ones([8, 4, 3], "float32") if name == "both directions" else X
    y = np.ones([8, 6 if name == "both directions" else 3], "float32")
    others = make()  # of the same names, which makes no difference
    history = model.fit(x, y, verbose=0, validation_data=(x, y)).history
    assert reported(history) == {f"{k}{n}": v for n, v in expected.items() for k in ("", "val_")}
    assert reported(others.fit(x, y, verbose=0).history) == expected


def test_loops_reports_the_same_names():
    model = chained(Block(name="one"), keras.layers.Dense(3, kernel_initializer="identity"), Block(100.0, name="two"))
    model.compile("sgd", "mse", jit_compile=False)
    assert reported(graph_fit(model, X, 100 * X, verbose=0, batch_size=8, epochs=1).history) == {"one/gate/mean": 1, "two/gate/mean": 100}


def test_names_are_the_models_own_whoever_lists_a_part_of_it():
    one, two = Block(name="one"), Block(name="two")
    model = chained(one, two)
    assert [m.name for m in one.metrics] == ["gate/mean"]
    assert {m.name for m in model.metrics if m.name.endswith("mean")} == {"one/gate/mean", "two/gate/mean"}
    assert [m.name for m in one.metrics] == ["one/gate/mean"]  # what is known by a name goes on to be

    class Listing(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [Block(name="one"), Block(name="two")]

        @property
        def metrics(self):
            return [metric for block in self.blocks for metric in block.metrics]

    assert [m.name for m in Listing().metrics] == ["one/gate/mean", "two/gate/mean"]


AUTO_NAMED = {
    "blocks": lambda: chained(Block(gate=None, name="one"), Block(100.0, gate=None, name="two")),
    "undeclared": lambda: chained(Block(gate=None, declare=False, name="one"), Block(100.0, gate=None, declare=False, name="two")),
    "one name twice": lambda: chained(Block(name="one"), Block(100.0, name="two")),
    "sequential": lambda: keras.Sequential([keras.Input([3]), Block(gate=None, count=2), Gate()]),
    "own model": lambda: layers.Model(inputs := keras.Input([3]), Block(gate=None)(inputs)),
}


@pytest.mark.parametrize("name", AUTO_NAMED)
def test_a_loaded_model_reports_under_the_names_that_it_had(name, tmp_path):
    keras.utils.clear_session()
    model = AUTO_NAMED[name]()
    model.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
    before = reported(model.evaluate(X, X, verbose=0, return_dict=True) and {k: [v] for k, v in _logs(model).items()})
    model.save(tmp_path / "model.keras")
    for _ in range(2):  # Keras's counters go on
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert reported({k: [v] for k, v in _logs(loaded).items()}) == before and before
        loaded.save(tmp_path / "model.keras")


def _logs(model):
    return model.evaluate(X, X, verbose=0, return_dict=True)


class GuideStep(keras.Model):
    """The step of Keras's guide "Customizing what happens in fit()"."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}


@pytest.mark.parametrize("train", [keras.Model.fit, graph_fit], ids=["model.fit", "loops.fit"])
def test_a_step_that_updates_all_metrics_leaves_alone_what_layers_count(train):
    x = inputs = keras.Input([3])
    for kind in ("mean", "sum", "max", "min", "last"):
        x = _Kind(kind, name=kind)(x)
    model = GuideStep(inputs, keras.layers.Dense(3, kernel_initializer="ones")(x))
    model.compile("sgd", "mse", metrics=["mae"], jit_compile=False)
    history = train(model, X, 5 * X, verbose=0, batch_size=4, epochs=2).history
    for epoch in (0, 1):
        assert {k: history[f"{k}/value"][epoch] for k in ("mean", "sum", "max", "min", "last")} == {
            "mean": 1, "sum": 24, "max": 1, "min": 1, "last": 1
        }  # fmt: skip


class _Kind(layers.Layer):
    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind = kind

    def call(self, inputs):
        self.add_metric(inputs, "value", self.kind)
        return tf.identity(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape
