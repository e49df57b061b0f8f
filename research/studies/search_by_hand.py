"""A search by hand: one run for each learning rate, and the best of them by the validation set.

Config: `research/configs/search_by_hand.py`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ml_collections import config_dict

import loops
from research.pictures import plots
from research.report import metrics_table
from research.studies.regression import make_model
from research.study import Comparison, InputError, Run, Runs, Study
from research.supervised import load_targets, make_optimizer, supervised_study

__all__ = ["build"]


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the comparison: a run for each learning rate; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set, normalisation or optimizer that does not exist, sizes that fit no model or batch, or no learning rates.
    """
    rates = [float(rate) for rate in config.learning_rates]
    if not rates or len(set(rates)) < len(rates) or min(rates) <= 0:
        raise InputError(f"config.learning_rates has to be some positive numbers, each once; got {tuple(config.learning_rates)}.")
    data, mean, deviation = load_targets(config, data_dir)

    def study(rate: float) -> Study:
        def task() -> loops.Task:
            model = make_model(data.train.x.shape[1], hidden=config.hidden, activation=config.activation, mean=mean, deviation=deviation)
            optimizer = make_optimizer(config_dict.ConfigDict({**config.optimizer.to_dict(), "learning_rate": rate}))
            return loops.SupervisedTask(model, loss="mse", optimizer=optimizer, metrics=[keras.metrics.RootMeanSquaredError(name="rmse")])

        return supervised_study(
            data,
            task,
            config=config,
            seed=seed,
            strategy=strategy,
            title=f"{config.dataset}, {config.optimizer.name} {rate:g}",
            description=f"Learning rate {rate:g}.",
            preprocessing=data.scaling,
        )

    def part(rate: float) -> Any:
        return lambda before: study(rate)

    return Comparison(
        parts={_name(rate): part(rate) for rate in rates},
        conclude=lambda runs: _conclude(runs, dict(zip(map(_name, rates), rates, strict=True)), config),
        description=f"{data.description} One run for each of {len(rates)} learning rates.",
    )


def _name(rate: float) -> str:
    return f"rate_{rate:g}"


def _conclude(runs: Runs, rates: Mapping[str, float], config: Any) -> Sequence[str]:
    reached = {name: _best(run) for name, run in runs.items()}
    rows = {
        f"{rates[name]:g}": {"val_rmse": reached[name], "test_rmse": run.test["rmse"], "epochs": len(run.history.epoch)}
        for name, run in runs.items()
    }
    finite = {name: value for name, value in reached.items() if math.isfinite(value)}
    curves = {f"{rates[name]:g}": run.history.history["val_rmse"] for name, run in runs.items() if "val_rmse" in run.history.history}
    title = f"{config.dataset}, {config.optimizer.name}: learning rates"
    runs.picture(
        "curves", plots.lines({name: v for name, v in curves.items() if np.isfinite(v).any()}, y="val_rmse", title=title, log=True)
    )
    lines = [metrics_table(rows)]
    if not finite:
        return [*lines, "", "No learning rate trained: all are too large."]
    best = min(finite, key=lambda name: finite[name])
    lines += ["", f"Best by the validation set: {rates[best]:g}, RMSE {finite[best]:.4f}; on the test set {runs[best].test['rmse']:.4f}."]
    if len(rates) > 1 and rates[best] in (min(rates.values()), max(rates.values())):
        lines.append("It is the first or the last that was tried: the search should go on beyond it.")
    return lines


def _best(run: Run) -> float:
    """The validation RMSE of the epoch whose weights the model has; not a number if there is none."""
    return float(run.logs.get("val_rmse", math.nan))
