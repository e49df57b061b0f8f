"""CRF passes the battery against the enumeration of all sequences, Sinkhorn against scaling rows and columns; broken ones do not."""

from __future__ import annotations

import functools
import itertools

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import tensorflow as tf

from layers import structured
from layers.base import register
from layers.structured import CRF, Sinkhorn
from layers.testing import BrokenLayer
from tests.layers.graph_fit import graph_fit
from tests.layers.house import check_layer

RANDOM = np.random.default_rng(0)
UNARY = RANDOM.standard_normal((4, 5, 3))
TAGS = RANDOM.integers(0, 3, (4, 5)).astype("int32")
MASK = np.arange(5) < np.array([[5], [3], [1], [5]])


def scores_of(layer, unary, tags):
    """The score of each row of `tags`, a sequence as long as `unary`."""
    start, end = (layer.start.numpy(), layer.end.numpy()) if layer.boundaries else (np.zeros(3), np.zeros(3))
    moves = layer.transitions.numpy()[tags[:, :-1], tags[:, 1:]].sum(1)
    return start[tags[:, 0]] + unary[np.arange(len(unary)), tags].sum(1) + moves + end[tags[:, -1]]


def sequences(layer, unary, mask):
    """Of each example: its length, all sequences of tags of this length, and their scores."""
    lengths = np.full(len(unary), unary.shape[1]) if mask is None else np.asarray(mask).sum(1)
    for u, length in zip(unary, lengths, strict=True):
        every = np.array([*itertools.product(range(u.shape[-1]), repeat=length)]) if length else np.zeros([0, 0])
        yield length, every, scores_of(layer, u[:length], every) if length else np.zeros(0)


def best(layer, unary, tags=None, mask=None):
    found = np.zeros(unary.shape[:2], "int32")
    for row, (length, every, scores) in zip(found, sequences(layer, unary, mask), strict=True):
        if length:
            row[:length] = every[scores.argmax()]
    return found


def loss(layer, unary, tags, mask=None):
    each = []
    for y, (length, every, scores) in zip(tags, sequences(layer, unary, mask), strict=True):
        if length:
            each.append(scipy.special.logsumexp(scores) - scores[(every == y[:length]).all(1)].item())
    return np.mean(each)


def accuracy(layer, unary, tags, mask=None):
    right = best(layer, unary, tags, mask) == tags
    return {"accuracy": right.mean() if mask is None else right[np.asarray(mask, bool)].mean()}


def learned(kind=CRF, **arguments):
    """Boundaries begin with 0: the factory gives them values as if learned."""

    class Learned(kind):
        def build(self, input_shape):
            super().build(input_shape)
            if self.boundaries:
                self.start.assign([0.5, -1.0, 0.3])
                self.end.assign([-0.7, 0.2, 0.9])

    Learned.__name__ = kind.__name__
    return functools.partial(register(Learned), transitions_initializer=keras.initializers.RandomNormal(stddev=1.0, seed=1), **arguments)


SETTINGS = {
    "call_kwargs": {"tags": TAGS, "mask": MASK},
    "oracle": best,
    "losses": 1,
    "loss_oracle": loss,
    "metrics": ["accuracy"],
    "metric_oracle": accuracy,
    "differentiable": ["losses"],
    "degenerate": {"without transitions": (lambda layer: layer.transitions.assign(np.zeros([3, 3])), best)},
    "invalid": [{"boundaries": 1}],
}


def test_crf_keeps_its_promises(two_replicas):
    check_layer(
        learned(),
        UNARY,
        strategy=two_replicas,
        skip={"training": "its outputs are no numbers to be trained on; fit is checked below"},
        **SETTINGS,
    )


def test_it_does_so_without_boundaries_and_masks():
    settings = SETTINGS | {"call_kwargs": {"tags": TAGS}}
    check_layer(learned(boundaries=False), UNARY, only=["config", "oracle", "loss_oracle", "function"], **settings)


def test_without_transitions_the_loss_is_the_cross_entropy_of_softmax():
    layer = CRF()
    layer(UNARY.astype("float32"), tags=TAGS)
    each = keras.ops.sparse_categorical_crossentropy(TAGS, UNARY.astype("float32"), from_logits=True).numpy()
    np.testing.assert_allclose(layer.losses[0], each.sum(1).mean(), rtol=1e-6)


def test_sequences_may_have_one_step_or_none():
    layer = CRF()
    unary = UNARY[:, :1].astype("float32")
    found = layer(unary, tags=TAGS[:, :1], mask=np.array([[True], [True], [False], [True]]))
    np.testing.assert_array_equal(found, unary.argmax(-1) * [[1], [1], [0], [1]])
    each = keras.ops.sparse_categorical_crossentropy(TAGS[:, :1], unary, from_logits=True).numpy()
    np.testing.assert_allclose(layer.losses[0], each[[0, 1, 3]].mean(), rtol=1e-6)


def test_without_tags_it_only_decodes():
    layer = learned()()
    found = layer(UNARY.astype("float32"), mask=MASK)
    np.testing.assert_array_equal(found, best(layer, UNARY, mask=MASK))
    assert layer.losses == []


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_padding_in_front_is_refused(compiled):
    layer = CRF()
    layer.build(UNARY.shape)
    call = tf.function(layer.__call__) if compiled else layer.__call__
    with pytest.raises(tf.errors.InvalidArgumentError, match="padded at their end only"):
        call(tf.constant(UNARY, tf.float32), mask=tf.constant(MASK[:, ::-1].copy()))


def test_inputs_without_time_are_refused():
    with pytest.raises(ValueError, match=r"shape \[B, T, K\]"):
        CRF()(np.ones([2, 3], "float32"))


def tagger():
    """A model of words whose mask reaches the layer from the embedding."""
    keras.utils.set_random_seed(0)
    words, tags = keras.Input([5], dtype="int32"), keras.Input([5], dtype="int32")
    scores = keras.layers.Dense(3)(keras.layers.Embedding(10, 4, mask_zero=True)(words))
    model = keras.Model([words, tags], CRF(name="crf")(scores, tags=tags))
    model.compile(keras.optimizers.Adam(0.3), loss=None, jit_compile=False)
    model.optimizer.build(model.trainable_variables)  # else Keras traces the step twice
    return model


def test_a_tagger_learns_and_counts_the_same_in_fit_and_in_loops():
    # The first word tells the first tag, all others are the same: only transitions can know the tags behind it.
    words = np.full([32, 5], 4, "int32")
    words[:, 0] = RANDOM.integers(1, 4, 32)
    words *= np.arange(5) < RANDOM.integers(1, 6, (32, 1))
    tags = (words[:, :1] - 1 + np.arange(5, dtype="int32")) % 3
    histories = []
    for train in (keras.Model.fit, graph_fit):
        model = tagger()
        history = train(model, [words, tags], None, batch_size=16, epochs=8, shuffle=False, verbose=0).history
        histories.append(history)
    assert set(histories[0]) == set(histories[1]) == {"loss", "crf/accuracy"}
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-4, atol=1e-5)
    assert histories[0]["crf/accuracy"][-1] > 0.9


def test_the_mask_that_the_inputs_carry_is_found_with_and_without_tags():
    layer = learned()()
    masked = keras.layers.Masking(mask_value=7.0)(np.where(MASK[..., None], UNARY, 7.0).astype("float32"))
    np.testing.assert_array_equal(layer(masked), best(layer, UNARY, mask=MASK))
    np.testing.assert_array_equal(layer(masked, tags=TAGS), best(layer, UNARY, mask=MASK))
    np.testing.assert_allclose(layer.losses[0], loss(layer, UNARY, TAGS, MASK), rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_what_is_under_the_mask_may_be_anything(jit_compile):
    layer = learned()()
    spoilt = np.where(MASK[..., None], UNARY, np.nan).astype("float32")
    layer.build(UNARY.shape)

    @tf.function(jit_compile=jit_compile)
    def gradients(x):
        with tf.GradientTape() as tape:
            layer(x, tags=tf.constant(np.where(MASK, TAGS, -7)), mask=tf.constant(MASK))
            total = layer.losses[0]
        return total, tape.gradient(total, [w.value for w in layer.trainable_weights])

    total, found = gradients(tf.constant(spoilt))
    np.testing.assert_allclose(total, loss(layer, UNARY, TAGS, MASK), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in found)


# Mutations of the CRF: each has to be found by the property beside it.


@register
class SumOfSequences(CRF):
    def _mean_loss(self, log_p, mask):
        return -tf.reduce_sum(log_p)


@register
class SignTurned(CRF):
    def _mean_loss(self, log_p, mask):
        return -super()._mean_loss(log_p, mask)


@register
class TransitionsTransposed(CRF):
    def _chain(self, kinds):
        transitions, start, end = super()._chain(kinds)
        return tf.transpose(transitions), start, end


@register
class BoundariesSwapped(CRF):
    def _chain(self, kinds):
        transitions, start, end = super()._chain(kinds)
        return transitions, end, start


MUTATIONS = [
    (SumOfSequences, "loss_oracle"),
    (SignTurned, "loss_oracle"),
    (TransitionsTransposed, "oracle"),
    (BoundariesSwapped, "loss_oracle"),
]


@pytest.mark.parametrize("kind, broken", MUTATIONS, ids=[kind.__name__ for kind, _ in MUTATIONS])
def test_a_broken_crf_is_caught(kind, broken):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(learned(kind), UNARY, only=[broken], **SETTINGS)
    assert [*caught.value.broken] == [broken]


def test_a_maximum_instead_of_the_sum_is_caught(monkeypatch):
    monkeypatch.setattr(structured.tf, "reduce_logsumexp", tf.reduce_max)
    with pytest.raises(BrokenLayer, match="loss/0"):
        check_layer(learned(), UNARY, only=["loss_oracle"], **SETTINGS)


# Sinkhorn.

SCORES = RANDOM.standard_normal((5, 3, 3))


def scaled(layer, x):
    """Rows and columns divided by their sums, without logarithms."""
    p = np.exp(x / float(layer.temperature.numpy()))
    for _ in range(layer.iterations):
        p = p / p.sum(-1, keepdims=True)
        p = p / p.sum(-2, keepdims=True)
    return p


SINKHORN = {
    "oracle": scaled,
    "metrics": ["marginal_error"],
    "metric_oracle": lambda layer, x: {"marginal_error": abs(scaled(layer, x).sum(-1) - 1).mean()},
    "coefficients": ["temperature"],
    "invalid": [{"temperature": 0.0}, {"temperature": float("inf")}, {"iterations": 0}, {"iterations": 1.5}],
}
sinkhorn_of = functools.partial(Sinkhorn, temperature=0.7, iterations=4)


def test_sinkhorn_keeps_its_promises(battery):
    check_layer(sinkhorn_of, SCORES, **battery, **SINKHORN)


def test_many_iterations_run_in_a_loop_that_does_the_same(monkeypatch):
    monkeypatch.setattr(structured, "UNROLLED", 3)
    check_layer(sinkhorn_of, SCORES, only=["oracle", "metric_values", "gradient", "function", "xla", "unknown_dimensions"], **SINKHORN)


def test_two_by_two_is_a_sigmoid_of_half_the_difference():
    a = RANDOM.standard_normal((7, 2, 2)).astype("float32")
    p = Sinkhorn(iterations=200)(a).numpy()
    expected = scipy.special.expit((a[:, 0, 0] + a[:, 1, 1] - a[:, 0, 1] - a[:, 1, 0]) / 2)
    np.testing.assert_allclose(p[:, 0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(p[:, 0, 1], 1 - expected, rtol=1e-4)


def test_when_cold_it_finds_the_best_assignment():
    scores = RANDOM.standard_normal((6, 6)).astype("float32")
    p = Sinkhorn(temperature=0.01, iterations=500)(scores).numpy()
    rows, columns = scipy.optimize.linear_sum_assignment(scores, maximize=True)
    expected = np.zeros([6, 6])
    expected[rows, columns] = 1
    np.testing.assert_allclose(p, expected, atol=0.02)


def test_scores_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="square scores"):
        Sinkhorn()(np.ones([2, 3, 4], "float32"))


@register
class Upside(Sinkhorn):
    def call(self, inputs):
        return super().call(-inputs)


@register
class ColumnsFirst(Sinkhorn):
    def call(self, inputs):
        return tf.linalg.matrix_transpose(super().call(tf.linalg.matrix_transpose(inputs)))


@register
class NoGradient(Sinkhorn):
    def call(self, inputs):
        return super().call(inputs) + tf.stop_gradient(inputs) - inputs


@pytest.mark.parametrize("kind, broken", [(Upside, "oracle"), (ColumnsFirst, "oracle"), (NoGradient, "gradient")])
def test_a_broken_sinkhorn_is_caught(kind, broken):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(kind, **sinkhorn_of.keywords), SCORES, only=[broken], **SINKHORN)
    assert [*caught.value.broken] == [broken]
