"""Which numbers are classes: the reading of targets and predictions against scikit-learn, floats, NaN, masks; labels of layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

import layers
from layers._private_api import set_keras_mask
from layers.class_numbers import whole_numbers
from layers.metrics import CohenKappa, MatthewsCorrelation

RANDOM = np.random.default_rng(0)
KINDS = {MatthewsCorrelation: matthews_corrcoef, CohenKappa: cohen_kappa_score}


def classes(*shape, kinds=3):
    true = RANDOM.integers(0, kinds, shape)
    return true, np.where(RANDOM.random(shape) < 0.6, true, RANDOM.integers(0, kinds, shape))


def scores(numbers, kinds=3):
    return np.float32(keras.ops.softmax(np.eye(kinds)[numbers] + 0.1 * RANDOM.random((*numbers.shape, kinds))))


def one_hot(numbers, kinds=3, dtype="float32"):
    return np.eye(kinds)[numbers].astype(dtype)


#: Shape of the class numbers -> how targets and predictions are given. Sizes are those of the classes wherever a shape could mislead.
READINGS = {
    "numbers [B]": ([9], lambda t, p: (t, p)),
    "numbers [B] of 3": ([3], lambda t, p: (t, p)),
    "numbers [B, T]": ([9, 3], lambda t, p: (t, p)),
    "numbers [B, H, W]": ([4, 5, 3], lambda t, p: (t, p)),
    "numbers beside a column": ([9], lambda t, p: (t, p[:, None])),
    "a column beside numbers": ([9], lambda t, p: (t[:, None], p)),
    "numbers and scores": ([3], lambda t, p: (t, scores(p))),
    "a column and scores": ([9], lambda t, p: (t[:, None], scores(p))),
    "sequences and scores": ([3, 3], lambda t, p: (t, scores(p))),
    "sequences of 1 and scores": ([9, 1], lambda t, p: (t, scores(p))),
    "sequences in columns and scores": ([4, 3], lambda t, p: (t[..., None], scores(p))),
    "one-hot rows and scores": ([9], lambda t, p: (one_hot(t), scores(p))),
    "one-hot rows of a sequence and scores": ([3, 3], lambda t, p: (one_hot(t), scores(p))),
    "one-hot rows and numbers": ([9], lambda t, p: (one_hot(t, dtype="int64"), p)),
    "floating numbers": ([9], lambda t, p: (t + 1e-3, np.float32(p - 1e-3))),
    "half numbers": ([9], lambda t, p: (np.float16(t), tf.cast(p, tf.bfloat16))),
    "small integers": ([9], lambda t, p: (np.uint8(t), np.int8(p))),
}


@pytest.mark.parametrize("name", READINGS)
def test_ranks_decide_what_is_a_class_number(name):
    shape, give = READINGS[name]
    true, pred = classes(*shape)
    y_true, y_pred = give(true, pred)
    for kind, reference in KINDS.items():
        metric = kind(num_classes=3, dtype="float64")
        metric.update_state(y_true, y_pred)
        np.testing.assert_allclose(metric.result(), reference(true.ravel(), pred.ravel()), rtol=1e-9)
    tensors = tf.constant(y_true), tf.constant(y_pred)
    traced = MatthewsCorrelation(num_classes=3, dtype="float64")
    unknown = [tf.TensorSpec([None, *t.shape[1:]], t.dtype) for t in tensors]
    tf.function(traced.update_state, input_signature=unknown)(*tensors)
    np.testing.assert_allclose(traced.result(), matthews_corrcoef(true.ravel(), pred.ravel()), rtol=1e-9)


def test_what_may_be_read_in_two_ways_is_refused_until_it_is_said():
    true, pred = classes(9, 3)
    with pytest.raises(
        ValueError, match=r"\(9, 3\) \(int64\) and predictions of shape \(9, 3\) \(float32\) may be numbers .* sparse_y_true="
    ):
        MatthewsCorrelation(num_classes=3).update_state(true, np.float32(pred))
    metric = MatthewsCorrelation(num_classes=3, sparse_y_true=True, sparse_y_pred=True)
    metric.update_state(np.float32(true), np.float32(pred))
    np.testing.assert_allclose(metric.result(), matthews_corrcoef(true.ravel(), pred.ravel()), rtol=1e-6)
    rows = MatthewsCorrelation(num_classes=3, sparse_y_true=False, sparse_y_pred=False)
    rows.update_state(one_hot(true[:, 0], dtype="int32"), scores(pred[:, 0]))
    np.testing.assert_allclose(rows.result(), matthews_corrcoef(true[:, 0], pred[:, 0]), rtol=1e-6)
    assert rows.get_config()["sparse_y_true"] is False
    for shapes in (([4], [4, 2]), ([4, 2], [4]), ([4], [3]), ([4], [4, 2, 3]), ([4, 5], [4, 6])):
        with pytest.raises(ValueError, match="do not fit to each other with 3 classes"):
            CohenKappa(num_classes=3).update_state(*(np.zeros(shape, "int32") for shape in shapes))


def test_two_binary_outputs_are_not_two_classes():
    true, guess = classes(50, 2, kinds=2)
    p = np.float32(np.where(guess, 0.7, 0.2))
    kappa = CohenKappa(num_classes=2)
    kappa.update_state(true, p)
    np.testing.assert_allclose(kappa.result(), cohen_kappa_score(true.ravel(), guess.ravel()), rtol=1e-6)
    unseen = CohenKappa(num_classes=2)
    unseen.update_state(np.float32(true), p)  # floats are one-hot rows, which these are not: seen, not silent
    assert np.isnan(unseen.result())


@pytest.mark.parametrize(
    "true, pred",
    [
        ([0, 1, 2], [0, np.nan, 2]),
        ([0, np.nan, 2], [0, 1, 2]),
        ([0, 1], [[0.1, 0.2, 0.7], [np.nan, 0.0, 0.0]]),
        ([0, 1, 7], [0, 1, 2]),
        ([0, 1, 2], [0, 1, -1.0]),
        ([0, 1, 2**40], [0, 1, 2]),
        ([[1.0, 0, 0], [0.0, 0, 0]], [[0.1, 0.2, 0.7], [0.1, 0.2, 0.7]]),
    ],
    ids=str,
)
def test_nan_and_classes_that_do_not_exist_make_the_result_nan_unless_they_weigh_nothing(true, pred):
    for kind in KINDS:
        metric = kind(num_classes=3)
        metric.update_state(true, pred)
        assert np.isnan(metric.result())
    last = np.arange(len(true)) == (2 if len(true) == 3 and not np.isnan(np.float64(true[1])) and not np.any(np.isnan(pred[1])) else 1)
    metric = MatthewsCorrelation(num_classes=3)
    metric.update_state(true, pred, sample_weight=~last)
    assert np.isfinite(metric.result())


def test_what_the_mask_of_the_predictions_takes_away_does_not_count():
    true, pred = classes(8, 5)
    mask = RANDOM.random((8, 5)) < 0.6
    given = tf.constant(scores(pred))
    set_keras_mask(given, tf.constant(mask))
    metric = MatthewsCorrelation(num_classes=3)
    metric.update_state(np.where(mask, true, 99), given)
    np.testing.assert_allclose(metric.result(), matthews_corrcoef(true[mask], pred[mask]), rtol=1e-5)


def test_numbers_are_rounded_and_what_is_no_class_is_minus_1():
    for values in ([2.9999, 0.4, -0.4, -0.6, 3.6, np.nan, np.inf], np.float64([3, 0, 0, -1, 4, -7, 2.0**70])):
        assert whole_numbers("x", values, classes=4).numpy().tolist() == [3, 0, 0, -1, -1, -1, -1]
    assert whole_numbers("x", np.array([2**32, -(2**32), 3, -1]), classes=4).numpy().tolist() == [-1, -1, 3, -1]
    assert whole_numbers("x", np.array([255, 3], "uint8"), classes=300).numpy().tolist() == [255, 3]
    with pytest.raises(TypeError, match="numbers of 300 classes given as bfloat16 cannot be told apart; give integers"):
        whole_numbers("x", tf.zeros([2], tf.bfloat16), classes=300)


@pytest.mark.parametrize("make", [layers.CenterLoss, layers.MarginSoftmax], ids=lambda kind: kind.__name__)
def test_layers_round_labels_and_refuse_shapes_that_are_not_theirs(make):
    x = np.float32(RANDOM.standard_normal((3, 3)))
    layer = make(num_classes=3)
    layer(x, np.array([0, 1, 2]))
    expected = [*layer.losses, layer.metrics[0].result()]
    for labels in ([[0], [1], [2]], [0.0001, 0.9999, 2.0]):
        layer.metrics[0].reset_state()
        layer(x, np.array(labels))
        np.testing.assert_allclose([*layer.losses, layer.metrics[0].result()], expected, rtol=1e-6)
    for shape in ([3, 3], [1], [4]):
        with pytest.raises(ValueError, match="needs labels of shape"):
            layer(x, np.zeros(shape, "int32"))
    with pytest.raises(TypeError, match="given as float16 cannot be told apart"):
        make(num_classes=3000, dtype="mixed_float16")(x, np.float32([0, 1, 2]))


def test_a_label_that_is_no_class_gives_the_same_in_all_modes():
    layer = layers.CenterLoss(num_classes=3)
    x, labels = tf.ones([3, 2]), tf.constant([0, 1, 3])

    def call(x, labels):
        layer(x, labels, training=True)
        return layer.losses[0]

    for run in (call, tf.function(call), tf.function(call, jit_compile=True)):
        assert np.isnan(run(x, labels))
    assert np.isfinite(layer.centers).all()
