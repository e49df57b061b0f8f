"""The base: metrics and losses of `layers.Layer` in every mode of running and way of composing, against NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
from layers.base import FunctionalModel, masked_mean
from tests.layers.reporters import Reporter, ReportingModel, Wrapper, expected, results

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((8, 4)).astype("float32")
KINDS = ["mean", "sum", "max", "min", "last"]


def assert_reports(layer, name, *batches):
    found, wanted = results(layer), expected(name, *batches)
    assert {*found} == {*wanted}
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("declare", [True, False], ids=["declared", "made in the first call"])
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_metrics_count_all_elements_of_all_calls(mode, declare):
    layer = Reporter(declare=declare, name="reporter")
    call = layer if mode == "eager" else tf.function(layer, jit_compile=mode == "xla")
    call(X), call(3 * X)
    assert_reports(layer, "reporter", X, 3 * X)
    for metric in layer.metrics:
        metric.reset_state()
    call(X)
    assert_reports(layer, "reporter", X)


def test_metrics_of_a_loop_in_the_graph_count_every_step():
    layer = Reporter(declare=False, name="reporter")
    layer.build(X.shape)

    @tf.function
    def run(x):
        for i in tf.range(3):
            layer(x * tf.cast(i, tf.float32))

    run(X)
    assert_reports(layer, "reporter", 0 * X, X, 2 * X)


def test_a_metric_may_appear_in_a_later_trace():
    class OnlyTraining(layers.Layer):
        def call(self, inputs, training=None):
            if training:
                self.add_metric(inputs, "size", "sum")
            return inputs

    layer, traces = OnlyTraining(name="layer"), []

    @tf.function
    def call(x, training):
        traces.append(training)
        return layer(x, training=training)

    call(X, False), call(X, True), call(X, True)
    np.testing.assert_allclose(results(layer)["layer/size"], 2 * X.sum(), rtol=1e-5)
    assert traces == [False, True]  # making it costs no trace


def test_before_the_first_value_results_are_0_as_of_a_keras_mean():
    layer = Reporter()
    assert {float(m.result()) for m in layer.metrics} == {0.0} == {float(keras.metrics.Mean().result())}


@pytest.mark.parametrize(
    "make", [lambda: Wrapper(Reporter(name="inner")), lambda: ReportingModel(name="outer").reporter], ids=["layer", "model"]
)
def test_a_nested_layer_reports_under_its_own_name_and_its_losses_arrive(make):
    outer = make()
    outer(X)
    name = "inner" if isinstance(outer, Wrapper) else "outer_reporter"
    assert_reports(outer, name, X)
    np.testing.assert_allclose([float(loss) for loss in outer.losses], [0.5 * X.mean()], rtol=1e-5)


def test_two_layers_of_one_kind_in_a_model_do_not_collide():
    inputs = keras.Input([4])
    model = keras.Model(inputs, [Reporter()(inputs), Reporter()(inputs)])
    model(X)
    assert len({m.name for m in model.metrics}) == 2 * len(KINDS)
    assert len(model.losses) == 2


def test_a_layer_called_twice_in_a_model_counts_both_calls_and_adds_both_losses():
    layer, inputs = Reporter(units=4, name="shared"), keras.Input([4])
    model = keras.Model(inputs, layer(layer(inputs)))
    model(X)
    assert len(model.losses) == 2
    assert_reports(layer, "shared", X, X @ layer.kernel.numpy())


def test_losses_are_those_of_the_last_call_however_often_it_was_called():
    layer = Reporter()
    for factor in (1, 2, 3):
        layer(factor * X)
        np.testing.assert_allclose([float(loss) for loss in layer.losses], [0.5 * factor * X.mean()], rtol=1e-5)


@pytest.mark.parametrize("declare", [True, False], ids=["declared", "found while tracing"])
def test_a_symbolic_call_makes_metrics_and_counts_nothing(declare):
    class Traced(Reporter):
        """Has Keras trace `call` on symbols, as for a layer without compute_output_shape."""

        compute_output_shape = keras.layers.Layer.compute_output_shape

    layer = Traced(declare=declare, name="traced")
    model = keras.Model(inputs := keras.Input([4]), layer(inputs))
    assert results(model) == dict.fromkeys(expected("traced", X), 0.0)
    model(X)
    assert_reports(layer, "traced", X)


def test_metrics_are_not_weights_and_not_variables_of_the_layer():
    layer = Reporter()
    layer(X)
    assert [w.name for w in layer.weights] == ["kernel", "rate"] == [v.name for v in layer.variables]
    assert len(layer.metrics_variables) == 7  # mean and last count what they divide by


def test_under_mixed_precision_metrics_count_in_float32():
    layer = Reporter(dtype="mixed_float16", name="half")
    ones = np.ones([100, 64], "float16")  # 6,400 elements: float16 cannot count beyond 2,048
    for _ in range(2):
        layer(ones)
    assert results(layer)["half/sum"] == 12_800.0
    assert results(layer)["half/mean"] == 1.0
    assert {m.result().dtype.name for m in layer.metrics} == {"float32"}
    assert layer.rate.value.dtype == layer.losses[0].dtype == tf.float32


def test_losses_can_be_added_up_under_every_policy():
    for policy in ("float32", "mixed_float16", "mixed_bfloat16", "float64"):
        inputs = keras.Input([4])
        model = keras.Model(inputs, Reporter(units=1, dtype=policy)(Reporter(units=4)(inputs)))
        model.compile("sgd", "mse", run_eagerly=True)
        history = model.fit(X, X[:, :1], verbose=0).history
        assert np.isfinite(history["loss"]).all(), policy


def test_a_metric_keeps_its_aggregation():
    layer = Reporter(name="layer")
    with pytest.raises(ValueError, match="'layer/max' has aggregation='max' and was now given 'mean'"):
        layer.add_metric(X, "max")
    with pytest.raises(ValueError, match="aggregation='median' is not known; use one of 'mean', 'sum'"):
        layer.add_metric(X, "median", "median")
    with pytest.raises(TypeError, match="needs a string as its name; got 3"):
        layer.declare_metric(3)
    with pytest.raises(TypeError, match="given a symbolic tensor of a functional model; call it in a layer's `call`"):
        layer.add_metric(keras.Input([4]), "mean")
    assert len(layer.metrics) == len(KINDS)


def test_assigning_a_coefficient_takes_effect_without_a_retrace():
    layer, traces = Reporter(), []
    layer.build(X.shape)

    @tf.function
    def loss(x):
        traces.append(1)
        layer(x)
        return layer.losses[0]

    first = float(loss(X))
    layer.rate.assign(2.0)
    np.testing.assert_allclose(float(loss(X)), 4 * first, rtol=1e-6)
    assert len(traces) == 1


def test_a_coefficient_keeps_its_digits_in_half_precision():
    class Show(layers.Layer):
        def call(self, inputs):
            return tf.cast(self.rate, tf.float64)

    for policy, digits in (("mixed_float16", np.float32(0.1)), ("float16", np.float32(0.1)), ("float64", 0.1)):
        layer = Show(dtype=policy)
        layer.rate = layer.add_coefficient("rate", 0.1)
        assert layer(X).numpy() == digits, policy


def test_metrics_of_keras_2_aggregation_none_report_what_was_aggregated_already():
    class Accuracy(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.accuracy = keras.metrics.BinaryAccuracy(name="own")

        def call(self, inputs):
            self.add_metric(self.accuracy(inputs > 0, inputs), "accuracy", aggregation=None)
            return inputs

    layer = Accuracy(name="layer")
    layer(tf.constant([1.0, 0.1])), layer(tf.constant([1.0, 1.0]))
    assert results(layer) == {"own": 0.75, "layer/accuracy": 0.75}


def test_what_keras_runs_twice_is_counted_twice():
    class Cell(layers.Layer):
        state_size = 4

        def call(self, inputs, states):
            self.add_metric(tf.ones([]), "steps", "sum")
            return inputs, [inputs]

        def compute_output_shape(self, input_shape):
            return input_shape

    for unroll, count in ((True, 5.0), (False, 6.0)):
        cell = Cell(name="cell")
        keras.layers.RNN(cell, unroll=unroll)(np.ones([2, 5, 4], "float32"))
        assert results(cell) == {"cell/steps": count}
    with keras.RematScope(mode="full"):
        layer = Reporter(name="reporter")
    layer.build(X.shape)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(X))
    assert_reports(layer, "reporter", X)
    tape.gradient(total, layer.kernel.value)
    np.testing.assert_allclose(results(layer)["reporter/sum"], 2 * X.sum(), rtol=1e-5)


# Models.


def test_a_functional_model_is_one_of_ours_and_changes_no_other():
    inputs = keras.Input([4])
    model = layers.Model(inputs, Reporter(units=3)(inputs))
    assert isinstance(model, layers.Model)
    assert model(X).shape == (8, 3)
    assert not issubclass(layers.Model, FunctionalModel)
    assert ReportingModel()(X).shape == (8, 1)


def test_a_subclass_may_be_functional_and_report_by_itself():
    class Both(layers.Model):
        def __init__(self):
            inputs = keras.Input([4])
            super().__init__(inputs=inputs, outputs=keras.layers.Dense(2)(inputs), name="both")

        def call(self, inputs, training=None, mask=None):
            self.add_metric(inputs, "input", "sum")
            return super().call(inputs, training=training, mask=mask)

    for _ in range(2):  # the first one changes the class
        model = Both()
        model(X)
        np.testing.assert_allclose(results(model)["both/input"], X.sum(), rtol=1e-5)
    assert [type(layer).__name__ for layer in model.layers] == ["InputLayer", "Dense"]
    assert not issubclass(layers.Model, FunctionalModel)
    assert ReportingModel()(X).shape == (8, 1)


def test_a_model_inside_a_model_reports_and_is_seen_once_by_its_layers():
    inner = ReportingModel(name="inner")
    inputs = keras.Input([4])
    outer = keras.Model(inputs, inner(inputs))
    outer(X)
    assert results(outer)["inner/top"] == X.max()
    assert [layer.name for layer in inner.layers] == ["inner_reporter", inner.head.name]


# Helpers.


def test_masked_mean_leaves_out_what_is_masked():
    values = RANDOM.standard_normal((3, 5, 2))
    mask = RANDOM.random((3, 5)) < 0.6
    np.testing.assert_allclose(masked_mean(values, mask), values[mask].mean())
    np.testing.assert_allclose(masked_mean(values, mask, keep_last=True), values[mask].mean(0))
    np.testing.assert_allclose(masked_mean(values), values.mean())
    spoiled = tf.constant(np.where(mask[..., None], values, np.nan))
    with tf.GradientTape() as tape:
        tape.watch(spoiled)
        mean = masked_mean(spoiled, mask)
    np.testing.assert_allclose(mean, values[mask].mean())
    np.testing.assert_allclose(tape.gradient(mean, spoiled), np.repeat(mask[..., None], 2, -1) / (2 * mask.sum()))


def test_masked_mean_of_nothing_is_0_and_half_precision_becomes_float32():
    assert float(masked_mean(np.ones([3, 2]), np.zeros([3], bool))) == 0.0
    assert float(masked_mean(np.ones([0, 2]))) == 0.0
    assert masked_mean(tf.ones([70_000], tf.float16)).numpy() == np.float32(1.0)
