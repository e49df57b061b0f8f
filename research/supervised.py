"""What studies of inputs and targets share: their data by config, the optimizer, and the `Study` that is made of both.

It knows no model: each study has its own in `research/studies/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import loops
from research.data import datasets
from research.study import InputError, Study, from_config, in_scope

__all__ = ["Parts", "classifier", "load_classes", "load_targets", "make_optimizer", "supervised_study"]


class Parts(NamedTuple):
    """Data in three parts, each what a `loops.ArrayFeed` takes: `(x, y)`, where `x` may have any structure.

    Attributes:
        train, test: to train on, and to test on at the end.
        val: evaluated after every epoch; None: nothing is.
    """

    train: Any
    val: Any
    test: Any


def load_classes(config: Any, data_dir: str | os.PathLike[str] | None) -> datasets.Dataset:
    """The data set with classes that `config.dataset` names, its inputs rescaled as `config.normalize` says.

    Raises:
        InputError: if it has no classes, or cannot be had.
    """
    data = datasets.load(config.dataset, normalization=config.normalize, data_dir=data_dir)
    if not data.class_names:
        raise InputError(f"{config.dataset} has no classes: it is for regression; choose another config.dataset.")
    return data


def load_targets(config: Any, data_dir: str | os.PathLike[str] | None) -> tuple[datasets.Dataset, float, float]:
    """The data set for regression that `config.dataset` names, and mean and standard deviation of its training targets.

    Raises:
        InputError: if it has classes, or cannot be had.
    """
    data = datasets.load(config.dataset, normalization=config.normalize, data_dir=data_dir)
    if data.class_names:
        raise InputError(f"{config.dataset} has classes: it is for classification; choose another config.dataset.")
    return data, float(data.train.y.mean(dtype=np.float64)), float(data.train.y.std(dtype=np.float64))


def make_optimizer(config: Any) -> keras.optimizers.Optimizer:
    """The optimizer that `config.name` names, with `config`'s other fields as its arguments.

    Raises:
        InputError: if Keras has no such optimizer, or it takes no such argument.

    Example:
        >>> type(make_optimizer({"name": "sgd", "learning_rate": 0.01})).__name__
        'SGD'
    """
    arguments = dict(config)
    name = arguments.pop("name")
    try:
        return keras.optimizers.get({"class_name": name, "config": arguments})
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"Keras makes no optimizer {name!r} with {arguments}: {reason}.") from error


def classifier(model: keras.Model, optimizer: Any) -> loops.SupervisedTask:
    """The task of a model that gives class probabilities: cross-entropy and accuracy; `optimizer` is what `make_optimizer` takes."""
    made = make_optimizer(optimizer)
    return loops.SupervisedTask(model, loss="sparse_categorical_crossentropy", optimizer=made, metrics=["accuracy"])


def supervised_study(
    data: Parts | datasets.Dataset,
    make_task: Callable[[], Any],
    *,
    config: Any,
    seed: int,
    strategy: tf.distribute.Strategy | None,
    evaluation_batch: int | None = None,
    drop_remainder: bool = False,
    **about: Any,
) -> Study:
    """Makes the task in the strategy's scope, then the feeds: training data in an order of its own in every pass, the rest as it stands.

    Args:
        data: the three parts.
        make_task: makes model, optimizer and task; the task has the model as its attribute `model`.
        config: its field `batch_size` is that of the feeds.
        seed: decides the order of the training data.
        strategy: see `research.study.build`.
        evaluation_batch: batch size of validation and test, None: `config.batch_size`.
        drop_remainder: whether a last training batch that is smaller is left out.
        **about: the other fields of the `Study`: `title`, `description`, and those that differ from their defaults.

    Raises:
        InputError: for what Keras or a feed refuses.

    Example:
        >>> from ml_collections import config_dict
        >>> config = config_dict.ConfigDict({"batch_size": 32, "optimizer": {"name": "sgd"}})
        >>> model = keras.Sequential([keras.Input([13]), keras.layers.Dense(3, activation="softmax")])
        >>> about = {"title": "wine", "description": "Three growers, a linear model."}
        >>> made = supervised_study(
        ...     datasets.load("wine"), lambda: classifier(model, config.optimizer), config=config, seed=0, strategy=None, **about
        ... )
        >>> made.train.steps_per_epoch, list(made.evaluate), made.monitor
        (4, ['val'], 'val_loss')
    """
    batch = config.batch_size if evaluation_batch is None else evaluation_batch
    with from_config():
        with in_scope(strategy):
            task = make_task()
        train = loops.ArrayFeed(data.train, batch_size=config.batch_size, shuffle=True, seed=seed, drop_remainder=drop_remainder)
        evaluate = {"val": loops.ArrayFeed(data.val, batch_size=batch)} if data.val is not None else {}
        test = loops.ArrayFeed(data.test, batch_size=batch)
    return Study(task=task, model=task.model, train=train, evaluate=evaluate, test=test, **about)
