"""CRF where sequences are short, ragged or wrong: every mode gives the same, and a tag that does not exist is never taken for another."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from layers.structured import CRF
from tests.layers.test_structured import RANDOM, best, loss

MODES = {
    "eager": lambda call: call,
    "graph": lambda call: tf.function(call),
    "unknown": lambda call: tf.function(
        call, input_signature=[tf.TensorSpec([None, None, 3]), tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.bool)]
    ),
    "xla": lambda call: tf.function(call, jit_compile=True),
}


@pytest.fixture(scope="module")
def crf():
    layer = CRF(transitions_initializer="random_normal")
    layer.build((None, None, 3))
    return layer


@pytest.fixture(scope="module")
def run(crf):
    """What each mode makes of unary scores, tags and mask: decoded tags and loss. Each is traced by itself."""

    def call(unary, tags, mask):
        found = crf(unary, tags=tags, mask=mask)
        return found, crf.losses[0]

    compiled = {mode: wrap(call) for mode, wrap in MODES.items()}
    return lambda mode, unary, tags, mask: compiled[mode](tf.constant(unary, tf.float32), tf.constant(tags), tf.constant(mask))


SIZES = [(mode, *size) for mode in MODES for size in ((3, 1), (3, 0), (2, 4), (0, 4), (0, 1))[: 2 if mode == "xla" else 5]]


@pytest.mark.parametrize("mode, batch, steps", SIZES)
def test_sequences_of_any_length_and_batches_of_any_size(crf, run, mode, batch, steps):
    unary, tags = RANDOM.standard_normal((batch, steps, 3)), RANDOM.integers(0, 3, (batch, steps)).astype("int32")
    found, value = run(mode, unary, tags, np.ones((batch, steps), bool))
    assert found.shape == (batch, steps)
    np.testing.assert_array_equal(found, best(crf, unary) if steps else np.zeros((batch, 0)))
    np.testing.assert_allclose(value, loss(crf, unary, tags) if batch and steps else 0, rtol=1e-5)


def test_a_gradient_goes_through_one_step(crf):
    unary = tf.constant(RANDOM.standard_normal((2, 1, 3)), tf.float32)

    @tf.function(jit_compile=True)
    def gradient(unary):
        with tf.GradientTape() as tape:
            tape.watch(unary)
            crf(unary, tags=tf.constant([[0], [2]]))
            value = crf.losses[0]
        return tape.gradient(value, unary)

    probability = tf.nn.softmax(unary + crf.start + crf.end)
    np.testing.assert_allclose(gradient(unary), (probability - tf.one_hot([[0], [2]], 3)) / 2, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tag", [3, -1])
def test_a_tag_that_does_not_exist_makes_the_loss_nan_in_every_mode_unless_it_is_masked(run, mode, tag):
    unary, tags, mask = np.zeros((2, 4, 3)), np.zeros((2, 4), "int32"), np.arange(4) < np.array([[4], [2]])
    tags[1, 3] = tag
    assert np.isfinite(run(mode, unary, tags, mask)[1])
    tags[1, 1] = tag
    assert np.isnan(run(mode, unary, tags, mask)[1])


def test_under_xla_which_checks_nothing_a_mask_with_a_hole_makes_the_loss_nan(run):
    hole = np.array([[True, True, False, True], [True, True, True, True]])
    assert np.isnan(run("xla", np.zeros((2, 4, 3)), np.zeros((2, 4), "int32"), hole)[1])


def test_ragged_sequences_are_those_with_a_mask(crf):
    unary = tf.ragged.constant(
        [[[0.1, 2.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]], []], ragged_rank=1, inner_shape=(3,)
    )
    tags = tf.ragged.constant([[1], [0, 1, 1], []])
    found = crf(unary, tags=tags)
    value = crf.losses[0]
    mask = tf.sequence_mask([1, 3, 0])
    padded = crf(unary.to_tensor(), tags=tags.to_tensor(), mask=mask)
    np.testing.assert_allclose(value, crf.losses[0], rtol=1e-6)
    assert isinstance(found, tf.RaggedTensor)
    np.testing.assert_array_equal(found.to_tensor(), padded)
    np.testing.assert_array_equal(tf.function(crf)(unary).to_tensor(), padded)
    with pytest.raises(ValueError, match=r"needs tags of shape \(3, 3\), one for each step; got shape \(3, 2\)"):
        crf(unary, tags=tags[:, :2])


def test_tags_may_be_floats_or_a_column_and_nothing_else(crf):
    unary, tags = np.float32(RANDOM.standard_normal((2, 4, 3))), RANDOM.integers(0, 3, (2, 4))
    values = []
    for given in (tags, tags[..., None], tags - 1e-3, np.int8(tags)):
        crf(unary, tags=given)
        values.append(float(crf.losses[0]))
    assert values == values[:1] * 4
    for shape in ([2], [4, 2], [2, 4, 3]):
        with pytest.raises(ValueError, match=r"CRF needs tags of shape \(2, 4\)"):
            crf(unary, tags=np.zeros(shape, "int32"))
