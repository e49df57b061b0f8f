"""The regression study: a perceptron on a table, in the unit of its targets, ahead of a straight line."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import linear_model, metrics

import loops
from research import runner, study
from research.configs import regression as config_file
from research.data import datasets
from research.studies import regression
from research.study import InputError


def config(**changes):
    made = config_file.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


@pytest.fixture
def curved(monkeypatch):
    """A data set in place of California housing: a bent surface, in a unit of its own, with little noise."""
    rng = np.random.RandomState(0)
    x = rng.uniform(-2, 2, (1_200, 3)).astype(np.float32)
    y = (50 + 20 * np.abs(x[:, 0]) + 10 * x[:, 1] + rng.normal(0, 0.5, len(x))).astype(np.float32)
    parts = [datasets.Split(x[rows], y[rows]) for rows in (slice(0, 800), slice(800, 1_000), slice(1_000, None))]
    data = datasets.Dataset("curved", *parts, class_names=(), description="Curved.", unit="$1")
    monkeypatch.setitem(datasets._LOADERS, "curved", lambda _: data)
    return data


def test_the_model_speaks_in_the_unit_of_the_targets():
    model = regression.make_model(3, hidden=(4,), mean=100.0, deviation=20.0)
    hidden, output, _ = model.layers
    x = np.random.RandomState(0).normal(size=(5, 3)).astype(np.float32)
    inner = np.maximum(x @ hidden.kernel.numpy() + hidden.bias.numpy(), 0) @ output.kernel.numpy() + output.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), 100 + 20 * inner, rtol=1e-6)


def test_the_straight_line_is_that_of_scikit_learn():
    data = datasets.load("diabetes", normalization="zscore")
    line = linear_model.LinearRegression().fit(data.train.x, data.train.y)
    np.testing.assert_allclose(regression.least_squares(data), line.predict(data.test.x), rtol=1e-4)


def test_it_is_ahead_of_a_straight_line_where_there_is_something_to_learn_and_says_so(curved, tmp_path, capsys):
    settings = config(dataset="curved", epochs=12, optimizer__learning_rate=0.01, hidden=(20, 10))
    run = runner.train(study.build(settings), settings, workdir=tmp_path / "run")
    printed = capsys.readouterr().out
    y, x = curved.test.y, curved.test.x
    predicted = loops.predict(run.study.model, datasets.normalize(curved, "zscore").test.x)
    error = float(np.sqrt(metrics.mean_squared_error(y, predicted[:, 0])))
    line = float(np.sqrt(metrics.mean_squared_error(y, linear_model.LinearRegression().fit(*curved.train).predict(x))))
    assert run.test["rmse"] == pytest.approx(error, rel=1e-4)
    assert error < 2 < line
    assert f"in units of $1: {error:.4f}." in printed and f"fits best has {line:.4f}" in printed
    assert (tmp_path / "run" / "plots" / "predictions.png").is_file()


def test_classes_are_refused():
    with pytest.raises(InputError, match="digits has classes"):
        study.build(config(dataset="digits"))
