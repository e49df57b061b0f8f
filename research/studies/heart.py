"""The heart study: a table of numbers, categories and gaps, encoded by `keras.utils.FeatureSpace`, judged by cross-validation.

Config: `research/configs/heart.py`. The data: `research.data.tables.heart_disease`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn import linear_model, metrics, model_selection

import loops
from research.data import tables
from research.pictures import plots
from research.report import metrics_table
from research.study import Comparison, InputError, Runs, Study
from research.supervised import Parts, make_optimizer, supervised_study

__all__ = ["KINDS", "Encoder", "build", "folds", "make_model"]

KINDS = ("numeric", "indicator", "discretized", "embedding", "crossed")

_NUMERIC = ("age", "trestbps", "chol", "thalach", "oldpeak", "slope", "ca")
_CATEGORIES = ("sex", "cp", "fbs", "restecg", "exang")
_AGE_GROUPS = 10
_MISSING = "missing"


class Encoder:
    """Turns columns as they are in the table into what a model takes. Everything that it knows comes from the training rows.

    A missing number becomes the median of its column, and a column `NAME_missing` (0 or 1) is added for each column of numbers with gaps
    in it; a missing word becomes the word "missing". Then a `keras.utils.FeatureSpace` encodes. It encodes an input in one way; what is
    to be encoded in several, as age and thal are, goes in several times.

    Args:
        columns: name -> `[N]`, as in `research.data.tables.Table`.
        rows: indices `[M]` of the training rows.
        kinds: of `KINDS`: "numeric" (z-score), "indicator" (one-hot over the values that occur, and one place for others), "discretized"
            (ages in ten groups of equal size, one-hot), "embedding" (of thal: an index, which the model embeds), "crossed" (age group x
            thal, hashed, one-hot; needs "indicator" and "discretized").
        crossing: places that the crossed pairs are hashed into.

    Call:
        columns: name -> `[B]`, arrays or tensors; works in `tf.data.Dataset.map` too.

    Returns:
        name -> tensor `[B, width]`: float32, or an index (int64).
    """

    def __init__(self, columns: Mapping[str, np.ndarray], rows: np.ndarray, kinds: Sequence[str], *, crossing: int):
        numbers = {name: values for name, values in columns.items() if values.dtype.kind == "f"}
        self.medians = {name: float(np.nanmedian(values[rows])) for name, values in numbers.items()}
        self.gappy = tuple(name for name, values in numbers.items() if np.isnan(values).any())
        space = keras.utils.FeatureSpace
        features: dict[str, Any] = {}
        if "numeric" in kinds:
            features |= {name: space.float_normalized() for name in _NUMERIC}
            features |= {f"{name}_missing": space.float() for name in self.gappy}
        if "indicator" in kinds:
            features |= {name: space.integer_categorical(output_mode="one_hot") for name in _CATEGORIES}
            features["thal"] = space.string_categorical(output_mode="one_hot")
        if "discretized" in kinds:
            features["age_group"] = space.float_discretized(num_bins=_AGE_GROUPS, output_mode="one_hot")
        if "embedding" in kinds:
            features["thal_index"] = space.string_categorical(output_mode="int")
        crosses = [space.cross(("age_group", "thal"), crossing_dim=crossing)] if "crossed" in kinds else []
        self.space = space(features, crosses=crosses, output_mode="dict")
        self.space.adapt(tf.data.Dataset.from_tensor_slices(self.inputs({name: values[rows] for name, values in columns.items()})))

    @property
    def categories(self) -> int:
        """Places that the index of thal can name, 0 if nothing is to be embedded."""
        lookup = self.space.preprocessors.get("thal_index")
        return lookup.vocabulary_size() if lookup is not None else 0

    def inputs(self, columns: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        """What the feature space takes: columns without gaps."""
        filled: dict[str, tf.Tensor] = {}
        for name, values in columns.items():
            values = tf.convert_to_tensor(values)
            if values.dtype == tf.string:
                filled[name] = tf.where(values == "", _MISSING, values)
                continue
            gaps = tf.math.is_nan(values)
            values = tf.where(gaps, self.medians[name], values)
            filled[name] = tf.cast(values, tf.int32) if name in _CATEGORIES else values
            filled[f"{name}_missing"] = tf.cast(gaps, tf.float32)
        filled |= {"age_group": filled["age"], "thal_index": filled["thal"]}
        return {name: filled[name] for name in self.space.features}

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        return self.space(self.inputs(columns))


def make_model(encoded: Mapping[str, Any], *, hidden: Sequence[int], embedding: int, categories: int, dropout: float) -> keras.Model:
    """A perceptron on encoded columns.

    Args:
        encoded: name -> `[B, width]`, arrays, tensors or their specs, as `Encoder` gives them; what has an integer dtype is embedded.
        hidden: units of each hidden layer.
        embedding: length of the vector of each category.
        categories: how many there are.
        dropout: share of the hidden units that is left out in training.

    Returns:
        A model that maps such a dict to probabilities of disease `[B, 1]`.
    """
    inputs, vectors = {}, []
    for name, values in encoded.items():
        dtype = tf.as_dtype(values.dtype).name
        inputs[name] = vector = keras.Input(tuple(values.shape)[1:], dtype=dtype, name=name)
        if "int" in dtype:
            vector = keras.layers.Flatten()(keras.layers.Embedding(categories, embedding)(vector))
        vectors.append(vector)
    x = keras.layers.Concatenate()(vectors) if len(vectors) > 1 else vectors[0]
    for units in hidden:
        x = keras.layers.Dropout(dropout)(keras.layers.Dense(units, activation="relu")(x))
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x), name="heart")


def folds(target: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows to train on, to validate on and to test on, for each fold of a stratified cross-validation.

    Each row is tested on once. An eighth of what is left is for validation.

    Args:
        target: class indices `[N]`.
        count: folds.
        seed: decides which rows go together.

    Raises:
        InputError: if a class is too small for so many folds.
    """
    if not 2 <= count <= np.bincount(target).min():
        raise InputError(f"config.folds is {count}; with {np.bincount(target).min()} examples of the smaller class it is 2 to that number.")
    made = []
    for rest, test in model_selection.StratifiedKFold(count, shuffle=True, random_state=seed).split(target, target):
        train, val = model_selection.train_test_split(rest, test_size=1 / 8, stratify=target[rest], random_state=seed)
        made.append((train, val, test))
    return made


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Makes the study: one part for each fold; for the arguments see `research.study.build`.

    Raises:
        InputError: for data that cannot be had, a kind of column that does not exist, or sizes that fit no model or fold.
    """
    kinds = set(config.columns)
    if not kinds or kinds - set(KINDS):
        raise InputError(f"config.columns is {tuple(config.columns)}; give one or more of {', '.join(KINDS)}.")
    if "crossed" in kinds and not {"indicator", "discretized"} <= kinds:
        raise InputError('"crossed" in config.columns crosses age groups with thal: give "discretized" and "indicator" too.')
    table = tables.heart_disease(data_dir)
    splits = folds(table.target, config.folds, seed)
    make = functools.partial(_study, config=config, table=table, seed=seed, strategy=strategy)
    return Comparison(
        parts={f"fold{i}": lambda _, i=i, rows=rows: make(f"fold {i} of {config.folds}", rows) for i, rows in enumerate(splits, 1)},
        conclude=lambda runs: _conclude(runs, table, splits),
        description=f"{table.description} Columns: {', '.join(config.columns)}. Cross-validation in {config.folds} stratified folds.",
    )


def _study(
    title: str,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    config: Any,
    table: tables.Table,
    seed: int,
    strategy: tf.distribute.Strategy | None,
) -> Study:
    encoder = Encoder(table.columns, rows[0], config.columns, crossing=config.crossing)
    encoded = {name: values.numpy() for name, values in encoder(table.columns).items()}

    def task() -> loops.Task:
        return loops.SupervisedTask(
            make_model(
                encoded,
                hidden=config.hidden,
                embedding=config.embedding,
                categories=encoder.categories,
                dropout=config.dropout,
            ),
            loss="binary_crossentropy",
            optimizer=make_optimizer(config.optimizer),
            metrics=["accuracy", keras.metrics.AUC(name="auc")],
        )

    return supervised_study(
        Parts(*(({name: column[part] for name, column in encoded.items()}, table.target[part]) for part in rows)),
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        title=f"heart disease, {title}",
        description=f"{len(rows[0])} patients to train on, {len(rows[1])} to validate on, {len(rows[2])} to test on.",
        preprocessing=encoder,
        examples={name: column[rows[2]] for name, column in table.columns.items()},
    )


def _conclude(runs: Runs, table: tables.Table, splits: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Sequence[str]:
    target = table.target
    rows, straight, every = {}, {}, np.empty(len(target))
    for (name, run), (train, _, test) in zip(runs.items(), splits, strict=True):
        assert run.study.test is not None and run.study.preprocessing is not None
        every[test] = np.ravel(loops.PredictLoop(run.study.task, strategy=run.loop.strategy).run(run.study.test))
        rows[name] = _scores(target[test], every[test])
        encoded = run.study.preprocessing(table.columns).values()
        x = np.concatenate([values for values in encoded if values.dtype == tf.float32], axis=1)
        line = linear_model.LogisticRegression(max_iter=1_000).fit(x[train], target[train])
        straight[name] = _scores(target[test], line.predict_proba(x[test])[:, 1])
    curves = {"all patients": metrics.roc_curve(target, every)[:2], "chance": ([0.0, 1.0], [0.0, 1.0])}
    runs.picture("roc", plots.lines(curves, x="healthy patients called ill", y="ill patients found", title="heart disease"))
    return [
        metrics_table({**rows, "all patients": _scores(target, every)}),
        "",
        f"Mean and standard deviation over the folds: {_spread(rows)}.",
        f"Logistic regression on the same columns, without the embedding: {_spread(straight)}.",
        f"Always saying the more frequent class would be right for {max(np.bincount(target)) / len(target):.3f} of the patients.",
    ]


def _spread(rows: Mapping[str, Mapping[str, float]]) -> str:
    accuracy, auc = (np.array([row[name] for row in rows.values()]) for name in ("accuracy", "auc"))
    return (
        f"accuracy {accuracy.mean():.3f} +- {accuracy.std(ddof=1):.3f}, area under the ROC curve {auc.mean():.3f} +- {auc.std(ddof=1):.3f}"
    )


def _scores(target: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(np.mean((probability > 0.5) == target)), "auc": float(metrics.roc_auc_score(target, probability))}
