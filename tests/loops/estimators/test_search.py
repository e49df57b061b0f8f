"""Searches, cross-validation and pipelines of scikit-learn take the estimators as their own."""

import joblib
import keras
import numpy as np
import pytest
import sklearn
from joblib.externals import loky
from sklearn.ensemble import VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingRandomSearchCV,
    KFold,
    ParameterSampler,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loops.estimators import LoopsClassifier
from tests.loops.estimators import models

FOLDS = KFold(2)
SPACE = {"model_kwargs__units": [4, 16], "model_kwargs__rate": [0.001, 0.01, 0.1], "epochs": [1, 4], "batch_size": [20, 50]}
SEARCH = {"param_distributions": SPACE, "n_iter": 3, "cv": FOLDS, "random_state": 1}


def estimator(**changes):
    return LoopsClassifier(models.perceptron, shuffle=False, compile="graph", random_state=5, **changes)


@pytest.fixture(scope="module")
def searched():
    return RandomizedSearchCV(estimator(), **SEARCH).fit(*models.flowers())


def test_a_search_finds_what_the_same_search_over_model_fit_finds(searched):
    x, y = models.flowers()
    classes = np.unique(y)
    scores = []
    for point in ParameterSampler(SPACE, 3, random_state=1):
        of_folds = []
        for train, test in FOLDS.split(x):
            one_hot = (y[train][:, None] == classes).astype("float32")
            keras.utils.set_random_seed(5)
            model = models.perceptron(x[train], one_hot, point["model_kwargs__units"], point["model_kwargs__rate"])
            model.fit(x[train], one_hot, batch_size=point["batch_size"], epochs=point["epochs"], shuffle=False, verbose=0)
            of_folds.append(accuracy_score(y[test], classes[model.predict(x[test], verbose=0).argmax(1)]))
        scores.append(of_folds)
    ours = np.stack([searched.cv_results_[f"split{i}_test_score"] for i in range(2)], axis=1)
    np.testing.assert_array_equal(ours, scores)
    best = int(np.argmax(np.mean(scores, axis=1)))
    assert searched.best_params_ == list(ParameterSampler(SPACE, 3, random_state=1))[best]
    assert len(set(np.mean(scores, axis=1))) == 3 and searched.best_estimator_.n_iter_ == searched.best_params_["epochs"]


@pytest.mark.matrix  # two processes start TensorFlow
def test_two_processes_find_the_same(searched):
    both = RandomizedSearchCV(estimator(), **SEARCH, n_jobs=2, refit=False).fit(*models.flowers())
    for i in range(2):
        np.testing.assert_array_equal(both.cv_results_[f"split{i}_test_score"], searched.cv_results_[f"split{i}_test_score"])
    x, y = models.flowers()
    results = cross_validate(estimator(batch_size=50), x, y, cv=FOLDS, n_jobs=2, return_estimator=True)
    for fitted, score, (_, test) in zip(results["estimator"], results["test_score"], FOLDS.split(x), strict=True):
        assert fitted.score(x[test], y[test]) == score
    loky.get_reusable_executor().shutdown()  # idle, they would keep TensorFlow in memory for minutes


def test_two_threads_find_the_same(searched):
    with joblib.parallel_config("threading"):
        both = RandomizedSearchCV(estimator(), **SEARCH, n_jobs=2, refit=False).fit(*models.flowers())
    np.testing.assert_array_equal(both.cv_results_["mean_test_score"], searched.cv_results_["mean_test_score"])


def test_halving_raises_the_number_of_epochs():
    space = {"model_kwargs__rate": [0.0001, 0.1]}
    search = HalvingRandomSearchCV(
        estimator(batch_size=50),
        space,
        n_candidates=2,
        resource="epochs",
        min_resources=2,
        max_resources=4,
        factor=2,
        cv=FOLDS,
        random_state=0,
    ).fit(*models.flowers())
    assert search.best_params_ == {"epochs": 4, "model_kwargs__rate": 0.1} and search.n_resources_ == [2, 4]


def test_a_pipeline_passes_parameters_weights_and_columns_on():
    x, y = models.flowers()
    pipe = make_pipeline(StandardScaler(), estimator(batch_size=50, epochs=2))
    pipe.set_params(loopsclassifier__model_kwargs__rate=0.1)
    pipe.fit(x * 100, y, loopsclassifier__sample_weight=np.ones(150))
    alone = estimator(batch_size=50, epochs=2, model_kwargs={"rate": 0.1}).fit(StandardScaler().fit_transform(x * 100), y)
    np.testing.assert_array_equal(pipe.predict_proba(x * 100), alone.predict_proba(StandardScaler().fit_transform(x * 100)))
    assert cross_val_score(pipe, x, y, cv=FOLDS, params={"loopsclassifier__sample_weight": np.ones(150)}).mean() > 0.6


def test_metadata_routing_knows_sample_weight():
    x, y = models.flowers()
    with sklearn.config_context(enable_metadata_routing=True):
        inner = estimator(batch_size=50).set_fit_request(sample_weight=True)
        voting = VotingClassifier([("a", inner)], voting="soft").fit(x, y, sample_weight=np.where(np.arange(150) < 75, 1.0, 0.0))
    part = estimator(batch_size=50).fit(x[:75], y[:75], sample_weight=np.ones(75))
    np.testing.assert_array_equal(voting.transform(x), part.predict_proba(x))


@pytest.mark.filterwarnings("ignore")
def test_a_point_that_diverges_has_no_score():
    space = {"model_kwargs__rate": [float("inf"), 0.01]}
    search = GridSearchCV(estimator(batch_size=75), space, cv=FOLDS).fit(*models.flowers())
    assert np.isnan(search.cv_results_["mean_test_score"][0]) and search.best_params_ == {"model_kwargs__rate": 0.01}
