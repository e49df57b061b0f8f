"""Ops that draw from hidden state are found wherever they are; what can be resumed is not accused."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.client import pywrap_tf_session

from loops.graphs.hidden_random_state import Found, _marked, refusal, stateful_random_ops, stateful_random_ops_of_def

X = tf.TensorSpec([4, 3], tf.float32)
LOGITS = [[0.1, 0.2, 0.7]]

# Written down from the documentation of tf.random, tf.nn and tf.image.
DRAWING = {
    "RandomUniform": lambda x: tf.random.uniform([3]),
    "RandomUniformInt": lambda x: tf.random.uniform([3], maxval=9, dtype=tf.int32),
    "RandomStandardNormal": lambda x: tf.random.normal([3], seed=1),
    "TruncatedNormal": lambda x: tf.random.truncated_normal([3]),
    "ParameterizedTruncatedNormal": lambda x: tf.raw_ops.ParameterizedTruncatedNormal(
        shape=[3], means=0.0, stdevs=1.0, minvals=-1.0, maxvals=1.0
    ),
    "RandomGamma": lambda x: tf.random.gamma([3], 2.0),
    "RandomPoissonV2": lambda x: tf.random.poisson([3], 2.0),
    "RandomShuffle": tf.random.shuffle,
    "Multinomial": lambda x: tf.random.categorical(LOGITS, 2),
    "LogUniformCandidateSampler": lambda x: tf.random.log_uniform_candidate_sampler([[1]], 1, 2, True, 9)[0],
    "UniformCandidateSampler": lambda x: tf.random.uniform_candidate_sampler([[1]], 1, 2, True, 9)[0],
    "LearnedUnigramCandidateSampler": lambda x: tf.random.learned_unigram_candidate_sampler([[1]], 1, 2, True, 9)[0],
    "FixedUnigramCandidateSampler": lambda x: tf.random.fixed_unigram_candidate_sampler([[1]], 1, 2, True, 3, unigrams=[1.0, 2.0, 3.0])[0],
    "SampleDistortedBoundingBoxV2": lambda x: tf.image.sample_distorted_bounding_box([9, 9, 3], [[[0.0, 0.0, 1.0, 1.0]]], seed=1)[0],
    "FractionalMaxPool": lambda x: tf.nn.fractional_max_pool(x[None, :, :, None], [1.0, 1.3, 1.3, 1.0])[0],
    "FractionalAvgPool": lambda x: tf.nn.fractional_avg_pool(x[None, :, :, None], [1.0, 1.3, 1.3, 1.0])[0],
}
FINE = {
    "stateless": lambda x: tf.random.stateless_normal([3], [1, 2]),
    "a generator": lambda x: GENERATOR.normal([3]) + tf.cast(GENERATOR.binomial([3], 2.0, 0.5), tf.float32),
    "keras.random": lambda x: keras.random.normal([3], seed=SEEDS),
    "keras dropout": lambda x: DROPOUT(x, training=True),
    "all candidates": lambda x: tf.random.all_candidate_sampler([[1]], 1, 3, True)[0],
    "fractional pooling with a seed": lambda x: tf.nn.fractional_max_pool(x[None, :, :, None], [1.0, 1.3, 1.3, 1.0], seed=3)[0],
    "no random numbers": lambda x: tf.reduce_sum(x),
}
GENERATOR = tf.random.Generator.from_seed(1)
SEEDS = keras.random.SeedGenerator(1)
DROPOUT = keras.layers.Dropout(0.5)


def graph_of(function, *specs):
    return tf.function(function).get_concrete_function(*(specs or [X])).graph


def kinds(found):
    return sorted({f.op for f in found})


@pytest.mark.parametrize("op", DRAWING)
def test_an_op_that_draws_from_hidden_state_is_found(op):
    graph = graph_of(DRAWING[op])
    assert kinds(stateful_random_ops(graph)) == [op]
    assert kinds(stateful_random_ops_of_def(graph.as_graph_def())) == [op]


@pytest.mark.parametrize("what", FINE)
def test_what_can_be_resumed_is_not_accused(what):
    assert stateful_random_ops(graph_of(FINE[what])) == []


def test_ops_that_are_found_really_draw_something_else_each_time():
    x = tf.reshape(tf.range(400.0), [20, 20])
    for op, draw in DRAWING.items():
        if op == "ParameterizedTruncatedNormal":
            continue  # its shape has to leave rows for its parameters
        step = tf.function(draw)
        drawn = (np.asarray(draw_once(x)).tobytes() for draw_once in [step] * 20 + [tf.function(draw) for _ in range(20)])
        first = next(drawn)
        assert any(other != first for other in drawn), op  # ends with the first that is another


def test_the_registry_and_the_hand_written_list_agree():
    """Every stateful op of the registry with a seed is known here: as drawing, deprecated, a queue, or for GPUs."""
    ops = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    marked = {op.name for op in ops.op if _marked(op.name)}
    by_hand = {op for op in DRAWING if not op.startswith("Fractional")}
    older = {"RandomPoisson", "RandomCrop", "SampleDistortedBoundingBox", "ThreadUnsafeUnigramCandidateSampler"}
    queues = {"RandomShuffleQueue", "RandomShuffleQueueV2"}
    recurrent = {"CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"}
    assert marked == by_hand | older | queues | recurrent


def test_a_recurrent_op_draws_only_if_it_drops_out():
    node = tf.compat.v1.NodeDef(op="CudnnRNNV3", name="lstm")
    graph_def = tf.compat.v1.GraphDef(node=[node])
    graph_def.node[0].attr["dropout"].f = 0.0
    assert stateful_random_ops_of_def(graph_def) == []
    graph_def.node[0].attr["dropout"].f = 0.5
    assert kinds(stateful_random_ops_of_def(graph_def)) == ["CudnnRNNV3"]


def test_ops_are_found_at_any_depth():
    @tf.function
    def inner(x):
        for _ in tf.range(3):
            if tf.reduce_sum(x) > 0:
                x += tf.map_fn(lambda row: row + tf.random.gamma([], 2.0), x)
            else:
                x += tf.switch_case(tf.constant(0), [lambda: tf.random.normal([4, 3]), lambda: tf.random.uniform([4, 3])])
        return x

    @tf.function(jit_compile=True)
    def compiled(x):
        return x * tf.random.truncated_normal([4, 3])

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(inner(x) ** 2) + tf.reduce_sum(compiled(x))
        return tape.gradient(loss, x) + tf.recompute_grad(lambda y: y + tf.random.poisson([4, 3], 2.0))(x)

    graph = graph_of(step)
    expected = ["RandomGamma", "RandomPoissonV2", "RandomStandardNormal", "RandomUniform", "TruncatedNormal"]
    assert kinds(stateful_random_ops(graph)) == expected
    assert kinds(stateful_random_ops_of_def(graph.as_graph_def())) == expected


def test_ops_are_found_under_replicas(two_replicas):
    def step(x):
        return two_replicas.run(lambda x: x + tf.random.normal([3]), args=(x,))

    assert kinds(stateful_random_ops(graph_of(step))) == ["RandomStandardNormal"]


def test_ops_of_a_loaded_function_are_found(tmp_path):
    module = tf.Module()
    module.step = tf.function(lambda x: x + tf.random.normal([3]), input_signature=[X])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert kinds(stateful_random_ops(graph_of(lambda x: loaded.step(x)))) == ["RandomStandardNormal"]


def test_the_users_line_is_named():
    def step(x):
        for _ in tf.range(3):
            x += tf.random.normal([3])  # this line
        return x

    lines, first = inspect.getsourcelines(step)
    line = first + next(i for i, text in enumerate(lines) if "this line" in text)
    (found,) = stateful_random_ops(graph_of(step))
    assert found.source == f"{__file__}:{line}: x += tf.random.normal([3])  # this line"


def test_a_line_in_a_layer_of_keras_or_in_the_standard_library_is_not_the_users():
    @keras.saving.register_keras_serializable("test_random_ops")
    class Noise(keras.layers.Layer):
        def call(self, x):
            return x + tf.random.normal([3])

    model = keras.Sequential([Noise()])
    (found,) = stateful_random_ops(graph_of(lambda x: model(x)))
    assert "x + tf.random.normal([3])" in found.source
    rate = keras.layers.Lambda(tf.random.shuffle)
    (found,) = stateful_random_ops(graph_of(lambda x: rate(x)))
    assert "rate(x)" in found.source


def test_a_refusal_is_one_sentence_that_names_the_ops_and_the_way_out():
    text = refusal([Found("RandomUniform", "a"), Found("RandomGamma", "b", "train.py:3: tf.random.gamma([], 2.)")])
    assert "RandomUniform 'a', RandomGamma (train.py:3: tf.random.gamma([], 2.))" in text
    assert "tf.random.stateless_* with self.seed()" in text and "SeedGenerator" in text and "\n" not in text
    many = refusal([Found("RandomUniform", f"n{i}") for i in range(8)] * 2)
    assert "'n4', 3 more;" in many and "'n5'" not in many
