"""scikit-learn's search finds what a plain loop over its points finds, is kept in the workdir, and ends beside the default."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.model_selection import KFold, cross_val_score

from research import runner, study
from research.configs import search_sklearn as config_file
from research.data import datasets
from research.studies import search_sklearn
from research.study import InputError


def config(**changes):
    made = config_file.get_config()
    made.update({"datasets": ("diabetes",), "points": 2, "folds": 2, "epochs": 3, "batch_size": 64, "hidden": (), **changes})
    return made


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    small = config()
    return runner.train(study.build(small), small, workdir=folder, compile="graph"), folder


def test_its_scores_are_those_of_cross_validation_at_its_points(searched):
    known = json.loads((searched[1] / "diabetes" / "search.json").read_text())
    assert len(known["scores"]) == 2 and known["best"]["score"] == max(known["scores"])
    data = datasets.load("diabetes", normalization="zscore")
    x, y = (np.concatenate(pair) for pair in zip(data.train, data.val, strict=True))
    estimator = search_sklearn.make_estimator(config(), classes=False, seed=0)
    folds = KFold(2, shuffle=True, random_state=0)
    assert cross_val_score(estimator, x, y, cv=folds).mean() == pytest.approx(known["default"]["score"])
    estimator.set_params(**known["points"][1])
    assert cross_val_score(estimator, x, y, cv=folds).mean() == pytest.approx(known["scores"][1])


def test_given_again_it_only_repeats_its_summary(searched, monkeypatch, capsys):
    runs, folder = searched
    monkeypatch.setattr(search_sklearn, "_search", None)
    small = config()
    again = runner.train(study.build(small), small, workdir=folder, compile="graph")
    said = capsys.readouterr().out
    assert "diabetes, default" in said and "diabetes, best" in said and "The best points:" in said
    assert again["diabetes"].test == runs["diabetes"].test and (folder / "diabetes" / "plots" / "search.png").is_file()


def test_a_classifier_is_searched_by_its_accuracy(monkeypatch):
    monkeypatch.setattr(search_sklearn, "_HELD_OUT", 0.2)
    estimator = search_sklearn.make_estimator(config(epochs=5, rate=0.01, hidden=(20,)), classes=True, seed=0)
    data = datasets.load("digits", normalization="zscore")
    estimator.fit(*data.train)
    assert data.train.x.ndim == 3 and estimator.score(*data.test) > 0.85 and len(estimator.history_["val_accuracy"]) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points": 0}, "config.points is 0"),
        ({"folds": 1}, "config.folds is 1"),
        ({"search": {"rates": (0.1, 0.01)}}, "config.search needs rates"),
        ({"search": {"batch_sizes": ()}}, "one or more of hidden and of batch_sizes"),
    ],
)
def test_what_is_no_search_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
