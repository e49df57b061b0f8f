"""Random layers draw the same numbers under XLA as in a graph, and nothing but the trace of an XLA program is touched."""

from __future__ import annotations

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.ops import gen_stateless_random_ops, gen_stateless_random_ops_v2

import loops
from layers import GaussianSampling
from loops.engine.program import Program
from loops.engine.step import GlobalStep
from loops.xla import replaced_ops
from loops.xla.replaced_ops import FastOps, replaceable
from tests.loops import tiny

RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=[96, 6]).astype("float32"), RNG.integers(0, 3, 96)
UNIFORM = "stateless_random_uniform_v2"


def uniform():
    return tf.random.stateless_uniform([5], [1, 2])


def kinds(function):
    """Types of all ops of a traced function, of those that it calls too."""
    graph = function.graph
    return {op.type for g in (graph, *(f.graph for f in graph._functions.values())) for op in g.get_operations()}


def traced(draw):
    """The types of ops that `draw` is traced to within `FastOps`."""

    def given():
        with FastOps():
            return draw()

    return kinds(tf.function(given, autograph=False).get_concrete_function())


#: Drawn from uniform and from normal numbers; of the others, which are too, a program takes as long to compile.
NOISE = [(layers.Dropout, 0.3), (layers.GaussianNoise, 0.3)]
OTHERS = [(layers.AlphaDropout, 0.2), (layers.GaussianDropout, 0.3)]


def random_model(noise):
    """With random layers of Keras and one of our own."""
    keras.utils.set_random_seed(3)
    stack = keras.Sequential([layer for i, (kind, rate) in enumerate(noise) for layer in (layers.Dense(9, "selu"), kind(rate, seed=i))])
    inputs = keras.Input([6])
    hidden = stack(inputs)
    sample = GaussianSampling(seed=5)(layers.Dense(4)(hidden), layers.Dense(4)(hidden))
    model = keras.Model(inputs, layers.Dense(3, "softmax")(sample))
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("noise", [NOISE, pytest.param(OTHERS, marks=pytest.mark.matrix)], ids=["some", "others"])
def test_a_fit_draws_the_masks_of_a_graph_also_in_our_own_random_layers(noise):
    weights = {}
    for mode in ("graph", "xla"):
        model = random_model(noise)
        # The last batch is smaller: another block shape, and another draw from the same streams.
        loops.fit(model, X[:90], Y[:90], batch_size=16, epochs=3, compile=mode, verbose=0)
        weights[mode] = model.get_weights()
    for graph, xla in zip(weights["graph"], weights["xla"], strict=True):
        np.testing.assert_allclose(xla, graph, rtol=2e-5, atol=2e-6)


class Noise(loops.Task):
    """Predicts what random layers and stateless ops make of its input; the condition is AutoGraph's."""

    def __init__(self):
        super().__init__()
        self.dropout = layers.Dropout(0.4, seed=1)

    def predict_step(self, x):
        mask = self.dropout(tf.ones_like(x), training=True)
        if tf.reduce_sum(x) > 1e9:
            mask = -mask
        integers = tf.random.stateless_uniform(tf.shape(x), self.seed(), 0, 1000, tf.int32)
        return mask, integers, tf.random.stateless_uniform(tf.shape(x), self.seed(), dtype=tf.float64)


def test_predictions_have_the_bits_of_a_graph():
    graph, xla = (loops.PredictLoop(Noise(), compile=mode).run(loops.ArrayFeed((X,), 16)) for mode in ("graph", "xla"))
    tiny.assert_same_bits(graph, xla)
    assert 0.3 < np.mean(graph[0] == 0) < 0.5


def test_evaluations_have_the_numbers_of_a_graph():
    class Noisy(tiny.Classifier):
        def eval_step(self, batch):
            x, _ = batch
            noise = tf.random.stateless_uniform(tf.shape(x), self.seed())
            return {"loss": tf.reduce_mean(noise), "noise": loops.Collect(noise)}

        def eval_end(self, collected):
            return {"first": float(collected["noise"][0, 0]), "last": float(collected["noise"][-1, -1])}

    graph, xla = (loops.EvalLoop(Noisy(), compile=mode).run(loops.ArrayFeed((X, Y), 16)) for mode in ("graph", "xla"))
    assert graph == pytest.approx(xla, rel=1e-6)
    assert (graph["first"], graph["last"]) == (xla["first"], xla["last"])


def test_replicas_draw_the_masks_of_a_graph(two_replicas):
    weights = {}
    for mode in ("graph", "xla"):
        with two_replicas.scope():
            task = tiny.Classifier(keras.optimizers.SGD(0.1), random=True)
        loop = loops.TrainLoop(task, loops.ArrayFeed((X, Y), 32), strategy=two_replicas, compile=mode)
        loop.run(epochs=2)
        weights[mode] = task.model.get_weights()
    for graph, xla in zip(weights["graph"], weights["xla"], strict=True):
        np.testing.assert_allclose(xla, graph, rtol=1e-5, atol=2e-6)


def test_every_op_that_has_a_replacement_is_found_in_this_tensorflow():
    assert replaceable() and all(replaceable().values()), replaceable()


def test_a_graph_program_of_the_same_step_has_the_kernels_only():
    step = GlobalStep(tiny.Classifier(random=True), "train_step", tf.distribute.get_strategy())
    spec = tuple(tf.TensorSpec([16, *a.shape[1:]], a.dtype) for a in (X, Y))
    graph, xla = Program(step, "graph"), Program(step, "xla")
    of_xla, of_graph = (kinds(program.step.concrete(spec)) for program in (xla, graph))
    assert "DeviceIndex" in of_xla and "DeviceIndex" not in of_graph
    assert {"StatelessRandomUniformV2", "StatelessRandomGetKeyCounter"} <= of_graph


def test_a_function_within_the_step_keeps_the_kernels_for_graphs():
    normal = tf.function(lambda: tf.random.stateless_normal([1000], [1, 2]))

    def step():
        with FastOps():
            return normal()

    by_xla = tf.function(step, jit_compile=True)()
    kernel = tf.random.stateless_normal([1000], [1, 2])
    assert not np.array_equal(by_xla, kernel), "rounding cannot tell who drew the numbers"
    np.testing.assert_array_equal(normal(), kernel)


def test_what_was_replaced_is_put_back():
    stock = getattr(gen_stateless_random_ops_v2, UNIFORM), gen_stateless_random_ops.stateless_multinomial

    def now():
        return getattr(gen_stateless_random_ops_v2, UNIFORM), gen_stateless_random_ops.stateless_multinomial

    with FastOps():
        assert all(a is not b for a, b in zip(now(), stock, strict=True))
        with FastOps():
            pass
        assert all(a is not b for a, b in zip(now(), stock, strict=True))
    assert now() == stock
    with pytest.raises(ZeroDivisionError), FastOps():
        raise ZeroDivisionError
    assert now() == stock

    class Broken(tiny.Classifier):
        def train_step(self, batch):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        loops.TrainLoop(Broken(), loops.ArrayFeed((X, Y), 16), compile="xla").run(epochs=1)
    assert now() == stock
    assert "DeviceIndex" not in kinds(tf.function(uniform).get_concrete_function())


def test_other_threads_trace_the_kernels():
    entered, other_is_in, other_may_leave = threading.Event(), threading.Event(), threading.Event()
    found = {}

    def stays_outside():
        entered.wait(60)
        found["outside"] = kinds(tf.function(uniform).get_concrete_function())

    def enters_too():
        with FastOps():
            other_is_in.set()
            other_may_leave.wait(60)
            found["inside"] = traced(uniform)

    threads = [threading.Thread(target=target) for target in (stays_outside, enters_too)]
    for thread in threads:
        thread.start()
    with FastOps():
        entered.set()
        threads[0].join()
        assert other_is_in.wait(60)
    found["left"] = kinds(tf.function(uniform).get_concrete_function())
    other_may_leave.set()
    threads[1].join()
    assert "DeviceIndex" in found["inside"]
    assert "DeviceIndex" not in found["outside"] | found["left"]


def test_initial_values_drawn_during_a_trace_are_the_kernels():
    made = []

    def step():
        with tf.init_scope():
            made.append(tf.random.stateless_normal([100], [1, 2]))
        return uniform()

    traced(step)
    np.testing.assert_array_equal(made[0], tf.random.stateless_normal([100], [1, 2]))


def with_a_device(shape, key, counter, alg, dtype=tf.float32, device="CPU", name=None):
    """What a later TensorFlow might have: one more parameter."""
    return tf.fill(shape, tf.cast(7, dtype))


def of_any_form(*args, **kwargs):
    return tf.fill(args[0], 7.0)


@pytest.mark.parametrize("changed", [with_a_device, of_any_form])
def test_an_op_that_tensorflow_has_changed_stays_as_it_is(monkeypatch, changed):
    monkeypatch.setattr(gen_stateless_random_ops_v2, UNIFORM, changed)
    assert [name for name, found in replaceable().items() if not found] == [UNIFORM]
    with FastOps():
        assert getattr(gen_stateless_random_ops_v2, UNIFORM) is changed
        found = tf.function(uniform, jit_compile=True)()
    np.testing.assert_array_equal(found, np.full([5], 7.0, "float32"))
    assert getattr(gen_stateless_random_ops_v2, UNIFORM) is changed


def test_an_op_that_tensorflow_has_dropped_or_moved_is_not_missed(monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(gen_stateless_random_ops_v2, UNIFORM)
        assert not replaceable()[UNIFORM]
        assert "DeviceIndex" in traced(lambda: tf.random.stateless_normal([5], [1, 2]))
        assert not hasattr(gen_stateless_random_ops_v2, UNIFORM)
    known = {("tensorflow.python.ops.moved_elsewhere", name): form for (_, name), form in replaced_ops._REPLACEMENTS.items()}
    monkeypatch.setattr(replaced_ops, "_REPLACEMENTS", known)
    assert not any(replaceable().values())
    assert "DeviceIndex" not in traced(uniform)


def test_threefry_is_left_to_xla():
    def draw():
        with FastOps():
            return tf.random.stateless_uniform([1000], [1, 2], alg="threefry")

    function = tf.function(draw, jit_compile=True)
    assert "DeviceIndex" not in kinds(function.get_concrete_function())
    assert 0.4 < tf.reduce_mean(function()) < 0.6


def test_a_vectorized_map_over_seeds_still_works():
    seeds = tf.constant([[1, 2], [3, 4], [5, 6]])

    def draw():
        with FastOps():
            return tf.vectorized_map(lambda seed: tf.random.stateless_uniform([50], seed), seeds)

    drawn = tf.function(draw, jit_compile=True)().numpy()
    assert len(np.unique(drawn)) > 140 and 0.3 < drawn.mean() < 0.7


def test_gradients_pass_beside_random_numbers():
    def gradient(x):
        with FastOps(), tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(x * tf.random.stateless_uniform([5], [1, 2]) + tf.random.stateless_normal([5], [1, 2]))
        return tape.gradient(loss, x)

    np.testing.assert_array_equal(tf.function(gradient, jit_compile=True)(tf.ones([5])), uniform())
