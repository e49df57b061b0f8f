"""Fitted estimators are copied and pickled with all that they have learnt, and Keras models in them are read in safe mode."""

import copy
import pickle

import keras
import numpy as np
import pytest
from sklearn.base import clone

from loops.estimators import LoopsClassifier, TaskEstimator
from tests.loops.estimators import models

GRAPH = {"compile": "graph", "epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def fitted():
    return LoopsClassifier(models.noisy, **GRAPH).fit(*models.flowers())


@pytest.fixture(scope="module")
def fitted_task():
    return TaskEstimator(models.Classification, "classifier", **GRAPH).fit(*models.flowers())


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("which", ["fitted", "fitted_task"])
def test_a_copy_predicts_and_goes_on_with_the_same_bits(copied, which, request):
    x, y = models.flowers()
    original = request.getfixturevalue(which)
    estimator, other = copied(original), copied(original)
    np.testing.assert_array_equal(original.predict_proba(x), estimator.predict_proba(x))
    other = copied(other)
    estimator.partial_fit(x[:60], y[:60])
    np.testing.assert_array_equal(estimator.predict_proba(x), other.partial_fit(x[:60], y[:60]).predict_proba(x))
    assert (estimator.n_iter_, estimator.history_) == (other.n_iter_, other.history_) and estimator.n_iter_ == 3


def test_a_clone_is_not_fitted_and_has_the_same_parameters(fitted):
    made = clone(fitted)
    assert made.get_params() == fitted.get_params() and not hasattr(made, "model_")


def test_code_in_a_pickled_model_is_not_run():
    model = keras.Sequential([keras.Input([4]), keras.layers.Lambda(lambda x: x), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy")
    with pytest.raises(ValueError, match="[Ll]ambda"):
        pickle.loads(pickle.dumps(LoopsClassifier(model)))


def test_a_compiled_model_as_parameter_is_pickled_too():
    x, y = models.flowers()
    model = models.perceptron(x, np.zeros([1, 3]))
    again = pickle.loads(pickle.dumps(LoopsClassifier(model)))
    for before, after in zip(model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_task_that_cannot_be_pickled_says_why(fitted_task):
    fitted_task.task_.generator = (i for i in range(3))
    try:
        with pytest.raises(TypeError, match="Classification cannot be pickled or copied: .*generator"):
            pickle.dumps(fitted_task)
    finally:
        del fitted_task.task_.generator
