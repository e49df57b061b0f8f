"""The wide & deep study: one net, made by the functional API, by subclassing, with two inputs, and with two outputs.

Config: `research/configs/wide_deep.py`.
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
from research.data import datasets
from research.report import metrics_table
from research.study import Comparison, InputError, Run, Runs, Study
from research.supervised import Parts, load_targets, make_optimizer, supervised_study

__all__ = ["FORMS", "WideDeep", "build", "functional", "multi_input", "multi_output"]

FORMS = ("functional", "subclassed", "multi_input", "multi_output")


def functional(features: int, *, hidden: Sequence[int], activation: str = "relu", mean: float = 0.0, deviation: float = 1.0) -> keras.Model:
    """Wide & deep as a graph of layers: the output sees the features themselves (wide), and what hidden layers make of them (deep).

    Args:
        features: columns of the table.
        hidden: units of each hidden layer.
        activation: activation of the hidden layers.
        mean, deviation: mean and standard deviation of the training targets; see `research.studies.regression.make_model`.

    Returns:
        A model that maps float32 `[B, features]` to predictions `[B, 1]`.

    References:
        Cheng et al. 2016, arXiv:1606.07792.

    Example:
        >>> functional(8, hidden=(30, 30)).count_params()  # 8*30+30 + 30*30+30 + 38+1
        1239
    """
    x = keras.Input([features], name="features")
    deep = _deep(x, hidden, activation)
    return keras.Model(x, _output([x, deep], mean, deviation, "main"), name="functional")


@keras.saving.register_keras_serializable("research")
class WideDeep(keras.Model):
    """The net of `functional`, as a class: layers are made in `__init__` and put together in `call`.

    Args:
        hidden, activation, mean, deviation: see `functional`.

    Call:
        x: float32 `[B, features]`.

    Returns:
        Predictions `[B, 1]`.

    Example:
        >>> WideDeep(hidden=(30, 30))(np.zeros([5, 8], "float32")).shape
        TensorShape([5, 1])
    """

    def __init__(self, *, hidden: Sequence[int], activation: str = "relu", mean: float = 0.0, deviation: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.settings = {"hidden": list(hidden), "activation": activation, "mean": mean, "deviation": deviation}
        self.hidden_layers = [keras.layers.Dense(units, activation=activation) for units in hidden]
        self.output_layer = keras.layers.Dense(1)
        self.unit = keras.layers.Rescaling(deviation, offset=mean)

    def build(self, input_shape: Sequence[int | None]) -> None:
        features = wide = input_shape[-1]
        for layer in self.hidden_layers:
            layer.build((None, features))
            features = layer.units
        self.output_layer.build((None, wide + features))

    def call(self, x: Any) -> Any:
        deep = x
        for layer in self.hidden_layers:
            deep = layer(deep)
        return self.unit(self.output_layer(keras.ops.concatenate([x, deep], axis=-1)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.settings}


def multi_input(
    wide: int, deep: int, *, hidden: Sequence[int], activation: str = "relu", mean: float = 0.0, deviation: float = 1.0
) -> keras.Model:
    """Wide & deep with an input for each path, so that each may see other columns.

    Args:
        wide, deep: columns of each input.
        hidden, activation, mean, deviation: see `functional`.

    Returns:
        A model that maps `{"wide": float32 [B, wide], "deep": float32 [B, deep]}` to predictions `[B, 1]`.
    """
    inputs = {"wide": keras.Input([wide], name="wide"), "deep": keras.Input([deep], name="deep")}
    path = _deep(inputs["deep"], hidden, activation)
    return keras.Model(inputs, _output([inputs["wide"], path], mean, deviation, "main"), name="multi_input")


def multi_output(
    wide: int, deep: int, *, hidden: Sequence[int], activation: str = "relu", mean: float = 0.0, deviation: float = 1.0
) -> keras.Model:
    """`multi_input` with a second output, of the deep path alone, whose loss keeps that path honest.

    Returns:
        A model whose outputs are `{"main": [B, 1], "aux": [B, 1]}`.
    """
    inputs = {"wide": keras.Input([wide], name="wide"), "deep": keras.Input([deep], name="deep")}
    path = _deep(inputs["deep"], hidden, activation)
    outputs = {"main": _output([inputs["wide"], path], mean, deviation, "main"), "aux": _output([path], mean, deviation, "aux")}
    return keras.Model(inputs, outputs, name="multi_output")


def _deep(x: Any, hidden: Sequence[int], activation: str) -> Any:
    for units in hidden:
        x = keras.layers.Dense(units, activation=activation)(x)
    return x


def _output(paths: Sequence[Any], mean: float, deviation: float, name: str) -> Any:
    joined = keras.ops.concatenate(paths, axis=-1) if len(paths) > 1 else paths[0]
    return keras.layers.Rescaling(deviation, offset=mean, name=name)(keras.layers.Dense(1)(joined))


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study | Comparison:
    """Makes the study of one form, or the comparison of all; for the arguments see `research.study.build`.

    Raises:
        InputError: for a form, data set, normalisation or optimizer that does not exist, or sizes that fit no model or batch.
    """
    if config.form not in (*FORMS, "all"):
        raise InputError(f"There is no form {config.form!r}; choose one of {', '.join(FORMS)}, or all.")
    data, mean, deviation = load_targets(config, data_dir)
    if not all(1 <= columns <= data.train.x.shape[1] for columns in (config.wide_columns, config.deep_columns)):
        raise InputError(f"config.wide_columns and config.deep_columns must be 1 to {data.train.x.shape[1]}, the columns of the table.")
    make = functools.partial(_study, config=config, data=data, mean=mean, deviation=deviation, seed=seed, strategy=strategy)
    if config.form != "all":
        return make(config.form)
    return Comparison(
        parts={form: lambda _, form=form: make(form) for form in FORMS},
        conclude=lambda runs: _conclude(runs, data),
        description=f"{data.description} The same net in four forms: {', '.join(FORMS)}.",
    )


def _study(
    form: str,
    *,
    config: Any,
    data: datasets.Dataset,
    mean: float,
    deviation: float,
    seed: int,
    strategy: tf.distribute.Strategy | None,
) -> Study:
    how: dict[str, Any] = {"hidden": config.hidden, "activation": config.activation, "mean": mean, "deviation": deviation}
    features = data.train.x.shape[1]

    def task() -> loops.Task:
        if form == "functional":
            model = functional(features, **how)
        elif form == "subclassed":
            model = WideDeep(name="subclassed", **how)
            model.build((None, features))
        else:
            model = (multi_input if form == "multi_input" else multi_output)(config.wide_columns, config.deep_columns, **how)
        return loops.SupervisedTask(model, optimizer=make_optimizer(config.optimizer), **_losses(form, config))

    return supervised_study(
        Parts(*(_batches(split, form, config) for split in (data.train, data.val, data.test))),
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        # Keras averages the loss of an output over batches, as if a short last one counted in full; metrics are over examples.
        monitor="val_main_rmse" if form == "multi_output" else "val_rmse",
        title=f"wide & deep, {form.replace('_', '-')}, {config.dataset}",
        description=f"{data.description} Wide & deep, {form}.",
        preprocessing=lambda x: _inputs(data.scaling(x), form, config),
        examples=data.scaling.inverse(data.test.x[:16]),
    )


def _losses(form: str, config: Any) -> dict[str, Any]:
    if form != "multi_output":
        return {"loss": "mse", "metrics": [keras.metrics.RootMeanSquaredError(name="rmse")]}
    return {
        "loss": {"main": "mse", "aux": "mse"},
        "loss_weights": {"main": 1 - config.aux_weight, "aux": config.aux_weight},
        "metrics": {output: [keras.metrics.RootMeanSquaredError(name="rmse")] for output in ("main", "aux")},
    }


def _batches(split: datasets.Split, form: str, config: Any) -> Any:
    """What a form's model takes and what it is compared with."""
    return _inputs(split.x, form, config), {"main": split.y, "aux": split.y} if form == "multi_output" else split.y


def _inputs(x: Any, form: str, config: Any) -> Any:
    """With two inputs, the first columns go the wide way, the last ones the deep way."""
    if form in ("functional", "subclassed"):
        return x
    return {"wide": x[:, : config.wide_columns], "deep": x[:, -config.deep_columns :]}


def _conclude(runs: Runs, data: datasets.Dataset) -> Sequence[str]:
    rows: dict[str, Mapping[str, Any]] = {}
    for form, run in runs.items():
        test = run.test
        rows[form] = {"rmse": test.get("rmse", test.get("main_rmse")), **({"aux_rmse": test["aux_rmse"]} if "aux_rmse" in test else {})}
    unit = f" (RMSE in units of {data.unit})" if data.unit else " (RMSE)"
    return [
        f"On the test set{unit}:",
        metrics_table(rows),
        "",
        f"Functional and subclassed: {_difference(runs['functional'], runs['subclassed'])}.",
    ]


def _difference(one: Run, other: Run) -> str:
    pairs = zip(one.study.model.get_weights(), other.study.model.get_weights(), strict=True)
    largest = max(float(np.abs(a - b).max()) for a, b in pairs)
    same = one.history.history["loss"] == other.history.history["loss"]
    if largest == 0 and same:
        return "the same losses in every epoch and the same weights, bit for bit"
    return f"the weights differ by up to {largest:.2g}"
