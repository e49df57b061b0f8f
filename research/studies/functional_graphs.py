"""The study of graphs of layers: the same block in a chain, with residual connections, and shared by all depths.

Config: `research/configs/functional_graphs.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

import loops
from loops import hooks
from research.pictures import plots
from research.report import metrics_table
from research.study import Comparison, InputError, Run, Runs, Study, from_config, in_scope
from research.supervised import classifier, load_classes, supervised_study

__all__ = ["FORMS", "build", "make_model"]

FORMS = ("plain", "residual", "shared")


def make_model(input_shape: Sequence[int], classes: int, *, form: str, depth: int, width: int) -> keras.Model:
    """A deep net of blocks of two dense layers.

        plain     x = block_i(x)
        residual  x = x + block_i(x)
        shared    x = x + block(x),  one block for all i

    What is added begins at zero, so that a residual net begins as if it had no blocks at all.

    Args:
        input_shape: shape of one example.
        classes: number of classes.
        form: one of `FORMS`.
        depth: how many times a block is applied.
        width: units of the layers of a block.

    References:
        He et al. 2015, Deep residual learning for image recognition, arXiv:1512.03385; Goyal et al. 2017, Accurate, large minibatch SGD,
        arXiv:1706.02677, section 5.1 (blocks that begin as the identity).

    Example:
        >>> [make_model((8, 8), 10, form=form, depth=20, width=16).count_params() for form in FORMS]
        [12090, 12090, 1754]
    """
    last = {"activation": "relu"} if form == "plain" else {"kernel_initializer": "zeros"}

    def block(i: int) -> list[keras.layers.Layer]:
        inner = keras.layers.Dense(width, activation="relu", name=f"block_{i}_in")
        return [inner, keras.layers.Dense(width, name=f"block_{i}_out", **last)]

    inputs = keras.Input(tuple(input_shape))
    x = keras.layers.Dense(width, activation="relu", name="first")(keras.layers.Flatten()(inputs))
    first = block(1)
    for i in range(1, depth + 1):
        y = x
        for layer in first if form == "shared" or i == 1 else block(i):
            y = layer(y)
        x = y if form == "plain" else keras.layers.Add(name=f"add_{i}")([x, y])
    outputs = keras.layers.Dense(classes, activation="softmax", name="probabilities")(x)
    return keras.Model(inputs, outputs, name=f"{form}_{depth}")


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the comparison: a part for each form and depth, named "plain-2" and so on; see `research.study.build`.

    Raises:
        InputError: for a form that does not exist, or sizes that fit no model.
    """
    data = load_classes(config, data_dir)
    if unknown := sorted(set(config.forms) - set(FORMS)):
        raise InputError(f"config.forms names {unknown[0]!r}; there are {', '.join(FORMS)}.")
    if not config.forms or not config.depths or min(*config.depths, config.width, config.batch_size) < 1:
        raise InputError("config.forms and config.depths name one or more each; depths, width and batch_size are 1 or more.")

    def make(form: str, depth: int) -> Study:
        with from_config(), in_scope(strategy):
            model = make_model(data.train.x.shape[1:], len(data.class_names), form=form, depth=depth, width=config.width)
        return supervised_study(
            data,
            lambda: classifier(model, config.optimizer),
            config=config,
            seed=seed,
            strategy=strategy,
            evaluation_batch=256,
            hooks=(FirstGradient(),),
            clip=config.clip,
            title=f"{form}, {depth} blocks",
            description=f"{form}: {depth} blocks of {config.width} units, {model.count_params():,} weights.",
            preprocessing=data.scaling,
        )

    parts = {f"{form}-{depth}": (form, depth) for form in config.forms for depth in config.depths}

    def conclude(runs: Runs) -> list[str]:
        rows = {name: _row(runs[name]) for name in parts}
        curves = {form: (list(config.depths), [rows[f"{form}-{depth}"]["accuracy"] for depth in config.depths]) for form in config.forms}
        figure = plots.lines(curves, x="blocks", y="test accuracy", title=f"{config.dataset}, by depth")
        runs.picture("depths", figure)
        return metrics_table(rows).splitlines()

    return Comparison(
        parts={name: _part(make, *which) for name, which in parts.items()},
        conclude=conclude,
        description=f"{data.description} Blocks in a chain, with residual connections, and shared by all depths.",
    )


def _part(make: Any, form: str, depth: int) -> Any:
    def part(before: Mapping[str, Run]) -> Study:
        return make(form, depth)

    return part


class FirstGradient(hooks.Hook):
    """Logs the norm of the gradient that reached the first layer of the first block at the last step of an epoch, as "first_gradient"."""

    phase = hooks.Phase.DECIDE
    observes = frozenset({"gradients"})

    def on_window_end(self, loop: loops.TrainLoop, window: Any) -> None:
        gradient = next(g for path, g in window.observed["gradients"].items() if path.endswith("block_1_in/kernel"))
        loop.log("first_gradient", float(tf.norm(gradient)))


def _row(run: Run) -> dict[str, float]:
    gradients = run.history.history["first_gradient"]
    return {"weights": run.study.model.count_params(), "first_gradient": gradients[0], **run.test}
