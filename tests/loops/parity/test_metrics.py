"""`loops.fit` gives the bits of `model.fit` for every metric that Keras knows by a string, and for metric objects with settings.

The names are read from Keras's own table, so that a new one fails here until it has data. What cannot be made from a string alone is
listed with the reason, and `model.fit` has to refuse it too.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers
from keras.src import metrics
from keras.src.utils.naming import to_snake_case

from tests.loops.parity.harness import assert_parity, keras_fit, loops_fit

ROWS = 44  # batches of 16, 16 and 12
RNG = np.random.default_rng(6)
X = RNG.normal(size=(ROWS, 6)).astype("float32")
SPARSE = RNG.integers(0, 3, size=(ROWS, 1))
BINARY = (SPARSE > 0).astype("float32")

KINDS = {  # kind of data -> (targets, loss, layer that makes fitting predictions)
    "binary": (BINARY, "mse", lambda: layers.Dense(1, activation="sigmoid")),
    "sign": (2 * BINARY - 1, "mse", lambda: layers.Dense(1, activation="tanh")),
    "one hot": (np.eye(3, dtype="float32")[SPARSE[:, 0]], "mse", lambda: layers.Dense(3, activation="softmax")),
    "class index": (SPARSE, "sparse_categorical_crossentropy", lambda: layers.Dense(3, activation="softmax")),
    "positive": (RNG.uniform(0.1, 2, size=(ROWS, 2)).astype("float32"), "mse", lambda: layers.Dense(2, activation="softplus")),
}
CHOSEN_BY_SHAPE = {"binary", "one hot", "class index"}  # where "accuracy" and "acc" mean something

METRICS = {
    "binary": [
        "auc",
        "binary_accuracy",
        "binary_crossentropy",
        "binary_io_u",
        "false_negatives",
        "false_positives",
        "precision",
        "recall",
        "true_negatives",
        "true_positives",
    ],
    "sign": ["accuracy", "hinge", "squared_hinge"],
    "one hot": [
        "categorical_accuracy",
        "categorical_crossentropy",
        "categorical_hinge",
        "f1_score",
        "f_beta_score",
        "kl_divergence",
        "top_k_categorical_accuracy",
    ],
    "class index": ["sparse_categorical_accuracy", "sparse_categorical_crossentropy", "sparse_top_k_categorical_accuracy"],
    "positive": [
        "concordance_correlation",
        "cosine_similarity",
        "log_cosh_error",
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "mean_squared_error",
        "mean_squared_logarithmic_error",
        "pearson_correlation",
        "poisson",
        "r2_score",
        "root_mean_squared_error",
    ],
}
NO_METRICS = {
    "Metric": "the base class",
    "Mean": "takes values, not targets and predictions",
    "Sum": "takes values, not targets and predictions",
    "MeanMetricWrapper": "needs a function",
    "PrecisionAtRecall": "needs a recall",
    "RecallAtPrecision": "needs a precision",
    "SensitivityAtSpecificity": "needs a specificity",
    "SpecificityAtSensitivity": "needs a sensitivity",
    "IoU": "needs a number of classes",
    "MeanIoU": "needs a number of classes",
    "OneHotIoU": "needs a number of classes",
    "OneHotMeanIoU": "needs a number of classes",
}
METRIC_OBJECTS = {
    "binary": lambda: [
        keras.metrics.PrecisionAtRecall(0.5),
        keras.metrics.RecallAtPrecision(0.5),
        keras.metrics.SensitivityAtSpecificity(0.5),
        keras.metrics.SpecificityAtSensitivity(0.5),
        keras.metrics.AUC(curve="PR", num_thresholds=7),
        keras.metrics.Precision(thresholds=[0.3, 0.7]),
        keras.metrics.Precision(),
    ],
    "one hot": lambda: [
        keras.metrics.OneHotIoU(3, target_class_ids=[0, 2]),
        keras.metrics.OneHotMeanIoU(3),
        keras.metrics.F1Score(average="macro"),
        keras.metrics.MeanMetricWrapper(keras.losses.categorical_crossentropy, name="wrapped"),
        keras.losses.kl_divergence,
    ],
    "class index": lambda: [
        keras.metrics.MeanIoU(3, sparse_y_pred=False),
        keras.metrics.IoU(3, target_class_ids=[1], sparse_y_pred=False),
        keras.metrics.SparseTopKCategoricalAccuracy(2),
    ],
}


def compiled(kind: str, metrics: list, **options) -> keras.Model:
    _, loss, head = KINDS[kind]
    model = keras.Sequential([keras.Input((6,)), head()])
    model.compile("sgd", loss, metrics=metrics, **options)
    return model


def metrics_parity(kind: str, make_metrics) -> set[str]:
    """Asserts parity with these metrics, and with one that is weighted; returns the history's keys."""
    data = {"x": X, "y": KINDS[kind][0], "batch_size": 16, "epochs": 2, "sample_weight": np.linspace(0.1, 2, ROWS)}
    return set(assert_parity(lambda: compiled(kind, make_metrics(), weighted_metrics=["mae"]), data)[0].history)


def names_of(kind: str) -> list[str]:
    """Class names, snake-case names and aliases of the metrics of a kind."""
    return sorted(name for name, metric in metrics.ALL_OBJECTS_DICT.items() if to_snake_case(metric.__name__) in METRICS[kind])


@pytest.mark.parametrize("kind", METRICS)
def test_metrics(kind):
    """Every metric under one of its names, and the name that Keras chooses a metric for by the shapes."""
    names = [*METRICS[kind], *["accuracy"] * (kind in CHOSEN_BY_SHAPE)]
    assert set(names) < metrics_parity(kind, lambda: names)


@pytest.mark.matrix
@pytest.mark.parametrize("kind", METRICS)
def test_metrics_under_all_their_names(kind):
    names = names_of(kind) + ["accuracy", "acc"] * (kind in CHOSEN_BY_SHAPE)
    assert set(names) < metrics_parity(kind, lambda: names)


@pytest.mark.parametrize("kind", METRIC_OBJECTS)
def test_metric_objects(kind):
    metrics_parity(kind, METRIC_OBJECTS[kind])


@pytest.mark.parametrize("kind", METRIC_OBJECTS)
def test_metrics_of_a_validation(kind):
    assert_parity(lambda: compiled(kind, METRIC_OBJECTS[kind]()), {"x": X, "y": KINDS[kind][0], "epochs": 2}, validation_split=0.3)


@pytest.mark.parametrize("name", NO_METRICS)
def test_what_keras_makes_no_metric_of(name):
    for fit in (keras_fit, loops_fit):
        with pytest.raises((ValueError, TypeError, NotImplementedError)):
            fit(compiled("positive", [name]), x=X, y=KINDS["positive"][0])


def test_every_metric_name_is_covered():
    left_out = {name for name, metric in metrics.ALL_OBJECTS_DICT.items() if metric.__name__ in NO_METRICS}
    assert all(set(METRICS[kind]) <= set(names_of(kind)) for kind in METRICS)
    assert {name for kind in METRICS for name in names_of(kind)} | left_out == set(metrics.ALL_OBJECTS_DICT)
