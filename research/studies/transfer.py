"""The transfer study: a net that knows the classes 0-4 learns the classes 5-9 from few examples, with most of its layers frozen.

Config: `research/configs/transfer.py`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import hooks
from research.data import datasets
from research.data.datasets import Split
from research.pictures import plots
from research.report import metrics_table
from research.study import Comparison, InputError, Run, Runs, Study, in_scope
from research.supervised import Parts, classifier, supervised_study

__all__ = ["METHODS", "build", "few_of_each", "make_model", "transferred"]

METHODS = ("scratch", "last_layer", "new_head", "fine_tune")

# Which layers `fine_tune` sets free, one after the other: from the top, where features belong to the classes, to the bottom.
_STAGES = ("convolution_2", "convolution_1")


def make_model(input_shape: Sequence[int], classes: int) -> keras.Model:
    """Two convolutions, each with max pooling, and softmax.

    Args:
        input_shape: `[height, width]` of the images.
        classes: number of classes.
    """
    layers = [
        keras.Input(tuple(input_shape)),
        keras.layers.Reshape((*input_shape, 1), name="channel"),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="convolution_1"),
        keras.layers.MaxPooling2D(name="pool_1"),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu", name="convolution_2"),
        keras.layers.MaxPooling2D(name="pool_2"),
        keras.layers.Flatten(name="features"),
    ]
    return keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax", name="probabilities")], name="source")


def transferred(source: keras.Model, method: str) -> keras.Model:
    """A new model for as many other classes.

    Args:
        source: what `make_model` gave, trained; it is not changed.
        method: "scratch": none of its weights. "last_layer" and "fine_tune": its weights, frozen, with a new last layer. "new_head": all
            its weights, frozen, with a new softmax layer on top.

    Returns:
        A model that shares no variable with `source`.
    """
    classes = source.output_shape[-1]
    model = make_model(source.input_shape[1:], classes)
    if method == "scratch":
        return model
    kept = model.layers if method == "new_head" else model.layers[:-1]
    for layer in kept:
        layer.set_weights(source.get_layer(layer.name).get_weights())
        layer.trainable = False
    if method == "new_head":
        head = keras.layers.Dense(classes, activation="softmax", name="new_head")
        model = keras.Model(model.inputs[0], head(model.outputs[0]), name="new_head")
    return model


def few_of_each(data: Split, n: int, *, seed: int) -> Split:
    """`n` examples of each class, drawn without replacement.

    Args:
        data: examples and classes.
        n: how many of each class.
        seed: decides which.

    Raises:
        InputError: if a class has fewer.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(data.y, return_counts=True)
    if n < 1 or n > counts.min():
        raise InputError(f"config.samples asks for {n} examples of each class; there are between 1 and {counts.min()}.")
    chosen = np.concatenate([rng.choice(np.flatnonzero(data.y == c), n, replace=False) for c in classes])
    return Split(data.x[chosen], data.y[chosen])


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the comparison: a part "source-REPEAT", and "METHOD-SAMPLES-REPEAT" for each method and number of examples.

    For the arguments see `research.study.build`.

    Raises:
        InputError: for a data set without ten classes of images, a method that does not exist, or sizes that cannot be.
    """
    data = datasets.load(config.dataset, normalization=config.normalize, data_dir=data_dir)
    if len(data.class_names) != 10 or data.train.x.ndim != 3:
        raise InputError(f"{config.dataset} does not consist of images in ten classes; choose digits, mnist or fashion_mnist.")
    if unknown := sorted(set(config.methods) - set(METHODS)):
        raise InputError(f"config.methods names {unknown[0]!r}; there are {', '.join(METHODS)}.")
    if not config.samples or min(config.repeats, config.source_epochs, config.steps, config.batch_size) < 1:
        raise InputError("config.samples names one number or more; repeats, source_epochs, steps and batch_size are 1 or more.")
    few_of_each(data.train, max(config.samples), seed=0)
    old, new = _classes(data, range(5)), _classes(data, range(5, 10))

    def study(model: keras.Model, train: Split, of: Mapping[str, Split], repeat: int, **more: Any) -> Study:
        # Nothing is decided by the validation set of the new classes: who has few examples has none to spare.
        parts = Parts(train, of["val"] if more["monitor"] else None, of["test"])
        return supervised_study(
            parts,
            lambda: classifier(model, config.optimizer),
            config=config,
            seed=seed + repeat,
            strategy=strategy,
            evaluation_batch=500,
            preprocessing=data.scaling,
            **more,
        )

    def source(before: Mapping[str, Run], *, repeat: int) -> Study:
        keras.utils.set_random_seed(seed + repeat)
        with in_scope(strategy):
            model = make_model(data.train.x.shape[1:], 5)
        about = f"{len(old['train'].x):,} examples of the classes 0-4"
        more = {"monitor": "val_loss", "epochs": config.source_epochs, "title": about, "description": f"The source: {about}."}
        return study(model, old["train"], old, repeat, **more)

    def target(before: Mapping[str, Run], *, method: str, samples: int, repeat: int) -> Study:
        keras.utils.set_random_seed(seed + repeat)
        with in_scope(strategy):
            model = transferred(before[f"source-{repeat}"].study.model, method)
        few = few_of_each(new["train"], samples, seed=seed + repeat)
        # Few examples are repeated, so that an epoch of them has as many steps as one of more.
        rows = np.arange(max(config.steps * config.batch_size, len(few.x))) % len(few.x)
        stages: tuple[Any, ...] = ()
        if method == "fine_tune":
            when = {"monitor": "loss", "patience": config.stagnation, "min_delta": config.min_delta}
            stages = (hooks.Unfreeze(*_STAGES, learning_rate_factor=config.learning_rate_factor, **when),)
        frozen = sum(int(np.prod(w.shape)) for w in model.non_trainable_weights)
        about = f"{method}: {samples} examples of each class"
        description = f"{about}; {frozen:,} of {model.count_params():,} weights are frozen."
        more = {"monitor": None, "hooks": stages, "title": about, "description": description}
        return study(model, Split(few.x[rows], few.y[rows]), new, repeat, **more)

    parts: dict[str, Any] = {}
    for repeat in range(config.repeats):
        parts[f"source-{repeat}"] = functools.partial(source, repeat=repeat)
        for method in config.methods:
            for samples in config.samples:
                parts[f"{method}-{samples}-{repeat}"] = functools.partial(target, method=method, samples=samples, repeat=repeat)

    def conclude(runs: Runs) -> list[str]:
        accuracy = {
            (m, n): [runs[f"{m}-{n}-{r}"].test["accuracy"] for r in range(config.repeats)] for m in config.methods for n in config.samples
        }
        curves = {m: (list(config.samples), [float(np.mean(accuracy[m, n])) for n in config.samples]) for m in config.methods}
        title = f"{config.dataset}: classes 5-9 after 0-4"
        figure = plots.lines(curves, x="examples of each class", y=f"test accuracy, mean of {config.repeats}", title=title)
        figure.axes[0].set_xscale("log")
        figure.axes[0].set_xticks(config.samples, [str(n) for n in config.samples])
        figure.axes[0].minorticks_off()
        runs.picture("samples", figure)
        rows = {m: {f"{n} each": np.mean(accuracy[m, n]) for n in config.samples} for m in config.methods}
        spread = {m: {f"{n} each": np.std(accuracy[m, n]) for n in config.samples} for m in config.methods}
        lines = [f"Test accuracy, mean of {config.repeats}:", *metrics_table(rows).splitlines()]
        if config.repeats > 1:
            lines += ["", "Standard deviation:", *metrics_table(spread).splitlines()]
        unchanged = [_unchanged(runs, name) for name in runs if not name.startswith(("source", "scratch", "fine_tune"))]
        return [
            *lines,
            "",
            f"Frozen weights that are bitwise those of the source: {sum(a for a, _ in unchanged)} of {sum(b for _, b in unchanged)}.",
        ]

    return Comparison(parts=parts, conclude=conclude, description=f"{data.description} First the classes 0-4, then few examples of 5-9.")


def _classes(data: datasets.Dataset, classes: range) -> dict[str, Split]:
    """The examples of some classes, numbered from 0, by the name of the part."""

    def only(part: Split) -> Split:
        chosen = np.isin(part.y, classes)
        return Split(part.x[chosen], part.y[chosen] - np.int32(classes[0]))

    return {"train": only(data.train), "val": only(data.val), "test": only(data.test)}


def _unchanged(runs: Mapping[str, Run], name: str) -> tuple[int, int]:
    """How many of the frozen weights of a part have the bits that the source has, and how many are frozen."""
    source = runs[f"source-{name.rpartition('-')[2]}"].study.model
    frozen = [layer for layer in runs[name].study.model.layers if not layer.trainable]
    pairs = [pair for layer in frozen for pair in zip(layer.get_weights(), source.get_layer(layer.name).get_weights(), strict=True)]
    return sum(a.tobytes() == b.tobytes() for a, b in pairs), len(pairs)
