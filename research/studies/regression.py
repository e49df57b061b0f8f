"""The regression study: a multi-layer perceptron that predicts a number from a table, against a straight line and a constant.

Config: `research/configs/regression.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from research.data import datasets
from research.pictures import figures
from research.study import Run, Study
from research.supervised import load_targets, make_optimizer, supervised_study

__all__ = ["build", "least_squares", "make_model", "rmse"]


def make_model(
    features: int, *, hidden: Sequence[int] = (100, 50), activation: str = "relu", mean: float = 0.0, deviation: float = 1.0
) -> keras.Model:
    """A perceptron with one output, `mean + deviation * (what its layers compute)`, so that it begins near the targets in any unit.

    Args:
        features: columns of the table.
        hidden: units of each hidden layer.
        activation: activation of the hidden layers.
        mean, deviation: mean and standard deviation of the training targets.

    Returns:
        A model that maps float32 `[B, features]` to predictions `[B, 1]`.

    Example:
        >>> make_model(8, hidden=(30,)).count_params()
        301
    """
    layers = [keras.layers.Dense(units, activation=activation) for units in hidden]
    unit = keras.layers.Rescaling(deviation, offset=mean)
    return keras.Sequential([keras.Input([features]), *layers, keras.layers.Dense(1), unit], name="regressor")


def rmse(predicted: np.ndarray, y: np.ndarray) -> float:
    """Root of the mean squared error of predictions `[N]` or `[N, 1]` against targets `[N]`."""
    return float(np.sqrt(np.mean((np.ravel(predicted).astype(np.float64) - y) ** 2)))


def least_squares(data: datasets.Dataset) -> np.ndarray:
    """Predictions `[N]` for the test part by the straight line that fits the training part best."""

    def with_one(x: np.ndarray) -> np.ndarray:
        return np.column_stack([x.astype(np.float64), np.ones(len(x))])

    return with_one(data.test.x) @ np.linalg.lstsq(with_one(data.train.x), data.train.y.astype(np.float64), rcond=None)[0]


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set, normalisation or optimizer that does not exist, or sizes that fit no model or batch.
    """
    data, mean, deviation = load_targets(config, data_dir)

    def task() -> loops.Task:
        model = make_model(data.train.x.shape[1], hidden=config.hidden, activation=config.activation, mean=mean, deviation=deviation)
        metrics = [keras.metrics.RootMeanSquaredError(name="rmse"), keras.metrics.MeanAbsoluteError(name="mae")]
        return loops.SupervisedTask(model, loss="mse", optimizer=make_optimizer(config.optimizer), metrics=metrics)

    return supervised_study(
        data,
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        title=f"{config.dataset}, {config.optimizer.name} {config.optimizer.learning_rate:g}",
        description=f"{data.description} Inputs: {config.normalize}.",
        after=lambda run: _conclude(run, data, mean, config.batch_size),
        preprocessing=data.scaling,
    )


def _conclude(run: Run, data: datasets.Dataset, mean: float, batch_size: int) -> Sequence[str]:
    y = data.test.y
    predicted = np.ravel(loops.PredictLoop(run.study.task, strategy=run.loop.strategy).run(loops.ArrayFeed(data.test.x, batch_size)))
    run.picture("predictions", figures.predictions(y, predicted, unit=data.unit, title=run.study.title))
    unit = f" in units of {data.unit}" if data.unit else ""
    return [
        f"Root mean squared error on the test set{unit}: {rmse(predicted, y):.4f}.",
        f"The straight line that fits best has {rmse(least_squares(data), y):.4f}, the mean of the training targets "
        f"{rmse(np.full(len(y), mean), y):.4f}.",
    ]
