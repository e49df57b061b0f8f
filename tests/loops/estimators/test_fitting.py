"""`fit` trains as `model.fit` does, from the seed, and goes on where it should; all kinds of data mean the same."""

import random

import keras
import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning

from loops import hooks
from loops.engine.step import GlobalStep
from loops.estimators import LoopsClassifier, LoopsRegressor
from loops.estimators.base import Rows
from tests.loops.estimators import models

GRAPH = {"compile": "graph", "random_state": 3, "batch_size": 25}


def weights_of(estimator):
    return [np.asarray(w) for w in estimator.model_.get_weights()]


def assert_same(a, b):
    for left, right in zip(weights_of(a), weights_of(b), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def fitted():
    return LoopsClassifier(models.perceptron, epochs=3, **GRAPH).fit(*models.flowers())


def test_weights_and_history_are_those_of_model_fit_from_the_same_seed():
    x, y = models.numbers()
    estimator = LoopsRegressor(models.regression, epochs=3, shuffle=False, **GRAPH).fit(x, y)
    keras.utils.set_random_seed(3)
    model = models.regression(x, y)
    history = model.fit(x, y.astype("float32"), batch_size=25, epochs=3, shuffle=False, verbose=0)
    for ours, theirs in zip(estimator.model_.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert estimator.history_ == history.history and estimator.n_iter_ == 3
    np.testing.assert_allclose(estimator.predict(x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    assert estimator.predict(x).dtype == np.float64


def test_a_fit_leaves_the_draws_of_python_and_numpy_as_they_were():
    x, y = models.flowers()
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1), np.random.seed(1)
    LoopsClassifier(models.perceptron, **GRAPH).fit(x, y)
    assert (random.random(), np.random.random()) == expected


def test_random_state_decides_everything(fitted):
    x, y = models.flowers()
    assert_same(fitted, LoopsClassifier(models.perceptron, epochs=3, **GRAPH).fit(x, y))
    other = LoopsClassifier(models.perceptron, epochs=3, **{**GRAPH, "random_state": np.random.RandomState(0)}).fit(x, y)
    again = LoopsClassifier(models.perceptron, epochs=3, **{**GRAPH, "random_state": np.random.RandomState(0)}).fit(x, y)
    assert_same(other, again)
    assert not np.array_equal(weights_of(other)[0], weights_of(fitted)[0])


def test_sparse_rows_are_those_rows(fitted):
    x, y = models.flowers()
    for kind in (sparse.csr_matrix, sparse.csc_array):
        estimator = LoopsClassifier(models.perceptron, epochs=3, **GRAPH).fit(kind(x), y)
        assert_same(fitted, estimator)
        np.testing.assert_array_equal(fitted.predict_proba(x), estimator.predict_proba(kind(x)))


def test_data_frames_are_those_rows_and_their_columns_have_names(fitted):
    pandas = pytest.importorskip("pandas")
    x, y = models.flowers()
    frame = pandas.DataFrame(x, columns=["a", "b", "c", "d"])
    estimator = LoopsClassifier(models.perceptron, epochs=3, **GRAPH).fit(frame, pandas.Series(y))
    assert_same(fitted, estimator)
    assert estimator.feature_names_in_.tolist() == ["a", "b", "c", "d"] and not hasattr(fitted, "feature_names_in_")
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.predict(frame[["b", "a", "c", "d"]])


def test_what_a_row_gets_does_not_depend_on_how_many_there_are():
    x = np.random.default_rng(0).normal(size=[150, 784]).astype("float32")  # narrow ones are multiplied by the same kernels anyway
    estimator = LoopsClassifier(models.perceptron, **GRAPH).fit(x, np.arange(150) % 3)
    whole = estimator.predict_proba(x)
    np.testing.assert_array_equal(whole[:1], estimator.predict_proba(x[:1]))
    np.testing.assert_array_equal(whole[37:91], estimator.predict_proba(x[37:91]))


def test_sample_weights_multiply_losses_and_rows_of_weight_0_are_not_there(fitted):
    x, y = models.flowers()
    weights = np.where(np.arange(150) < 100, 1.0, 0.0)
    estimator = LoopsClassifier(models.perceptron, epochs=2, **GRAPH).fit(x, y, sample_weight=weights)
    assert_same(estimator, LoopsClassifier(models.perceptron, epochs=2, **GRAPH).fit(x[:100], y[:100], sample_weight=np.ones(100)))
    weights = np.random.default_rng(0).uniform(0.5, 2, 150).astype("float32")
    estimator = LoopsClassifier(models.perceptron, shuffle=False, **GRAPH).fit(x, y, sample_weight=weights)
    keras.utils.set_random_seed(3)
    one_hot = (y[:, None] == np.unique(y)).astype("float32")
    model = models.perceptron(x, one_hot)
    model.fit(x, one_hot, sample_weight=weights, batch_size=25, shuffle=False, verbose=0)
    for ours, theirs in zip(estimator.model_.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_class_weights_are_by_label():
    x, y = models.flowers()
    factors = {"setosa": 2.0, "versicolor": 0.5, "virginica": 1.0}
    by_class = LoopsClassifier(models.perceptron, fit_kwargs={"class_weight": factors}, **GRAPH).fit(x, y)
    by_row = LoopsClassifier(models.perceptron, **GRAPH).fit(x, y, sample_weight=[factors[label] for label in y])
    assert_same(by_class, by_row)
    with pytest.raises(ValueError, match="names 'rose'"):
        by_class.fit(x, y, class_weight={"rose": 1.0})


@pytest.mark.parametrize(
    ("how", "share"),
    [
        ({"loss": ["sparse_categorical_crossentropy"], "outputs": 3}, True),
        ({"loss": keras.losses.CategoricalCrossentropy(from_logits=True), "last": None}, True),
        ({"loss": "binary_crossentropy", "last": "sigmoid"}, True),
        ({"loss": "categorical_hinge", "last": None}, False),
    ],
    ids=["indices", "logits", "sigmoids", "hinge"],
)
def test_labels_and_outputs_follow_from_the_model(how, share):
    x, y = models.flowers()
    estimator = LoopsClassifier(models.perceptron, model_kwargs={"rate": 0.05, **how}, epochs=8, **GRAPH).fit(x, y)
    assert estimator.score(x, y) > 0.85 and estimator.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    if not share:
        with pytest.raises(ValueError, match="no probabilities"):
            estimator.predict_proba(x)
        return
    probabilities = estimator.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(estimator.classes_[probabilities.argmax(1)], estimator.predict(x))


def deferred(X, y):
    model = keras.Sequential([keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.Adam(0.1), "binary_crossentropy", jit_compile=False)
    return model


def test_a_model_that_is_not_built_gets_targets_of_its_shape():
    x, y = models.flowers()
    x, y = x[y != "setosa"], y[y != "setosa"]
    estimator = LoopsClassifier(deferred, epochs=2, shuffle=False, **GRAPH).fit(x, y)
    keras.utils.set_random_seed(3)
    model = deferred(x, y)
    history = model.fit(x, (y == "virginica").astype("float32")[:, None], batch_size=25, epochs=2, shuffle=False, verbose=0)
    assert estimator.history_ == history.history


@pytest.mark.parametrize("last", ["sigmoid", None])
def test_one_unit_is_enough_for_two_classes(last):
    x, y = models.flowers()
    x, y = x[y != "setosa"], y[y != "setosa"]
    loss = keras.losses.BinaryCrossentropy(from_logits=last is None)
    how = {"rate": 0.1, "loss": loss, "last": last, "outputs": 1}
    estimator = LoopsClassifier(models.perceptron, model_kwargs=how, epochs=10, **GRAPH).fit(x, y)
    assert estimator.score(x, y) > 0.9
    np.testing.assert_array_equal(estimator.classes_[(estimator.predict_proba(x)[:, 1] > 0.5).astype(int)], estimator.predict(x))


def test_several_numbers_for_each_row_and_one():
    x, y = models.numbers()
    with pytest.warns(DataConversionWarning, match="column-vector"):
        column = LoopsRegressor(models.regression, **GRAPH).fit(x, y[:, :1])
    plain = LoopsRegressor(models.regression, **GRAPH).fit(x, y[:, 0])
    assert_same(column, plain)
    assert column.predict(x).shape == (120,) and LoopsRegressor(models.regression, **GRAPH).fit(x, y).predict(x[:7]).shape == (7, 2)


def test_a_warm_start_goes_on_and_a_cold_one_begins_again(fitted):
    x, y = models.flowers()
    warm = LoopsClassifier(models.perceptron, epochs=2, warm_start=True, **{**GRAPH, "batch_size": 150}).fit(x, y)
    warm.set_params(epochs=1).fit(x, y)
    once = LoopsClassifier(models.perceptron, epochs=3, **{**GRAPH, "batch_size": 150}).fit(x, y)  # one batch: no order
    for a, b in zip(weights_of(warm), weights_of(once), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert warm.n_iter_ == 3 and len(warm.history_["loss"]) == 3 and int(warm.model_.optimizer.iterations.numpy()) == 3
    assert_same(once, once.fit(x, y))
    assert once.n_iter_ == 3


def test_going_on_traces_nothing_again(monkeypatch):
    x, y = models.flowers()
    traced, trace = [], GlobalStep._trace
    monkeypatch.setattr(GlobalStep, "_trace", lambda self, spec: traced.append(self.method) or trace(self, spec))
    estimator = LoopsClassifier(models.perceptron, warm_start=True, **GRAPH)
    for _ in range(2):
        estimator.fit(x, y).predict(x)
        estimator.partial_fit(x[:50], y[:50]).predict(x[50:])
    assert traced == ["train_step", "predict_step"]


def test_partial_fit_is_an_epoch_of_what_it_gets():
    x, y = models.flowers()
    estimator = LoopsClassifier(models.perceptron, epochs=7, **GRAPH)
    for part in np.split(np.arange(150), 3):
        estimator.partial_fit(x[part], y[part], classes=np.unique(y))
    assert estimator.n_iter_ == 3 and int(estimator.model_.optimizer.iterations.numpy()) == 6
    with pytest.raises(ValueError, match="'rose'.*none of the classes"):
        estimator.partial_fit(x[:1], ["rose"])
    with pytest.raises(ValueError, match="are not those of the first call"):
        estimator.partial_fit(x, y, classes=["setosa", "rose"])
    with pytest.raises(TypeError, match="one epoch"):
        estimator.partial_fit(x, y, epochs=3)


def test_training_stops_early_on_rows_held_out_and_the_best_weights_stay():
    x, y = models.flowers()
    how = {"rate": 0.3, "units": 30}
    estimator = LoopsClassifier(models.perceptron, model_kwargs=how, epochs=200, validation_fraction=0.2, n_iter_no_change=3, **GRAPH)
    estimator.fit(x, y)
    losses = estimator.history_["val_loss"]
    assert estimator.n_iter_ == len(losses) < 200
    assert np.argmin(losses) == len(losses) - 1 - 3
    _, held_out = estimator._split(Rows(x, np.searchsorted(estimator.classes_, y), None), 0.2)
    assert len(held_out.x) == 30 and np.bincount(held_out.y).tolist() == [10, 10, 10]
    assert estimator.model_.evaluate(held_out.x, np.eye(3)[held_out.y], verbose=0) == pytest.approx(min(losses), rel=1e-5)
    watched = LoopsClassifier(models.perceptron, epochs=2, early_stopping=False, validation_fraction=0.2, **GRAPH).fit(x, y)
    assert len(watched.history_["val_loss"]) == 2


def test_validation_data_is_encoded_as_the_training_data():
    x, y = models.flowers()
    estimator = LoopsClassifier(models.perceptron, epochs=2, **GRAPH)
    estimator.fit(x[:100], y[:100], validation_data=(sparse.csr_array(x[100:]), y[100:]))
    one_hot = (y[100:, None] == estimator.classes_).astype("float32")
    assert estimator.history_["val_loss"][-1] == pytest.approx(estimator.model_.evaluate(x[100:], one_hot, verbose=0), rel=1e-5)


def test_a_given_model_stays_as_it_is():
    x, y = models.flowers()
    model = models.perceptron(x, np.zeros([1, 3]))
    before = model.get_weights()
    fresh = LoopsClassifier(model, **GRAPH).fit(x, y)
    own = LoopsClassifier(model, warm_start=True, fit_kwargs={"steps_per_epoch": 1}, **{**GRAPH, "batch_size": 1}).fit(x, y)
    for kept, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, now)
    assert np.abs(weights_of(own)[0] - before[0]).max() < 0.02  # one step of Adam from its own weights
    assert np.abs(weights_of(fresh)[0] - before[0]).max() > 0.1
    assert_same(fresh, clone(LoopsClassifier(model, **GRAPH)).fit(x, y))
    assert_same(own, clone(own).fit(x, y))


def test_hooks_are_copied_for_each_fit():
    x, y = models.flowers()
    seen = []
    stopping, telling = hooks.EarlyStopping("loss", patience=0), hooks.LambdaHook(on_epoch_end=lambda loop, logs: seen.append(1))
    LoopsClassifier(models.perceptron, epochs=2, hooks=[stopping, telling], **GRAPH).fit(x, y)
    assert stopping.best is None and seen == [1, 1]
