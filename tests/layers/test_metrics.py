"""The metrics against scikit-learn and SciPy: in batches of any size, weighted, saved, in `fit`, under XLA and replicas."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef

from layers.metrics import CohenKappa, KendallTau, MatthewsCorrelation, SpearmanCorrelation
from tests.layers.graph_fit import graph_fit
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
SIZE = 203  # in batches of 64: three whole ones and a rest
CLASSES = RANDOM.integers(0, 4, SIZE)
GUESSES = np.where(RANDOM.random(SIZE) < 0.5, CLASSES, RANDOM.integers(0, 4, SIZE))
WEIGHTS = RANDOM.integers(0, 4, SIZE)
TARGETS = RANDOM.standard_normal(SIZE)
PREDICTIONS = 0.6 * TARGETS + RANDOM.standard_normal(SIZE)
CUTPOINTS = np.linspace(-2, 2, 9)


def kappa(weighting):
    return lambda true, guess, weight=None: cohen_kappa_score(true, guess, weights=weighting, sample_weight=weight)


def of_bins(correlation):
    """SciPy's, of the bins' numbers; integer weights repeat examples."""

    def compute(true, prediction, weight=None):
        bins = [np.digitize(values, CUTPOINTS) for values in (true, prediction)]
        return correlation(*(np.repeat(b, weight) if weight is not None else b for b in bins)).statistic

    return compute


CUTS = {"true_cutpoints": CUTPOINTS, "pred_cutpoints": CUTPOINTS}
METRICS = {
    "kappa": (CohenKappa, {"num_classes": 4}, CLASSES, GUESSES, kappa(None)),
    "linear kappa": (CohenKappa, {"num_classes": 4, "weighting": "linear"}, CLASSES, GUESSES, kappa("linear")),
    "quadratic kappa": (CohenKappa, {"num_classes": 4, "weighting": "quadratic"}, CLASSES, GUESSES, kappa("quadratic")),
    "matthews": (
        MatthewsCorrelation,
        {"num_classes": 4},
        CLASSES,
        GUESSES,
        lambda true, guess, weight=None: matthews_corrcoef(true, guess, sample_weight=weight),
    ),
    "spearman": (SpearmanCorrelation, CUTS, TARGETS, PREDICTIONS, of_bins(stats.spearmanr)),
    "kendall": (KendallTau, CUTS, TARGETS, PREDICTIONS, of_bins(stats.kendalltau)),
}


def in_batches(metric, true, prediction, weight=None, size=64):
    metric.reset_state()
    for i in range(0, len(true), size):
        metric.update_state(true[i : i + size], prediction[i : i + size], None if weight is None else weight[i : i + size])
    return float(metric.result())


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [1, 64])
def test_a_metric_is_that_of_all_examples_whatever_the_batches(name, size):
    kind, arguments, true, prediction, reference = METRICS[name]
    metric = kind(**arguments, dtype="float64")
    true, prediction = (true[:25], prediction[:25]) if size == 1 else (true, prediction)
    np.testing.assert_allclose(in_batches(metric, true, prediction, size=size), reference(true, prediction), rtol=1e-12)
    again = true[::-1].copy()
    np.testing.assert_allclose(in_batches(metric, again, prediction, size=size), reference(again, prediction), rtol=1e-10)


@pytest.mark.parametrize("name", METRICS)
def test_weights_count_examples_and_what_weighs_0_does_not_count_whatever_it_is(name):
    kind, arguments, true, prediction, reference = METRICS[name]
    metric = kind(**arguments, dtype="float64")
    expected = reference(true, prediction, WEIGHTS)
    np.testing.assert_allclose(in_batches(metric, true, prediction, WEIGHTS), expected, rtol=1e-12)
    garbage = np.where(WEIGHTS == 0, np.nan if true.dtype.kind == "f" else -7, prediction)
    np.testing.assert_allclose(in_batches(metric, true, garbage, WEIGHTS), expected, rtol=1e-12)
    matrix = metric.__class__(**arguments, dtype="float64")
    matrix.update_state(true[:200].reshape(20, 10), prediction[:200].reshape(20, 10), WEIGHTS[:20])
    expected = reference(true[:200], prediction[:200], np.repeat(WEIGHTS[:20], 10))
    np.testing.assert_allclose(float(matrix.result()), expected, rtol=1e-12)


MUTATIONS = [
    ("kappa", "1 - observed / ", "observed / "),
    ("kappa", "observed = total * ", "observed = "),
    ("kappa", "tf.reduce_sum(table, 1)[:, None]", "tf.reduce_sum(table, 0)[:, None]"),
    ("quadratic kappa", '"quadratic": steps * steps', '"quadratic": steps'),
    ("matthews", "right * total - tf.reduce_sum(true * predicted)", "right * total + tf.reduce_sum(true * predicted)"),
    ("matthews", "tf.square(total) - tf.reduce_sum(tf.square(counts))", "tf.square(total) - tf.reduce_sum(counts)"),
    ("matthews", "self.table.assign_add(", "self.table.assign("),
    ("spearman", "tf.cumsum(counts, exclusive=True) + counts / 2 -", "tf.cumsum(counts) + counts / 2 -"),
    ("spearman", 'side="right"', 'side="left"'),
    ("kendall", "alike - oppositely", "alike + oppositely"),
    ("kendall", ") / 2 for axis in (0, 1)]", ") / 2 for axis in (0, 0)]"),
    ("kendall", "tf.cumsum(below, 1, exclusive=True))", "tf.cumsum(below, 1))"),
]


@pytest.mark.parametrize("name, old, new", MUTATIONS, ids=[f"{m[0]}-{i}" for i, m in enumerate(MUTATIONS)])
def test_the_comparison_notices(name, old, new):
    kind, arguments, true, prediction, reference = METRICS[name]
    if name in ("spearman", "kendall"):
        true = np.round(true * 2) / 2  # on the cutpoints
    value = in_batches(mutant(kind, old, new)(**arguments, dtype="float64"), true, prediction)
    assert not np.isclose(value, reference(true, prediction), rtol=1e-6)
    np.testing.assert_allclose(in_batches(kind(**arguments, dtype="float64"), true, prediction), reference(true, prediction), rtol=1e-12)


def test_fine_bins_come_near_the_correlation_of_the_values_themselves():
    cuts = {"true_cutpoints": np.linspace(-3, 3, 201), "pred_cutpoints": np.linspace(-4, 4, 201)}
    for kind, exact in ((SpearmanCorrelation, stats.spearmanr), (KendallTau, stats.kendalltau)):
        np.testing.assert_allclose(in_batches(kind(**cuts), TARGETS, PREDICTIONS), exact(TARGETS, PREDICTIONS).statistic, atol=5e-3)


def test_grades_are_ranked_exactly():
    grades, scores = RANDOM.integers(0, 6, SIZE), RANDOM.integers(0, 3, SIZE)
    cuts = {"true_cutpoints": np.arange(5) + 0.5, "pred_cutpoints": [0.5, 1.5]}
    for kind, exact in ((SpearmanCorrelation, stats.spearmanr), (KendallTau, stats.kendalltau)):
        value = in_batches(kind(**cuts, dtype="float64"), grades, scores)
        np.testing.assert_allclose(value, exact(grades, scores).statistic, rtol=1e-10)


@pytest.mark.parametrize("kind, reference", [(CohenKappa, cohen_kappa_score), (MatthewsCorrelation, matthews_corrcoef)])
def test_classes_scores_one_hot_and_probabilities_mean_the_same(kind, reference):
    scores = RANDOM.random((SIZE, 4)).astype("float32")
    expected = reference(CLASSES, scores.argmax(1))
    for true in (CLASSES, CLASSES[:, None], CLASSES.astype("float32"), np.eye(4)[CLASSES]):
        np.testing.assert_allclose(in_batches(kind(num_classes=4), true, scores), expected, rtol=1e-5)
    two, probability = CLASSES % 2, RANDOM.random((SIZE, 1)).astype("float32")
    np.testing.assert_allclose(in_batches(kind(num_classes=2), two, probability), reference(two, probability[:, 0] > 0.5), rtol=1e-5)


def test_nothing_seen_or_nothing_to_tell_apart_is_0_and_nonsense_is_nan():
    for name, (kind, arguments, true, prediction, _) in METRICS.items():
        metric = kind(**arguments)
        assert float(metric.result()) == 0
        metric.update_state(true[:0], prediction[:0])
        assert float(metric.result()) == 0
        metric.update_state(np.zeros_like(true), np.zeros_like(prediction))
        assert float(metric.result()) == 0
        metric.update_state(true[:1], np.full_like(prediction[:1], np.nan if true.dtype.kind == "f" else 4))
        assert np.isnan(float(metric.result())), name
        metric.reset_state()
        metric.update_state(true, true)
        np.testing.assert_allclose(metric.result(), 1, rtol=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_come_back_from_their_config_and_from_checkpoints(name, tmp_path):
    kind, arguments, true, prediction, reference = METRICS[name]
    metric = kind(**arguments, name="m")
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert type(again) is kind and again.get_config() == metric.get_config()
    assert {*arguments} <= {*metric.get_config()}
    metric.update_state(true[:100], prediction[:100])
    path = tf.train.Checkpoint(v=metric.variables).write(str(tmp_path / "m"))
    tf.train.Checkpoint(v=again.variables).read(path).assert_consumed()
    again.update_state(true[100:], prediction[100:])
    assert again.result().dtype == tf.float32
    np.testing.assert_allclose(again.result(), reference(true, prediction), rtol=1e-5)


@pytest.mark.parametrize("name", ["quadratic kappa", "matthews", "spearman", "kendall"])
def test_graphs_of_unknown_size_and_xla_count_the_same(name):
    kind, arguments, true, prediction, reference = METRICS[name]
    for options in (
        {"input_signature": [tf.TensorSpec([None], true.dtype), tf.TensorSpec([None], prediction.dtype)]},
        {"jit_compile": True},
    ):
        metric = kind(**arguments)

        def step(true, prediction, metric=metric):
            metric.update_state(true, prediction)
            return metric.result()

        compiled = tf.function(step, autograph=False, **options)
        for i in (0, 100):
            value = compiled(tf.constant(true[i : i + 100]), tf.constant(prediction[i : i + 100]))
        np.testing.assert_allclose(value, reference(true[:200], prediction[:200]), rtol=1e-5)


@pytest.mark.parametrize("name", ["kappa", "matthews", "spearman", "kendall"])
def test_replicas_count_together(name, two_replicas):
    kind, arguments, true, prediction, reference = METRICS[name]
    with two_replicas.scope():
        metric = kind(**arguments)

    @tf.function(autograph=False)
    def run(true, prediction):
        two_replicas.run(metric.update_state, args=(true, prediction))

    def split(values):
        parts = values[:120], values[120:]
        return two_replicas.experimental_distribute_values_from_function(lambda c: tf.constant(parts[c.replica_id_in_sync_group]))

    run(split(true), split(prediction))
    np.testing.assert_allclose(metric.result(), reference(true, prediction), rtol=1e-5)


def test_fit_evaluate_and_loops_report_the_same_value_of_the_whole_epoch():
    x, histories = RANDOM.standard_normal((SIZE, 3)).astype("float32"), []
    for train in (keras.Model.fit, graph_fit):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input([3]), keras.layers.Dense(4)])
        metrics = [CohenKappa(num_classes=4, name="kappa")]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, metrics=metrics, jit_compile=False)
        kwargs = {"batch_size": 64, "epochs": 2, "verbose": 0, "validation_data": (x, CLASSES)}
        histories.append(train(model, x, CLASSES, **kwargs).history)
        logits = model(x).numpy()
        np.testing.assert_allclose(histories[-1]["val_kappa"][-1], cohen_kappa_score(CLASSES, logits.argmax(1)), rtol=1e-5)
    for name in ("kappa", "val_kappa"):
        np.testing.assert_allclose(histories[1][name], histories[0][name], rtol=1e-5)


def test_counting_does_not_stop_at_the_limits_of_float32():
    metric = CohenKappa(num_classes=2)
    metric.table.assign([[2.0**25, 0.0], [0.0, 2.0**25]])
    metric.update_state([0], [1])
    assert metric.table.numpy()[0, 1] == 1 and metric.table.numpy().sum() == 2**26 + 1
    metric.update_state([0], [0])
    assert metric.table.numpy()[0, 0] == 2**25 + 1


@pytest.mark.parametrize(
    "kind, arguments, named",
    [
        (CohenKappa, {"num_classes": 1}, "num_classes"),
        (CohenKappa, {"num_classes": 3, "weighting": "cubic"}, "weighting"),
        (MatthewsCorrelation, {"num_classes": 0}, "num_classes"),
        (SpearmanCorrelation, {"true_cutpoints": [], "pred_cutpoints": [0]}, "true_cutpoints"),
        (KendallTau, {"true_cutpoints": [0], "pred_cutpoints": [0, 1, 1]}, "pred_cutpoints"),
        (KendallTau, {"true_cutpoints": [float("nan"), 1], "pred_cutpoints": [0]}, "true_cutpoints"),
    ],
)
def test_wrong_arguments_are_refused(kind, arguments, named):
    with pytest.raises(ValueError, match=f"`{named}` must be"):
        kind(**arguments)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`sample_weight` has shape"):
        CohenKappa(num_classes=2).update_state([0, 1], [0, 1], [[1.0, 2.0], [1.0, 2.0]])
