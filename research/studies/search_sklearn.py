"""The study of scikit-learn's search: its `RandomizedSearchCV` over `loops.estimators`, a regressor and a classifier.

Config: `research/configs/search_sklearn.py`.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.stats import loguniform
from sklearn import model_selection

import loops
from loops import files
from loops.estimators import LoopsClassifier, LoopsRegressor
from research.data import datasets
from research.pictures import plots
from research.report import metrics_table
from research.studies import classification, regression
from research.study import Comparison, InputError, Run, Runs, Study
from research.supervised import Parts, supervised_study

__all__ = ["build", "make_classifier", "make_estimator", "make_regressor"]

_FILE = "search.json"
_HELD_OUT = 0.1  # of the rows of a fit, for early stopping


def make_regressor(X: Any, y: np.ndarray, hidden: Sequence[int], rate: float) -> keras.Model:
    """A compiled perceptron for rows `[N, features]` and targets `[N, 1]`, which begins near the targets."""
    model = regression.make_model(X.shape[1], hidden=hidden, mean=float(y.mean()), deviation=float(y.std()))
    model.compile(keras.optimizers.Adam(rate), "mse", metrics=[keras.metrics.RootMeanSquaredError(name="rmse")], jit_compile=False)
    return model


def make_classifier(X: Any, y: np.ndarray, hidden: Sequence[int], rate: float) -> keras.Model:
    """A compiled perceptron for rows `[N, ...]` and one-hot labels `[N, classes]`."""
    model = classification.make_model(X.shape[1:], y.shape[1], hidden=hidden)
    model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return model


def make_estimator(config: Any, *, classes: bool, seed: int) -> LoopsClassifier | LoopsRegressor:
    """The default point of a config as an estimator, not fitted.

    Args:
        config: a config of this study.
        classes: whether it is to classify.
        seed: its `random_state`.
    """
    kind, make = (LoopsClassifier, make_classifier) if classes else (LoopsRegressor, make_regressor)
    return kind(
        make,
        model_kwargs={"hidden": tuple(config.hidden), "rate": config.rate},
        epochs=config.epochs,
        batch_size=config.batch_size,
        validation_fraction=_HELD_OUT,
        n_iter_no_change=config.patience,
        compile="graph",
        random_state=seed,
    )


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the study: a part for each data set; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set that does not exist, or numbers that make no search.
    """
    for name, least in (("points", 1), ("folds", 2), ("jobs", 1), ("patience", 1)):
        if config[name] < least:
            raise InputError(f"config.{name} is {config[name]}; it has to be {least} or more.")
    low, high = config.search.rates
    if not (0 < low < high and config.search.hidden and config.search.batch_sizes):
        raise InputError("config.search needs rates (from, to) above 0, and one or more of hidden and of batch_sizes.")
    found: dict[str, Mapping[str, Any]] = {}
    part = functools.partial(_study, config=config, data_dir=data_dir, seed=seed, strategy=strategy, found=found)
    return Comparison(
        parts={name: functools.partial(part, name=name) for name in config.datasets},
        conclude=lambda runs: _conclude(runs, found),
        description=f"RandomizedSearchCV: {config.points} points, {config.folds} folds, on {', '.join(config.datasets)}.",
    )


def _study(
    _: Mapping[str, Run],
    *,
    name: str,
    config: Any,
    data_dir: str | os.PathLike[str] | None,
    seed: int,
    strategy: tf.distribute.Strategy | None,
    found: dict[str, Mapping[str, Any]],
) -> Study:
    """The default point as an ordinary run, which the search follows."""
    data = datasets.load(name, normalization=config.normalize, data_dir=data_dir)
    classes = len(data.class_names)

    def task() -> loops.Task:
        y = np.eye(classes, dtype="float32") if classes else data.train.y
        make = make_classifier if classes else make_regressor
        return loops.KerasTask(make(data.train.x, y, tuple(config.hidden), config.rate))

    parts = (data.train, data.val, data.test)
    encoded = [datasets.Split(p.x, np.eye(classes, dtype="float32")[p.y] if classes else p.y[:, None]) for p in parts]
    return supervised_study(
        data=Parts(*encoded),
        make_task=task,
        config=config,
        seed=seed,
        strategy=strategy,
        title=f"{name}, the default point",
        description=data.description,
        after=lambda run: _after(run, data, config, seed, found),
        preprocessing=data.scaling,
    )


def _after(run: Run, data: datasets.Dataset, config: Any, seed: int, found: dict[str, Mapping[str, Any]]) -> Sequence[str]:
    asked = {"config": json.loads(config.to_json_best_effort()), "seed": seed}
    file = None if run.workdir is None else run.workdir / _FILE
    known: Any = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}
    if known.get("asked") != asked:
        print(f"Searching: {config.points} points, {config.folds} fits each.", flush=True)
        known = {"asked": asked, **_search(data, config, seed)}
        if file is not None:
            files.write_text(file, json.dumps(known, indent=1))
    found[data.name] = known
    scores = np.array(known["scores"], float)
    best_so_far = np.fmax.accumulate(scores)
    curves = {"each point": scores, "the best so far": best_so_far, "the default": np.full(len(scores), known["default"]["score"])}
    run.picture("search", plots.lines(curves, x="point", y=known["measure"], title=f"{data.name}: random search"))
    return [f"Best of {len(scores)} points: {_written(known['best']['parameters'])}."]


def _search(data: datasets.Dataset, config: Any, seed: int) -> dict[str, Any]:
    """Searches on all rows that are not for the test."""
    x, y = (np.concatenate(pair) for pair in zip(data.train, data.val, strict=True))
    classes = bool(data.class_names)
    folds: Any = model_selection.StratifiedKFold if classes else model_selection.KFold
    how = {"cv": folds(config.folds, shuffle=True, random_state=seed), "n_jobs": config.jobs}
    default = make_estimator(config, classes=classes, seed=seed)
    space = {
        "model_kwargs__rate": loguniform(*config.search.rates),
        "model_kwargs__hidden": [tuple(units) for units in config.search.hidden],
        "batch_size": list(config.search.batch_sizes),
    }
    search = model_selection.RandomizedSearchCV(default, space, n_iter=config.points, random_state=seed, **how).fit(x, y)
    before = model_selection.cross_val_score(default, x, y, **how)
    return {
        "measure": "accuracy" if classes else "R2",
        "points": [_plain(point) for point in search.cv_results_["params"]],
        "scores": search.cv_results_["mean_test_score"].tolist(),
        "best": {
            "parameters": _plain(search.best_params_),
            "score": float(search.best_score_),
            "test": float(search.score(data.test.x, data.test.y)),
            "epochs": search.best_estimator_.n_iter_,
        },
        "default": {
            "score": float(before.mean()),
            "test": float(default.fit(x, y).score(data.test.x, data.test.y)),
            "epochs": default.n_iter_,
        },
    }


def _conclude(runs: Runs, found: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    rows = {
        f"{name}, {which}": {"cross-validation": of[which]["score"], "test": of[which]["test"], "epochs": of[which]["epochs"]}
        for name, of in found.items()
        for which in ("default", "best")
    }
    best = [f"{name} ({of['measure']}): {_written(of['best']['parameters'])}" for name, of in found.items()]
    return [metrics_table(rows), "", "The best points:", *best]


def _plain(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else np.asarray(value).item() for name, value in point.items()}


def _written(parameters: Mapping[str, Any]) -> str:
    named = {name.removeprefix("model_kwargs__"): value for name, value in sorted(parameters.items())}
    return ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in named.items())
