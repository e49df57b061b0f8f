"""Targets that belong to predictions: ranks as Keras aligns them, refusals of what would be broadcast, labels that keep their identity."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist

from layers.losses import ContrastiveLoss, PinballLoss, SparsemaxLoss, sparsemax
from layers.metrics import KendallTau
from layers.pair_losses import NPairsLoss, TripletHardLoss, TripletSemiHardLoss, pair_distances

RANDOM = np.random.default_rng(0)
TRIPLETS = [kind(distance=d) for kind in (TripletSemiHardLoss, TripletHardLoss) for d in ("L2", "squared-L2", "angular")]
TRIPLETS.append(TripletHardLoss(soft=True))

#: Shapes of targets, predictions and weights, all of which Keras takes.
ALIGNED = [
    ([6], [6, 1], [6]),
    ([6, 1], [6], [6]),
    ([6, 1], [6, 1], [6, 1]),
    ([6, 4], [6, 4, 1], [6]),
    ([6, 4, 1], [6, 4], [6]),
    ([6, 4, 3], [6, 4, 3], [6, 4]),
    ([6], [6], None),
]


@pytest.mark.parametrize("true, pred, weight", ALIGNED, ids=str)
@pytest.mark.parametrize("mode", ["eager", "graph of unknown size"])
def test_pinball_loss_aligns_ranks_as_keras_does(true, pred, weight, mode):
    y, f = tf.constant(RANDOM.standard_normal(true), tf.float32), tf.constant(RANDOM.standard_normal(pred), tf.float32)
    weights = [None] if weight is None else [None, np.float32(RANDOM.random(weight))]
    for w, reduction in itertools.product(weights, ("sum_over_batch_size", "sum", None)):
        half, mae = PinballLoss(tau=0.5, reduction=reduction), keras.losses.MeanAbsoluteError(reduction=reduction)
        run = lambda y, f: half(y, f, sample_weight=w)  # noqa: E731, B023
        if mode != "eager":
            run = tf.function(run, input_signature=[tf.TensorSpec([None, *y.shape[1:]]), tf.TensorSpec([None, *f.shape[1:]])])
        np.testing.assert_allclose(run(y, f), mae(y, f, sample_weight=w) / 2, rtol=1e-5)


def test_several_quantiles_take_targets_without_the_last_dimension_too():
    y, f = RANDOM.standard_normal((3, 5)), RANDOM.standard_normal((3, 5, 3))
    loss = PinballLoss(tau=[0.1, 0.5, 0.9], dtype="float64", reduction=None)
    np.testing.assert_array_equal(loss(y, f), loss(y[..., None], f))
    # As many examples as quantiles, where broadcasting would go unnoticed.
    np.testing.assert_array_equal(loss(y[:, 0], f[:, 0]), loss(y[:, :1], f[:, 0]))


REFUSED = [
    (PinballLoss(), [4], [4, 4], "targets of shape (4,) do not fit to predictions of shape (4, 4)"),
    (PinballLoss(), [4, 3], [4, 1], "targets of shape (4, 3) do not fit to predictions of shape (4, 1)"),
    (PinballLoss(), [1, 3], [4, 3], "targets of shape (1, 3) do not fit"),
    (PinballLoss(tau=[0.1, 0.9]), [4, 1], [4, 1], "`tau` has 2 quantiles, so predictions must have shape [..., 2]; got shape (4, 1)"),
    (ContrastiveLoss(), [2, 3], [3, 2], "targets of shape (2, 3) do not fit to predictions of shape (3, 2)"),
    (SparsemaxLoss(), [4], [4, 4], "targets of shape (4,) are not the probabilities of 4 classes"),
    (SparsemaxLoss(), [4, 1], [4, 3], "of class numbers take tf.one_hot"),
    (
        TripletHardLoss(),
        [4, 3],
        [4, 2],
        "one label for each example, [4] or [4, 1]; got labels of shape (4, 3). Of one-hot rows take the argmax",
    ),
    (TripletSemiHardLoss(), [3], [4, 2], "one label for each example"),
    (TripletHardLoss(), [4, 2], [4, 2, 5], "needs predictions of shape [B, D]; got shape (4, 2, 5)"),
    (NPairsLoss(), [4], [4, 3], "needs similarities of shape [B, B]; got shape (4, 3)"),
]


@pytest.mark.parametrize("loss, true, pred, message", REFUSED, ids=[f"{type(r[0]).__name__}-{r[1]}-{r[2]}" for r in REFUSED])
def test_what_would_be_broadcast_is_refused_in_eager_mode_and_in_graphs(loss, true, pred, message):
    for call in (loss, tf.function(loss)):
        with pytest.raises(ValueError) as caught:
            call(tf.zeros(true), tf.zeros(pred))
        assert message in str(caught.value)


def test_rankings_of_other_shapes_are_not_reshaped():
    tau = KendallTau(true_cutpoints=[0.5], pred_cutpoints=[0.5])
    with pytest.raises(ValueError, match=r"targets of shape \(2, 3\) do not fit to predictions of shape \(3, 2\)"):
        tau.update_state(np.zeros([2, 3]), np.zeros([3, 2]))
    tau.update_state([0.0, 1.0, 1.0], [[0.0], [1.0], [0.0]], sample_weight=[1, 1, 0])
    assert float(tau.result()) == 1


@pytest.mark.parametrize("loss", [TripletSemiHardLoss, TripletHardLoss, NPairsLoss], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_labels_keep_their_identity_whatever_the_loss_computes_in(loss, dtype):
    small, x = np.array([0, 1, 0, 2, 1, 2]), np.float32(RANDOM.standard_normal((6, 6)))
    expected = loss(dtype=dtype)(small, x)
    for labels in (small + 2**24, small + 2**40, small[:, None] + 257, np.float64(small) + 2**40, np.array(list("abcdefgh"))[small]):
        assert loss(dtype=dtype)(labels, x) == expected, labels
    assert loss(dtype=dtype)((small + 2**40).tolist(), x) == expected
    if loss is TripletHardLoss and dtype == "float32":
        np.testing.assert_allclose(tf.function(loss(), jit_compile=True)(small + 2**40, x), expected, rtol=1e-5)


def _with_nan(shape, where):
    x = np.float32(RANDOM.standard_normal(shape))
    x[where] = np.nan
    return x


FINITE = np.float32(RANDOM.standard_normal((6, 4)))
CLASSES = np.array([0, 0, 1, 1, 2, 2])
NAN_CASES = {
    f"{type(loss).__name__} {loss.distance} {loss.get_config().get('soft')}": (loss, CLASSES, _with_nan((6, 4), 3)) for loss in TRIPLETS
}
NAN_CASES |= {
    "all": (TRIPLETS[0], CLASSES, _with_nan((6, 4), slice(None))),
    "one example": (TRIPLETS[3], CLASSES[:1], _with_nan((1, 4), 0)),
    "infinite": (TRIPLETS[0], CLASSES, np.where(np.arange(24).reshape(6, 4) == 5, np.inf, FINITE)),
    "a label": (TRIPLETS[0], np.float32([0, 0, 1, 1, 2, np.nan]), FINITE),
    "NPairs": (NPairsLoss(), CLASSES, _with_nan((6, 6), (2, 3))),
    "NPairs label": (NPairsLoss(), np.float32([0, 0, 1, 1, 2, np.nan]), FINITE @ FINITE.T),
    "Pinball": (PinballLoss(), _with_nan((6, 1), 1), np.zeros((6, 1), "float32")),
    "Contrastive": (ContrastiveLoss(), CLASSES > 0, _with_nan(6, 1)),
    "Sparsemax": (SparsemaxLoss(), np.eye(6), _with_nan((6, 6), (0, 1))),
}


@pytest.mark.parametrize("name", NAN_CASES)
def test_what_is_not_finite_makes_the_loss_nan(name):
    loss, y_true, y_pred = NAN_CASES[name]
    x = tf.constant(y_pred)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(y_true, x)
    assert np.isnan(value)
    assert name == "Pinball" or np.isnan(tape.gradient(value, x)).any()
    if name in ("all", "a label"):  # comparisons may differ in compiled code
        assert np.isnan(tf.function(loss, jit_compile=True)(tf.constant(y_true), x))


@pytest.mark.parametrize("distance", ["L2", "squared-L2", "angular"])
@pytest.mark.parametrize("size", [3, 32, 75], ids=["small", "one part", "several parts"])
def test_distances_are_those_of_scipy_wherever_the_embeddings_lie(distance, size):
    metric = {"L2": "euclidean", "squared-L2": "sqeuclidean", "angular": "cosine"}[distance]
    for offset in (0.0, 1000.0, np.where(np.arange(9) % 2, 1000.0, -1000.0)[:, None]):  # the last: two clusters far from each other
        x = np.float32(RANDOM.standard_normal((9, size)) + offset)
        expected = cdist(np.float64(x), np.float64(x), metric)
        found = pair_distances(tf.constant(x), distance).numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-3 if distance == "angular" else 1e-5, atol=1e-8)
        np.testing.assert_array_equal(found, found.T)
        assert (np.diag(found) == 0).all()


def test_gradients_of_distances_are_the_derivatives_and_finite_where_two_are_equal():
    x = tf.constant(np.concatenate([RANDOM.standard_normal((5, 40)), np.zeros((2, 40))]) + 1000.0)
    weights = tf.constant(RANDOM.standard_normal((7, 7)))
    for distance in ("L2", "squared-L2", "angular"):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(weights * pair_distances(x, distance))
        gradient = tape.gradient(total, x).numpy()
        assert np.isfinite(gradient).all()
        difference = tf.reshape(x[:, None] - x[None], [7, 7, 40]).numpy()
        if distance == "squared-L2":
            both = (weights + tf.transpose(weights)).numpy()
            np.testing.assert_allclose(gradient, 2 * np.einsum("ij,ijk->ik", both, difference), rtol=1e-8, atol=1e-9)


def test_sparsemax_far_from_0_is_that_near_0():
    logits = np.float32([[0.5, 0.2, -0.4], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(sparsemax(logits + np.float32(2**16)), sparsemax(np.float32(logits + 2**16) - 2**16), atol=1e-6)
    np.testing.assert_allclose(np.sum(sparsemax(tf.constant(np.linspace(-1, 1, 300), tf.bfloat16)), dtype="float64"), 1, atol=0.01)
