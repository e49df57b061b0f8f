"""The heart study: a table of numbers, categories and gaps, encoded by `keras.utils.FeatureSpace`, judged by cross-validation.

Config: `research/configs/heart.py`. The data: `research.tables.heart_disease`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn import metrics, model_selection

import loops
from research import plots, tables
from research.classification import make_optimizer
from research.report import metrics_table
from research.study import Comparison, InputError, Runs, Study, in_scope

__all__ = ["KINDS", "build", "complete", "feature_space", "folds", "make_model", "with_preprocessing"]

KINDS = ("numeric", "indicator", "discretized", "embedding", "crossed")

_NUMERIC = ("age", "trestbps", "chol", "thalach", "oldpeak", "slope", "ca")
_CATEGORIES = ("sex", "cp", "fbs", "restecg", "exang")
_AGE_GROUPS = 10
_MISSING = "missing"

Columns = dict[str, np.ndarray]


def complete(columns: Mapping[str, np.ndarray], fitted_on: np.ndarray) -> Columns:
    """Fills the gaps of a table, and lets the model see where they were.

    A missing number becomes the median of its column; a column `NAME_missing` (0 or 1) is added for each column of numbers that has gaps
    anywhere. A missing word becomes "missing". What is a category becomes an integer.

    Args:
        columns: as in `research.tables.Table`.
        fitted_on: row indices `[M]` that medians are taken of: the training part.

    Returns:
        New columns `[N]`: float32, int32 or str, without gaps.

    Example:
        >>> filled = complete({"ca": np.array([1, np.nan, 3, 9], np.float32)}, fitted_on=np.array([0, 1, 2]))
        >>> filled["ca"].tolist(), filled["ca_missing"].tolist()
        ([1.0, 2.0, 3.0, 9.0], [0.0, 1.0, 0.0, 0.0])
    """
    filled: Columns = {}
    for name, values in columns.items():
        if values.dtype.kind != "f":
            filled[name] = np.where(values == "", _MISSING, values)
            continue
        gaps = np.isnan(values)
        filled[name] = np.where(gaps, np.nanmedian(values[fitted_on]), values)
        if name in _CATEGORIES:
            filled[name] = filled[name].astype(np.int32)
        if gaps.any():
            filled[f"{name}_missing"] = gaps.astype(np.float32)
    return filled


def feature_space(columns: Mapping[str, np.ndarray], kinds: Sequence[str], *, crossing: int) -> tuple[keras.utils.FeatureSpace, Columns]:
    """Decides how each column is encoded.

    A FeatureSpace encodes an input in one way; what is to be encoded in several, as age and thal are, goes in several times.

    Args:
        columns: what `complete` gave.
        kinds: of `KINDS`: "numeric" (z-score), "indicator" (one-hot over the values that occur, and one place for others), "discretized"
            (ages in ten groups of equal size, one-hot), "embedding" (of thal: an index, which the model embeds), "crossed" (age group x
            thal, hashed, one-hot; needs "indicator" and "discretized").
        crossing: places that the crossed pairs are hashed into.

    Returns:
        The feature space, not adapted yet, and its inputs.
    """
    space = keras.utils.FeatureSpace
    features: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if "numeric" in kinds:
        features |= {name: space.float_normalized() for name in _NUMERIC}
        features |= {name: space.float() for name in columns if name.endswith("_missing")}
    if "indicator" in kinds:
        features |= {name: space.integer_categorical(output_mode="one_hot") for name in _CATEGORIES}
        features["thal"] = space.string_categorical(output_mode="one_hot")
    if "discretized" in kinds:
        features["age_group"], sources["age_group"] = space.float_discretized(num_bins=_AGE_GROUPS, output_mode="one_hot"), "age"
    if "embedding" in kinds:
        features["thal_index"], sources["thal_index"] = space.string_categorical(output_mode="int"), "thal"
    crosses = [space.cross(("age_group", "thal"), crossing_dim=crossing)] if "crossed" in kinds else []
    inputs = {name: columns[sources.get(name, name)] for name in features}
    return space(features, crosses=crosses, output_mode="dict"), inputs


def make_model(encoded: Mapping[str, Any], *, hidden: Sequence[int], embedding: int, categories: int, dropout: float) -> keras.Model:
    """A perceptron on encoded columns.

    Args:
        encoded: name -> `[B, width]`, as a FeatureSpace gives them; what has an integer dtype is embedded.
        hidden: units of each hidden layer.
        embedding: length of the vector of each category.
        categories: how many there are.
        dropout: share of the hidden units that is left out in training.

    Returns:
        A model that maps such a dict to probabilities of disease `[B, 1]`.
    """
    inputs, vectors = {}, []
    for name, values in encoded.items():
        dtype = keras.backend.standardize_dtype(values.dtype)
        inputs[name] = vector = keras.Input(values.shape[1:], dtype=dtype, name=name)
        if "int" in dtype:
            vector = keras.layers.Flatten()(keras.layers.Embedding(categories, embedding)(vector))
        vectors.append(vector)
    x = keras.layers.Concatenate()(vectors) if len(vectors) > 1 else vectors[0]
    for units in hidden:
        x = keras.layers.Dropout(dropout)(keras.layers.Dense(units, activation="relu")(x))
    return keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(x), name="heart")


def with_preprocessing(space: keras.utils.FeatureSpace, model: keras.Model) -> keras.Model:
    """One model from columns as they are in the table, words included, to probabilities `[B, 1]`: for use, rather than for training."""
    return keras.Model(space.get_inputs(), model(space.get_encoded_features()), name="heart_with_preprocessing")


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
    """Makes the study: one part for each fold; `research.study.build` has set the seeds before.

    Args:
        config: fields as in `research/configs/heart.py`.
        data_dir: see `research.tables.heart_disease`.
        seed: decides the folds, and the order of the training data.
        strategy: distribution strategy in whose scope model and optimizer are made.

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
        conclude=lambda runs: _conclude(runs, table.target, [test for _, _, test in splits]),
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
    train_rows = rows[0]
    space, inputs = feature_space(complete(table.columns, train_rows), config.columns, crossing=config.crossing)
    # Means, vocabularies and age groups come from the training rows alone.
    space.adapt(tf.data.Dataset.from_tensor_slices({name: column[train_rows] for name, column in inputs.items()}))
    encoded = {name: tensor.numpy() for name, tensor in space(inputs).items()}
    try:
        with in_scope(strategy):
            model = make_model(
                encoded,
                hidden=config.hidden,
                embedding=config.embedding,
                categories=space.preprocessors["thal_index"].vocabulary_size() if "thal_index" in encoded else 0,
                dropout=config.dropout,
            )
            task = loops.SupervisedTask(
                model,
                loss="binary_crossentropy",
                optimizer=make_optimizer(config.optimizer),
                metrics=["accuracy", keras.metrics.AUC(name="auc")],
            )
        parts = [({name: column[part] for name, column in encoded.items()}, table.target[part]) for part in rows]
        train = loops.ArrayFeed(parts[0], batch_size=config.batch_size, shuffle=True, seed=seed)
        val, test = (loops.ArrayFeed(part, batch_size=config.batch_size) for part in parts[1:])
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"The config cannot be built: {str(error).splitlines()[0]}") from error
    return Study(
        task=task,
        model=model,
        train=train,
        evaluate={"val": val},
        test=test,
        monitor="val_loss",
        mode="min",
        hooks=(),
        title=f"heart disease, {title}",
        description=f"{len(rows[0])} patients to train on, {len(rows[1])} to validate on, {len(rows[2])} to test on.",
    )


def _conclude(runs: Runs, target: np.ndarray, tested: Sequence[np.ndarray]) -> Sequence[str]:
    rows, every = {}, np.empty(len(target))
    for (name, run), test in zip(runs.items(), tested, strict=True):
        assert run.study.test is not None
        probability = np.ravel(loops.PredictLoop(run.study.task, strategy=run.loop.strategy).run(run.study.test))
        rows[name] = _scores(target[test], probability)
        every[test] = probability
    accuracy, auc = (np.array([row[name] for row in rows.values()]) for name in ("accuracy", "auc"))
    runs.picture("roc", plots.lines({"every patient, tested once": metrics.roc_curve(target, every)[:2]}))
    return [
        metrics_table({**rows, "all patients": _scores(target, every)}),
        "",
        f"Mean and standard deviation over the folds: accuracy {accuracy.mean():.3f} +- {accuracy.std(ddof=1):.3f}, "
        f"area under the ROC curve {auc.mean():.3f} +- {auc.std(ddof=1):.3f}.",
        f"Always saying the more frequent class would be right for {max(np.bincount(target)) / len(target):.3f} of the patients.",
    ]


def _scores(target: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    return {"accuracy": float(np.mean((probability > 0.5) == target)), "auc": float(metrics.roc_auc_score(target, probability))}
