"""Makes a feed of anything that `model.fit` accepts as data: arrays, `tf.data`, `PyDataset`, generators, data frames."""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.adapter import AdapterFeed
from loops.feeds.arrays import ArrayFeed
from loops.feeds.base import Feed
from loops.feeds.class_weights import checked_sample_weight, weighted
from loops.feeds.dataset import DatasetFeed
from loops.feeds.generator import GeneratorFeed
from loops.feeds.py_dataset import PyDatasetFeed
from loops.feeds.rows import RowsFeed
from loops.feeds.schedule import FeedSchedule
from loops.feeds.stacking import is_dense

__all__ = ["feed_for", "split"]


def feed_for(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    batch_size: int | None = None,
    steps: int | None = None,
    shuffle: bool | str | None = False,
    class_weight: Mapping[int, float] | None = None,
    seed: int = 0,
    replay: bool = False,
) -> Any:
    """The feed for data given as to `model.fit`.

    Args:
        x: arrays (nested), a batched `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator, a `loops.Feed` or
            `FeedSchedule`, or other data for Keras.
        y: targets, for arrays.
        sample_weight: weights, for arrays.
        batch_size: examples per batch, for arrays; 32 by default.
        steps: batches of an epoch; decides the batch size of arrays if that is not given.
        shuffle: whether to permute examples in every pass; "batch", which in Keras permutes them within their batches, leaves the order.
        class_weight: class -> weight.
        seed: seed of the permutations.
        replay: whether a generator is to give its batches again in later passes, for evaluations.

    Raises:
        ValueError: if the data does not fit together.
    """
    if shuffle not in (True, False, None, "batch"):
        raise ValueError(f"`shuffle` must be True, False or 'batch'; got {shuffle!r}.")
    shuffle = shuffle is not None and shuffle != "batch" and bool(shuffle)
    x = _private_api.undistributed(x)
    if isinstance(x, (Feed, FeedSchedule, tf.data.Dataset)) and (y is not None or sample_weight is not None):
        raise ValueError(f"`y` and `sample_weight` belong into the {type(x).__name__}'s batches; give only `x`.")
    if isinstance(x, (Feed, FeedSchedule)):
        return x if class_weight is None else weighted(x, class_weight)
    if isinstance(x, tf.data.Dataset):
        return DatasetFeed(x) if class_weight is None else weighted(DatasetFeed(x), class_weight)
    if isinstance(x, keras.utils.PyDataset) and y is None and sample_weight is None and is_dense(x[0]):
        return PyDatasetFeed(x, shuffle=bool(shuffle), seed=seed, class_weight=class_weight, steps_per_epoch=steps)
    if isinstance(x, types.GeneratorType) and y is None and sample_weight is None:
        first = next(x, None)
        x = itertools.chain([] if first is None else [first], x)
        x = (batch for batch in x)  # Keras takes a generator, not a chain
        if isinstance(first, tuple) and is_dense(first):
            feed = GeneratorFeed(x, steps_per_epoch=steps, replay=replay)
            return feed if class_weight is None else weighted(feed, class_weight)
    leaves = [leaf for leaf in keras.tree.flatten((x, y, sample_weight)) if leaf is not None]
    if all(isinstance(leaf, np.ndarray) or (tf.is_tensor(leaf) and isinstance(leaf, tf.Tensor)) for leaf in leaves):
        n = len(leaves[0]) if leaves and leaves[0].ndim else 0
        size = batch_size or (max(1, math.ceil(n / steps)) if steps else 32)
        data = (x,) if y is None and sample_weight is None else (x, y)
        return ArrayFeed(data, size, shuffle=bool(shuffle), seed=seed, sample_weight=sample_weight, class_weight=class_weight)
    has_rows = bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)
    if has_rows and y is not None and sample_weight is not None:
        sample_weight = checked_sample_weight(y, sample_weight)

    def adapter_for(data: tuple[Any, Any, Any]) -> Any:
        return _private_api.data_adapter(
            x=data[0],
            y=data[1],
            sample_weight=data[2],
            batch_size=batch_size,
            steps_per_epoch=steps,
            shuffle=shuffle and isinstance(x, keras.utils.PyDataset),
            class_weight=class_weight,
        )

    if has_rows and shuffle:
        return RowsFeed((x, y, sample_weight), adapter_for, seed, class_weight)
    return AdapterFeed(adapter_for((x, y, sample_weight)), (x, y, sample_weight) if has_rows else None, class_weight)


def split(x: Any, y: Any, sample_weight: Any, fraction: float) -> tuple[tuple[Any, Any, Any], tuple[Any, ...]]:
    """Takes the last `fraction` of the examples for validation, as `model.fit(validation_split=...)` does.

    Returns:
        (x, y, sample_weight) to train on, and the tuple to validate on.

    Raises:
        ValueError: if the data cannot be split, or a part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_split` must be between 0 and 1; got {fraction!r}.")
    leaves = [leaf for leaf in keras.tree.flatten((x, y, sample_weight)) if leaf is not None]
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "__getitem__") for leaf in leaves):
        raise ValueError(f"`validation_split` needs arrays; for {type(x).__name__} give `validation_data`.")
    n = leaves[0].shape[0]
    at = math.floor(n * (1.0 - fraction))
    if at in (0, n):
        raise ValueError(f"`validation_split`={fraction} of {n} examples leaves a part empty.")

    def part(which: slice) -> tuple[Any, Any, Any]:
        return tuple(keras.tree.map_structure(lambda a: None if a is None else _rows(a, which), item) for item in (x, y, sample_weight))

    held_out = part(slice(at, n))
    return part(slice(0, at)), keras.utils.pack_x_y_sample_weight(*held_out) if y is not None else (held_out[0],)


def _rows(array: Any, which: slice) -> Any:
    return array.iloc[which] if hasattr(array, "iloc") else array[which]
