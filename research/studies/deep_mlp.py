"""The study of a deep perceptron, 20 layers of 100: why a plain one hardly begins to learn, and what makes it.

Config: `research/configs/deep_mlp.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from research.data import datasets
from research.pictures import plots
from research.pictures.gradient_norms import GradientNorms
from research.report import metrics_table
from research.studies import classification
from research.study import Comparison, InputError, Run, Runs, Study
from research.supervised import classifier, load_classes, supervised_study

__all__ = ["VARIANTS", "build", "make_model"]

VARIANTS = ("plain", "batch_norm_after", "batch_norm_before", "selu", "alpha_dropout")


def make_model(
    input_shape: Sequence[int], classes: int, *, variant: str, depth: int = 20, units: int = 100, dropout: float = 0.5
) -> keras.Model:
    """A perceptron of many equal layers.

    Args:
        input_shape: shape of one example, without the batch dimension.
        classes: number of classes.
        variant: what a hidden layer is. "plain": `relu(Wx + b)` with Keras's default weights. "batch_norm_after": normalised over the
            batch after that. "batch_norm_before": `relu(normalised(Wx))`. "selu": `selu(Wx + b)` with LeCun-normal weights, which keeps
            mean 0 and variance 1 from layer to layer. "alpha_dropout": the same, with alpha dropout, which keeps them too, before the
            output.
        depth: number of hidden layers.
        units: units of each.
        dropout: rate of alpha dropout.

    Returns:
        A model that maps float32 `[B, *input_shape]` to class probabilities `[B, classes]`; "hidden_1" is the layer next to its input.

    Raises:
        InputError: for a variant that does not exist.

    References:
        Batch normalization: https://arxiv.org/abs/1502.03167. SELU and alpha dropout: https://arxiv.org/abs/1706.02515.

    Example:
        >>> make_model((28, 28), 10, variant="plain").count_params()
        271410
    """
    if variant not in VARIANTS:
        raise InputError(f"config.variant is {variant!r}; choose all, or one of {', '.join(VARIANTS)}.")
    dense = functools.partial(keras.layers.Dense, units)
    layers = [keras.Input(tuple(input_shape)), keras.layers.Flatten()]
    for number in range(1, depth + 1):
        name = f"hidden_{number}"
        if variant == "plain":
            layers += [dense(activation="relu", name=name)]
        elif variant == "batch_norm_after":
            layers += [dense(activation="relu", name=name), keras.layers.BatchNormalization(name=f"norm_{number}")]
        elif variant == "batch_norm_before":
            # The normalisation takes the mean away, and any bias with it.
            layers += [dense(use_bias=False, name=name), keras.layers.BatchNormalization(name=f"norm_{number}"), keras.layers.ReLU()]
        else:
            layers += [dense(activation="selu", kernel_initializer="lecun_normal", name=name)]
    if variant == "alpha_dropout":
        layers += [keras.layers.AlphaDropout(dropout)]
    return keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax", name="output")], name=variant)


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study | Comparison:
    """Makes the study of one variant, or the comparison of all; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set, variant or optimizer that does not exist, or sizes that fit no model or batch.
    """
    data = load_classes(config, data_dir)

    def study(variant: str) -> Study:
        def task() -> loops.Task:
            size = {"depth": config.depth, "units": config.units, "dropout": config.dropout}
            return classifier(make_model(data.train.x.shape[1:], len(data.class_names), variant=variant, **size), config.optimizer)

        return supervised_study(
            data,
            task,
            config=config,
            seed=seed,
            strategy=strategy,
            hooks=[GradientNorms(config.look_every), hooks.TensorBoard(histogram_freq=config.histogram_freq)],
            title=f"{variant}, {config.depth} layers of {config.units}, {config.dataset}",
            description=f"{data.description} Inputs: {config.normalize}. {config.depth} layers of {config.units}: {variant}.",
            after=functools.partial(_show, data=data),
            preprocessing=data.scaling,
        )

    if config.variant != "all":
        return study(config.variant)
    title = f"{config.depth} layers of {config.units} on {config.dataset}"
    return Comparison(
        parts={variant: lambda _, variant=variant: study(variant) for variant in VARIANTS},
        conclude=functools.partial(_conclude, title=title),
        description=f"{title} ({config.normalize}), {config.optimizer.name} {config.optimizer.learning_rate:g}: "
        "which of them learn, and how large their gradients are.",
    )


def _norms(run: Run) -> GradientNorms:
    return next(hook for hook in run.loop.hooks if isinstance(hook, GradientNorms))


def _show(run: Run, data: datasets.Dataset) -> list[str]:
    norms = _norms(run)
    if norms.steps:
        name = run.study.model.name
        run.picture("gradient_norms", plots.gradient_norms({name: norms.by_layer()}, {name: norms.steps}, title=run.study.title))
    return classification.show_predictions(run, data.test, data.class_names)


def _conclude(runs: Runs, title: str) -> list[str]:
    norms = {name: _norms(run) for name, run in runs.items()}
    layers, at = {name: kept.by_layer() for name, kept in norms.items()}, {name: kept.steps for name, kept in norms.items()}
    losses = {name: (kept.steps, kept.losses) for name, kept in norms.items()}
    accuracies = {name: run.history.history["val_accuracy"] for name, run in runs.items()}
    runs.picture("gradient_norms", plots.gradient_norms(layers, at, title=title))
    runs.picture("loss", plots.lines(losses, x="step", y="training loss", title=title))
    runs.picture("val_accuracy", plots.lines(accuracies, y="accuracy on the validation set", title=title))
    return [
        *metrics_table({name: _row(run) for name, run in runs.items()}).splitlines(),
        "",
        "Gradient: the median over the layers' norms.",
    ]


def _row(run: Run) -> Mapping[str, float]:
    norms = _norms(run)
    return {
        f"gradient at step {norms.steps[0]}": float(np.median(norms.norms[0])),
        "val accuracy, epoch 1": run.history.history["val_accuracy"][0],
        "test accuracy": run.test["accuracy"],
        "test loss": run.test["loss"],
    }
