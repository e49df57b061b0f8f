"""What a study hands to the programs in `scripts/`, so that they need to know no study by name.

A study is a module `research.NAME` with a function `build(config, *, data_dir, seed, strategy) -> Study`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    import loops

__all__ = ["InputError", "Study", "build", "in_scope"]


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one sentence, to be shown as it stands."""


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment that is ready to run.

    Attributes:
        task: what is trained; under a strategy it was made in its scope.
        model: the model whose best weights are kept and evaluated.
        train: batches to train on.
        evaluate: named feeds that are evaluated after every epoch; "val" gives `val_loss` and so on.
        test: the feed that nothing is decided by.
        monitor: name in the logs by which the best epoch is chosen.
        mode: "min" or "max": which of its values is best.
        hooks: hooks that belong to the experiment; the program that runs it adds early stopping on `monitor`, and its progress bar.
        title: a few words, for the head of a picture.
        description: a sentence or two on data and model, printed before training.
    """

    task: loops.Task
    model: keras.Model
    train: loops.Feed
    evaluate: Mapping[str, loops.Feed]
    test: loops.Feed
    monitor: str
    mode: str
    hooks: Sequence[Any]
    title: str
    description: str


def build(
    config: Any,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
) -> Study:
    """Builds the study that a config names, from a fixed seed.

    Args:
        config: an `ml_collections.ConfigDict` with a field `study`, the name of a module in `research`.
        data_dir: where data lies that is not bundled; see `research.datasets.load`.
        seed: seed of Python, NumPy, Keras and TensorFlow, set before anything is made; weights and order of the data depend on it.
        strategy: distribution strategy in whose scope model and optimizer are made; None for one device.

    Raises:
        InputError: if there is no such study, or something in the config cannot be used.
    """
    import keras

    name = f"research.{config.study}"
    if not str(config.study).isidentifier() or importlib.util.find_spec(name) is None:
        raise InputError(f"config.study is {config.study!r}, but there is no module {name}.")
    module = importlib.import_module(name)
    if not hasattr(module, "build"):
        raise InputError(f"config.study is {config.study!r}, but {name} has no function `build`.")
    keras.utils.set_random_seed(seed)
    return module.build(config, data_dir=data_dir, seed=seed, strategy=strategy)


def in_scope(strategy: tf.distribute.Strategy | None) -> contextlib.AbstractContextManager[Any]:
    """The strategy's scope, or a context that does nothing without one."""
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
