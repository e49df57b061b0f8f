"""A regressor with a field in its config for whatever is worth a search: what `scripts/search.py` tries points of.

Config: `research/configs/search_optuna.py`, which has the space.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

import loops
from research.study import InputError, Study
from research.supervised import load_targets, make_optimizer, supervised_study

__all__ = ["build", "make_model"]

#: Standard deviations from the mean at which an input is cut off. California has blocks of 1,200 people per household, 116 deviations out;
#: one such example in the validation set would decide which point is best.
_CUT = 5.0


def make_model(
    features: int, *, width: int, depth: int, dropout: float = 0.0, activation: str = "relu", mean: float = 0.0, deviation: float = 1.0
) -> keras.Model:
    """A perceptron whose hidden layers are all alike, with one output, `mean + deviation * (what its layers compute)`.

    Args:
        features: columns of the table, standardized.
        width: units of each hidden layer.
        depth: hidden layers.
        dropout: rate behind each of them.
        activation: their activation.
        mean, deviation: mean and standard deviation of the training targets.

    Returns:
        A model that maps float32 `[B, features]` to predictions `[B, 1]`.

    Example:
        >>> make_model(8, width=30, depth=2).count_params()
        1231
    """
    inputs = keras.Input([features])
    x = keras.ops.clip(inputs, -_CUT, _CUT)
    for _ in range(depth):
        x = keras.layers.Dense(width, activation=activation)(x)
        if dropout:
            x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Rescaling(deviation, offset=mean)(keras.layers.Dense(1)(x)), name="regressor")


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set or optimizer that does not exist, or sizes that fit no model or batch.
    """
    if config.depth < 1:
        raise InputError(f"config.depth is {config.depth}: the net has one hidden layer or more.")
    data, mean, deviation = load_targets(config, data_dir)

    def task() -> loops.Task:
        sizes = {name: config[name] for name in ("width", "depth", "dropout", "activation")}
        model = make_model(data.train.x.shape[1], **sizes, mean=mean, deviation=deviation)
        metrics = [keras.metrics.RootMeanSquaredError(name="rmse")]
        return loops.SupervisedTask(model, loss="mse", optimizer=make_optimizer(config.optimizer), metrics=metrics)

    return supervised_study(
        data,
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        evaluation_batch=512,  # the same for all points
        title=f"{config.dataset}, {config.depth} x {config.width}, {config.optimizer.name} {config.optimizer.learning_rate:g}",
        description=f"{data.description} Inputs: {config.normalize}.",
        monitor="val_rmse",
        preprocessing=data.scaling,
    )
