"""What cannot be right is refused with a sentence, before it is trained on."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from loops.estimators import LoopsClassifier, LoopsRegressor, gpus
from tests.loops.estimators import models

GRAPH = {"compile": "graph", "random_state": 0}
X, Y = models.flowers()
NUMBERS = models.numbers()


def classifier(**how):
    return LoopsClassifier(models.perceptron, **{**GRAPH, **how})


def uncompiled(X, y):
    return keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Dense(3)])


def two_outputs(X, y):
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (classifier(model_kwargs={"outputs": 4}), "has 4 output units, but there are 3 classes"),
        (classifier(model_kwargs=[1]), "`model_kwargs` is a dict"),
        (classifier(fit_kwargs=3), "`fit_kwargs` is a dict"),
        (classifier(epochs=3, fit_kwargs={"epochs": 5}), "`epochs` is set twice"),
        (classifier(fit_kwargs={"seed": 5}), "Give random_state in the constructor, not 'seed'"),
        (classifier(fit_kwargs={"epoch": 5}), "no argument of training 'epoch'"),
        (classifier(early_stopping=3), "`early_stopping` is True, False or"),
        (classifier(validation_fraction=1.5), "`validation_fraction` is a share"),
        (classifier(validation_fraction=0.1, fit_kwargs={"validation_split": 0.1}), "Give either validation_fraction"),
        (classifier(compile="fast"), "`compile` must be one of"),
        (LoopsClassifier(uncompiled), "is not compiled"),
        (LoopsClassifier(two_outputs), "has several outputs"),
        (LoopsClassifier(lambda X, y: 3), "it returned a int"),
        (LoopsClassifier(3), "`model` is a compiled keras.Model, or a function"),
        (LoopsClassifier(models.perceptron(X, np.zeros([1, 3])), model_kwargs={"units": 3}), "are for a function that makes a model"),
    ],
)
def test_arguments(made, said):
    with pytest.raises((TypeError, ValueError), match=said):
        made.fit(X, Y)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.linspace(0, 1, 150), "continuous"),
        (np.ones(150), "one class"),
        (np.ones([150, 2], int) - np.eye(150, 2, dtype=int), "1d array"),
        (np.where(np.arange(150) == 3, np.nan, 1.0), "NaN"),
    ],
)
def test_labels(y, said):
    with pytest.raises(ValueError, match=said):
        classifier().fit(X, y)


def test_outputs_that_would_be_broadcast():
    x, y = NUMBERS
    with pytest.raises(ValueError, match="has 1 output units, but y has 2 numbers for each row"):
        LoopsRegressor(models.regression, model_kwargs={"outputs": 1}, **GRAPH).fit(x, y)


@pytest.mark.parametrize(
    ("weights", "said"), [(np.zeros(150), "zero"), (np.ones(3), "shape"), (-np.ones(150), "0 or more"), (np.full(150, np.nan), "finite")]
)
def test_weights(weights, said):
    with pytest.raises(ValueError, match=said):
        classifier().fit(X, Y, sample_weight=weights)


def test_numbers_that_float32_cannot_hold():
    with pytest.raises(ValueError, match="infinity"):
        classifier().fit(X.astype("float64") * 1e300, Y)
    with pytest.raises(ValueError, match="whole numbers above 16,777,216"):
        classifier().fit((X * 1e7).astype("int64"), Y)
    with pytest.raises(ValueError, match="cannot hold"):
        LoopsRegressor(models.regression, **GRAPH).fit(NUMBERS[0], NUMBERS[1] * 1e300)


def test_a_diverged_model_does_not_predict():
    estimator = classifier(model_kwargs={"rate": float("inf")}).fit(X, Y)
    with pytest.raises(ValueError, match="training has diverged"):
        estimator.predict(X)


def test_names_in_a_search_are_those_of_the_function_and_of_loops_fit():
    with pytest.raises(ValueError, match="no parameter model_kwargs__unit; entries of model_kwargs: last, loss, .*, units"):
        classifier().set_params(model_kwargs__unit=3)
    with pytest.raises(ValueError, match="no parameter fit_kwargs__epoch"):
        classifier().set_params(fit_kwargs__epoch=3)
    given = {"units": 3}
    made = classifier(model_kwargs=given).set_params(model_kwargs__rate=0.1)
    assert given == {"units": 3} and made.get_params()["model_kwargs__rate"] == 0.1


def test_workers_on_one_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["gpu"])
    monkeypatch.setattr(tf.config.experimental, "get_memory_growth", lambda gpu: False)
    gpus.refuse_shared_gpus()
    monkeypatch.setattr(gpus, "_in_worker", lambda: True)
    with pytest.raises(RuntimeError, match="n_jobs"):
        gpus.refuse_shared_gpus()
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    gpus.refuse_shared_gpus()


def test_loops_needs_no_scikit_learn_and_its_estimators_say_that_they_do():
    program = (
        "import sys\n"
        "sys.modules['sklearn'] = None\n"  # Keras imports it where it is there
        "import loops\n"
        "assert 'loops.estimators' not in sys.modules\n"
        "try:\n    import loops.estimators\n"
        "except ImportError as error:\n    print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert 'loops.estimators needs scikit-learn 1.6 or newer: pip install "tapeloops[research]".' in shown.stdout
