"""The losses against brute force in NumPy, as Keras losses: weights, reductions, saving, `fit`, XLA, gradients, degenerate batches."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize

from layers.losses import ContrastiveLoss, PinballLoss, SparsemaxLoss, sparsemax
from layers.pair_losses import NPairsLoss, TripletHardLoss, TripletSemiHardLoss
from tests.layers.graph_fit import graph_fit
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
EMBEDDINGS, LABELS = RANDOM.standard_normal((9, 4)), np.array([0, 1, 2, 0, 1, 0, 2, 3, 0])
ONE_HOT = np.eye(4)[LABELS]

#: Batches in which something is missing: other classes, pairs, ties, everything.
ODD_BATCHES = {
    "one class": (np.zeros(4), RANDOM.standard_normal((4, 3))),
    "no pairs": (np.arange(4), RANDOM.standard_normal((4, 3))),
    "all equal": (np.array([0, 0, 1, 1]), np.ones((4, 3))),
    "zeros": (np.array([0, 0, 1, 1]), np.zeros((4, 3))),
    "one example": (np.zeros(1), np.ones((1, 3))),
    "ties": (np.array([0, 0, 1, 1, 0]), np.array([[0.0], [1.0], [1.0], [2.0], [2.0]])),
}


def distance_matrix(x, distance):
    d = np.zeros((len(x), len(x)))
    for i, j in itertools.product(range(len(x)), repeat=2):
        if distance == "angular":
            norms = np.linalg.norm(x[i]) * np.linalg.norm(x[j])
            d[i, j] = 0 if i == j else 1 - (x[i] @ x[j] / norms if norms else 0)
        else:
            d[i, j] = np.sum((x[i] - x[j]) ** 2) ** (0.5 if distance == "L2" else 1)
    return d


def semi_hard(labels, x, margin, distance):
    """Pair by pair, negative by negative; anchors without negatives as in TensorFlow Addons."""
    d, losses = distance_matrix(x, distance), []
    for a, p in itertools.permutations(range(len(x)), 2):
        if labels[a] == labels[p]:
            negatives = [d[a, n] for n in range(len(x)) if labels[n] != labels[a]]
            beyond = [far for far in negatives if far > d[a, p]]
            losses.append(max(0, margin + d[a, p] - (min(beyond) if beyond else max(negatives, default=0))))
    return np.mean(losses) if losses else 0.0


def hard(labels, x, margin, distance, soft=False):
    d, losses = distance_matrix(x, distance), []
    for a in range(len(x)):
        positive = max([d[a, p] for p in range(len(x)) if p != a and labels[p] == labels[a]], default=0)
        negative = min([d[a, n] for n in range(len(x)) if labels[n] != labels[a]], default=max(d[a]))
        losses.append(np.log1p(np.exp(positive - negative)) if soft else max(0, margin + positive - negative))
    return np.mean(losses)


def close_by_value(loss, y_true, y_pred, expected):
    found = loss(tf.constant(y_true), tf.constant(y_pred))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distance", ["L2", "squared-L2", "angular"])
@pytest.mark.parametrize("margin", [0.0, 0.3, 2.0])
def test_triplet_losses_are_those_of_all_triplets(distance, margin):
    settings = {"margin": margin, "distance": distance, "dtype": "float64"}
    random = np.random.default_rng(0)
    labels, x = random.integers(0, 3, 17), random.standard_normal((17, 3))
    close_by_value(TripletSemiHardLoss(**settings), labels, x, semi_hard(labels, x, margin, distance))
    close_by_value(TripletHardLoss(**settings), labels, x, hard(labels, x, margin, distance))
    close_by_value(TripletHardLoss(**settings, soft=True), labels[:, None], x, hard(labels, x, margin, distance, soft=True))


#: Roots and norms are the ones that may have no gradient at 0.
ODD_CASES = [("L2", name) for name in ODD_BATCHES]
ODD_CASES += [("angular", name) for name in ("all equal", "zeros", "ties")] + [("squared-L2", "zeros"), ("squared-L2", "one class")]


@pytest.mark.parametrize("distance, name", ODD_CASES)
def test_triplet_losses_of_odd_batches_have_values_and_finite_gradients(name, distance):
    labels, x = ODD_BATCHES[name]
    x = tf.constant(x)
    for loss, reference in ((TripletSemiHardLoss, semi_hard), (TripletHardLoss, hard)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(margin=0.7, distance=distance, dtype="float64")(labels, x)
        np.testing.assert_allclose(value, reference(labels, x.numpy(), 0.7, distance), rtol=1e-7, atol=1e-7)
        assert np.isfinite(tape.gradient(value, x)).all()


TRIPLET_MUTATIONS = {
    "sign": (TripletSemiHardLoss, "self.margin + distances - semi_hard", "self.margin - distances + semi_hard"),
    "nearest of all": (TripletSemiHardLoss, 'tf.searchsorted(ascending, distances, side="right")', "tf.zeros_like(order)"),
    "not beyond": (TripletSemiHardLoss, 'side="right"', 'side="left"'),
    "mean over anchors": (TripletSemiHardLoss, "tf.reduce_sum(positive))", "tf.reduce_sum(positive) * 2)"),
    "with itself": (TripletSemiHardLoss, "tf.cast(_without_diagonal(same), distances.dtype)", "tf.cast(same, distances.dtype)"),
    "easiest positive": (TripletHardLoss, "positive = tf.reduce_max(tf.where(_without", "positive = tf.reduce_min(tf.where(_without"),
    "farthest negative": (TripletHardLoss, "negative = tf.reduce_min(", "negative = tf.reduce_max("),
    "columns": (TripletHardLoss, "tf.where(same, largest, distances), -1)", "tf.where(same, largest, distances), 0)"),
}


@pytest.mark.parametrize("name", TRIPLET_MUTATIONS)
def test_the_comparison_notices(name):
    kind, old, new = TRIPLET_MUTATIONS[name]
    reference = semi_hard if kind is TripletSemiHardLoss else hard
    wrong = []
    for labels, x in ((LABELS, EMBEDDINGS), ODD_BATCHES["ties"], ODD_BATCHES["one class"]):
        value = mutant(kind, old, new)(margin=0.7, dtype="float64")(labels, x)
        wrong.append(not np.isclose(value, reference(labels, x, 0.7, "L2")))
    assert any(wrong)


def contrastive(y, d, margin):
    return [d_i**2 if y_i else max(0, margin - d_i) ** 2 for y_i, d_i in zip(y, d, strict=True)]


def npairs(labels, similarity):
    losses = []
    for i, row in enumerate(similarity):
        log_softmax = row - np.log(np.sum(np.exp(row)))
        partners = [j for j in range(len(row)) if labels[j] == labels[i]]
        losses.append(-np.mean([log_softmax[j] for j in partners]))
    return losses


def test_contrastive_loss_is_that_of_each_pair():
    y, d = RANDOM.integers(0, 2, 20), np.abs(RANDOM.standard_normal(20))
    close_by_value(ContrastiveLoss(margin=0.8, reduction=None, dtype="float64"), y, d, contrastive(y, d, 0.8))
    column = ContrastiveLoss(margin=0.8, reduction=None, dtype="float64")(y, d[:, None])
    np.testing.assert_allclose(column[:, 0], contrastive(y, d, 0.8))
    wrong = mutant(ContrastiveLoss, "self.margin - y_pred", "y_pred - self.margin")(margin=0.8, reduction=None, dtype="float64")(y, d)
    assert not np.allclose(wrong, contrastive(y, d, 0.8))


def test_npairs_loss_is_that_of_each_anchor():
    similarity = RANDOM.standard_normal((9, 9))
    close_by_value(NPairsLoss(reduction=None, dtype="float64"), LABELS, similarity, npairs(LABELS, similarity))
    close_by_value(NPairsLoss(dtype="float64"), LABELS[:, None], similarity, np.mean(npairs(LABELS, similarity)))
    wrong = mutant(NPairsLoss, " / tf.reduce_sum(same, -1)", "")(reduction=None, dtype="float64")(LABELS, similarity)
    assert not np.allclose(wrong, npairs(LABELS, similarity))


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_the_constant_that_makes_pinball_loss_least_is_the_quantile(tau):
    y = RANDOM.standard_normal(101)
    loss = PinballLoss(tau=tau, dtype="float64")
    least = optimize.minimize_scalar(lambda c: float(loss(y[:, None], np.full((101, 1), c))), bounds=(-3, 3), method="bounded")
    np.testing.assert_allclose(least.x, np.quantile(y, tau), atol=1e-3)
    error = y - 0.3
    expected = np.mean([tau * e if e > 0 else (tau - 1) * e for e in error])
    close_by_value(loss, y[:, None], np.full((101, 1), 0.3), expected)
    wrong = mutant(PinballLoss, "(tau - 1) * error", "(1 - tau) * error")(tau=tau, dtype="float64")
    assert not np.isclose(wrong(y[:, None], np.full((101, 1), 3.0)), loss(y[:, None], np.full((101, 1), 3.0)))


def test_pinball_loss_of_a_half_is_half_the_absolute_error_and_quantiles_have_a_column_each():
    y, f = RANDOM.standard_normal((6, 1)), RANDOM.standard_normal((6, 3))
    half = PinballLoss(tau=0.5, dtype="float64")
    np.testing.assert_allclose(half(y, f), keras.losses.MeanAbsoluteError(dtype="float64")(np.tile(y, 3), f) / 2)
    each = [float(PinballLoss(tau=tau, dtype="float64")(y, f[:, i : i + 1])) for i, tau in enumerate((0.1, 0.5, 0.9))]
    close_by_value(PinballLoss(tau=[0.1, 0.5, 0.9], dtype="float64"), y, f, np.mean(each))


def project(z):
    """The point of the simplex nearest to z, by quadratic programming's optimality: bisection on the threshold."""
    tau = optimize.brentq(lambda t: np.sum(np.maximum(z - t, 0)) - 1, z.min() - 1, z.max(), xtol=1e-14)
    return np.maximum(z - tau, 0)


def test_sparsemax_is_the_projection_onto_the_simplex_and_its_gradient_the_papers():
    logits = RANDOM.standard_normal((40, 7)) * np.linspace(0, 3, 40)[:, None]
    logits[0] = 5.0  # all equal
    expected = np.array([project(z) for z in logits])
    z, upstream = tf.constant(logits), RANDOM.standard_normal((40, 7))
    with tf.GradientTape() as tape:
        tape.watch(z)
        p = sparsemax(z)
    np.testing.assert_allclose(p, expected, atol=1e-12)
    on = expected > 0
    jacobian = [np.diag(s * 1.0) - np.outer(s, s) / s.sum() for s in on]
    gradient = tape.gradient(p, z, output_gradients=tf.constant(upstream))
    np.testing.assert_allclose(gradient, [j @ u for j, u in zip(jacobian, upstream, strict=True)], atol=1e-12)
    half = sparsemax(tf.constant(logits, tf.float16)).numpy()
    np.testing.assert_allclose(half, expected, atol=0.01)
    for old, new in (("1 + place * descending >", "place * descending >"), ("(total - 1)", "(total + 1)")):
        assert not np.allclose(mutant(sparsemax, old, new)(z), expected)


def test_sparsemax_loss_is_the_papers_and_its_gradient_is_p_minus_q():
    logits = RANDOM.standard_normal((9, 4)) * 2
    p = np.array([project(z) for z in logits])
    expected = []  # the paper's equation 16, for one class
    for z, projected, label in zip(logits, p, LABELS, strict=True):
        support = projected > 0
        threshold = (z[support].sum() - 1) / support.sum()
        expected.append(-z[label] + np.sum(z[support] ** 2 - threshold**2) / 2 + 0.5)
    with tf.GradientTape() as tape:
        z = tf.constant(logits)
        tape.watch(z)
        losses = SparsemaxLoss(reduction=None, dtype="float64")(ONE_HOT, z)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(tape.gradient(losses, z), p - ONE_HOT, atol=1e-9)
    soft = np.array([project(q) for q in RANDOM.standard_normal((9, 4))])
    z = np.log(soft + 1e-3)
    value, step = SparsemaxLoss(reduction=None, dtype="float64")(soft, z).numpy(), 1e-6
    for k in range(4):
        moved = SparsemaxLoss(reduction=None, dtype="float64")(soft, z + step * np.eye(4)[k]).numpy()
        np.testing.assert_allclose((moved - value) / step, [project(row)[k] for row in z] - soft[:, k], atol=1e-5)
    assert (value > -1e-12).all()
    shifted = SparsemaxLoss(reduction=None)(ONE_HOT, logits + 1000)
    np.testing.assert_allclose(shifted, expected, rtol=1e-3, atol=1e-3)
    wrong = mutant(SparsemaxLoss, "(tf.square(y_true) - tf.square(p)) / 2", "(tf.square(p) - tf.square(y_true)) / 2")
    assert not np.allclose(wrong(reduction=None, dtype="float64")(ONE_HOT, logits), expected)


LOSSES = {
    "semi-hard": (TripletSemiHardLoss, {"margin": 0.4, "distance": "angular"}, LABELS, EMBEDDINGS),
    "hard": (TripletHardLoss, {"margin": 0.4, "distance": "squared-L2", "soft": True}, LABELS, EMBEDDINGS),
    "contrastive": (ContrastiveLoss, {"margin": 0.8}, LABELS > 0, np.abs(EMBEDDINGS[:, 0])),
    "npairs": (NPairsLoss, {}, LABELS, EMBEDDINGS @ EMBEDDINGS.T),
    "pinball": (PinballLoss, {"tau": 0.2}, EMBEDDINGS, EMBEDDINGS[::-1]),
    "quantiles": (PinballLoss, {"tau": [0.2, 0.4, 0.5, 0.9]}, EMBEDDINGS[:, :1], EMBEDDINGS[::-1]),
    "sparsemax": (SparsemaxLoss, {}, ONE_HOT, EMBEDDINGS),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_good_keras_losses(name):
    kind, arguments, y_true, y_pred = LOSSES[name]
    y_true, y_pred = tf.constant(y_true), tf.constant(y_pred, tf.float32)
    loss, each = kind(**arguments), kind(**arguments, reduction=None)
    values = each(y_true, y_pred)
    assert values.shape == (9,) and values.dtype == tf.float32
    np.testing.assert_allclose(loss(y_true, y_pred), np.mean(values), rtol=1e-6)
    weights = np.linspace(0, 2, 9)
    np.testing.assert_allclose(loss(y_true, y_pred, sample_weight=weights), np.mean(weights * values), rtol=1e-6)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is kind and again.get_config() == loss.get_config()
    assert {*arguments} <= {*loss.get_config()}
    for dtype in ("float16", "bfloat16"):  # predictions of a mixed-precision model: computed in float32
        np.testing.assert_allclose(loss(y_true, tf.cast(y_pred, dtype)), loss(y_true, y_pred), rtol=0.03, atol=0.01)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "pinball"])  # "quantiles" is the same loss
def test_values_and_gradients_are_the_same_in_graphs_of_unknown_size_and_under_xla(name):
    kind, arguments, y_true, y_pred = LOSSES[name]
    y_true, y_pred = tf.constant(y_true, tf.float32), tf.constant(y_pred, tf.float32)
    loss = kind(**arguments)

    def both(y_true, y_pred):
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y_true, y_pred)
        return value, tape.gradient(value, y_pred)

    unknown = [tf.TensorSpec([None, *y.shape[1:]] if name != "npairs" else [None] * y.shape.rank) for y in (y_true, y_pred)]
    expected = both(y_true, y_pred)
    for found in (
        tf.function(both, input_signature=unknown, autograph=False)(y_true, y_pred),
        tf.function(both, jit_compile=True, autograph=False)(y_true, y_pred),
    ):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    empty = loss(y_true[:0], y_pred[:0, :0] if name == "npairs" else y_pred[:0])
    assert np.size(empty) == 0 or np.isfinite(empty).all()


@pytest.mark.parametrize("kind, distance", [*itertools.product([TripletSemiHardLoss, TripletHardLoss], ["L2", "squared-L2", "angular"])])
def test_triplet_gradients_are_the_derivatives(kind, distance):
    loss, x = kind(margin=0.5, distance=distance, dtype="float64"), tf.constant(EMBEDDINGS)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(LABELS, x)
    gradient, direction, step = tape.gradient(value, x).numpy(), RANDOM.standard_normal(EMBEDDINGS.shape), 1e-6
    difference = (loss(LABELS, x + step * direction) - loss(LABELS, x - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient * direction), difference, rtol=1e-5)


@pytest.mark.parametrize("train", [pytest.param(keras.Model.fit, marks=pytest.mark.matrix), graph_fit], ids=["model.fit", "loops.fit"])
def test_a_model_learns_to_part_classes(train):
    keras.utils.set_random_seed(0)
    labels = RANDOM.integers(0, 3, 96)
    x = np.float32(np.eye(3)[labels] + 0.3 * RANDOM.standard_normal((96, 3)))
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(8, "relu"), keras.layers.Dense(2), keras.layers.UnitNormalization()])
    model.compile(keras.optimizers.Adam(0.04), TripletSemiHardLoss(margin=0.5), jit_compile=False)
    model.optimizer.build(model.trainable_variables)  # else Keras traces the step twice
    history = train(model, x, labels, batch_size=32, epochs=8, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (TripletHardLoss, {"margin": -1.0}),
        (TripletSemiHardLoss, {"distance": "L3"}),
        (ContrastiveLoss, {"margin": 0.0}),
        (PinballLoss, {"tau": 1.0}),
        (PinballLoss, {"tau": []}),
        (PinballLoss, {"tau": [0.5, float("nan")]}),
    ],
)
def test_wrong_arguments_are_refused(kind, arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be .*; got"):
        kind(**arguments)
