"""A task of one's own is fitted as an estimator: with labels, with numbers, and with nothing but x."""

import keras
import numpy as np
import pytest
from sklearn.base import is_classifier, is_regressor
from sklearn.model_selection import GridSearchCV, KFold

import loops
from loops.estimators import TaskEstimator
from tests.loops.estimators import models

GRAPH = {"compile": "graph", "random_state": 0}


@pytest.fixture(scope="module")
def classifier():
    made = TaskEstimator(models.Classification, "classifier", task_kwargs={"rate": 0.05}, epochs=5, validation_fraction=0.2, **GRAPH)
    return made.fit(*models.flowers())


def test_a_classifier(classifier):
    x, y = models.flowers()
    assert is_classifier(classifier) and classifier.score(x, y) > 0.85
    assert classifier.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    outputs = classifier.task_.predict_step(x)
    np.testing.assert_allclose(classifier.predict_proba(x), outputs, rtol=1e-5, atol=1e-7)
    assert set(classifier.history_) >= {"loss", "val_loss"}


def test_weights_come_with_the_batch():
    x, y = models.flowers()
    weights = np.random.default_rng(0).uniform(0.5, 2, 150).astype("float32")
    estimator = TaskEstimator(models.Classification, "classifier", shuffle=False, batch_size=50, **GRAPH).fit(x, y, sample_weight=weights)
    codes = np.searchsorted(estimator.classes_, y)
    keras.utils.set_random_seed(0)
    task = models.Classification(x, codes)
    loops.TrainLoop(task, loops.ArrayFeed((x, codes, weights), 50), compile="graph").run(epochs=1)
    for ours, theirs in zip(estimator.task_.model.get_weights(), task.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_regressor():
    x, y = models.numbers()
    estimator = TaskEstimator(models.Regression, "regressor", epochs=30, batch_size=30, **GRAPH).fit(x, y[:, 0])
    assert is_regressor(estimator) and estimator.score(x, y[:, 0]) > 0.95 and not hasattr(estimator, "predict_proba")
    assert estimator.predict(x).shape == (120,)


def test_learning_without_targets_is_searched_by_its_own_loss():
    x, _ = models.numbers()
    estimator = TaskEstimator(models.Autoencoder, epochs=40, batch_size=60, **GRAPH)
    search = GridSearchCV(estimator, {"task_kwargs__code": [1, 4]}, cv=KFold(2)).fit(x)
    assert search.best_params_ == {"task_kwargs__code": 4}
    best = search.best_estimator_
    assert best.score(x) == pytest.approx(-np.mean((best.predict(x) - x) ** 2), rel=1e-4)


def test_partial_fit_and_warm_start_go_on(classifier):
    x, y = models.flowers()
    estimator = TaskEstimator(models.Classification, "classifier", warm_start=True, epochs=2, **GRAPH)
    estimator.partial_fit(x, y, classes=np.unique(y))
    assert estimator.fit(x, y).n_iter_ == 3 and int(estimator.task_.optimizer.iterations.numpy()) == 15


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (TaskEstimator(lambda X, y: None, "classifier"), "`task` must be a loops.Task, got NoneType"),
        (TaskEstimator(3), "`task` is a function"),
        (TaskEstimator(models.Classification, "cluster"), "`kind` is"),
        (
            TaskEstimator(models.Classification, "classifier", fit_kwargs={"validation_split": 0.1}),
            "no argument of training 'validation_split'",
        ),
    ],
)
def test_what_cannot_be_is_refused(made, said):
    with pytest.raises((TypeError, ValueError), match=said):
        made.fit(*models.flowers())
