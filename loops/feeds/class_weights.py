"""Weights of classes become weights of examples, as `model.fit(class_weight=...)` defines them: for arrays, and for any feed of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.base import Block, Feed, Position
from loops.feeds.dataset import DatasetFeed
from loops.feeds.fingerprints import class_weight_text
from loops.feeds.schedule import FeedSchedule

__all__ = ["checked_sample_weight", "weighted", "weights_of"]


def weights_of(y: Any, class_weight: Mapping[int, float]) -> np.ndarray:
    """The weight of each example: that of its class, 1 for a class that is not named.

    Args:
        y: classes `[N]` or `[N, 1]`, or one-hot rows or probabilities `[N, classes]`.
        class_weight: class -> weight.

    Returns:
        Array `[N]` of type `keras.config.floatx()`.

    Raises:
        ValueError: if an example has not one class.

    Example:
        >>> weights_of([0, 1, 1], {1: 5.0}).tolist()
        [1.0, 5.0, 5.0]
    """
    if isinstance(y, (tuple, dict)) or (isinstance(y, list) and any(hasattr(part, "shape") for part in y)):
        raise ValueError("`class_weight` needs a single `y` of classes; this data has several outputs. Give `sample_weight` for each.")
    labels = np.asarray(y)
    what = f"`class_weight` needs one class an example, [N], [N, 1] or one-hot [N, classes]; these targets have shape {list(labels.shape)}"
    if labels.ndim == 0 or labels.dtype.kind not in "biuf":
        raise ValueError(f"{what} and dtype {labels.dtype}.")
    if labels.ndim > 1:
        one_each = labels.shape[-1] == 1
        if labels.ndim > 2 and int(np.prod(labels.shape[1:-1])) != 1:
            raise ValueError(f"{what}. Give `sample_weight` with a weight for each of their places.")
        if not one_each and labels.ndim == 2 and labels.dtype.kind in "iu" and labels.size and labels.max() > 1:
            raise ValueError(f"{what} and hold numbers above 1, so they are no one-hot rows. Give `sample_weight`.")
        labels = labels[..., 0] if one_each else labels.argmax(-1)
        labels = labels.reshape(len(labels))
    labels = np.round(labels).astype(np.int64)
    weights = np.ones(len(labels), keras.config.floatx())
    for label, weight in class_weight.items():
        weights[labels == int(label)] = weight
    return weights


def checked_sample_weight(y: Any, sample_weight: Any) -> Any:
    """The sample weights for targets, one structure for each output.

    Args:
        y: targets, maybe nested.
        sample_weight: an array, which then counts for every output, or a structure like `y`.

    Raises:
        ValueError: if the structures differ; it names what is missing.
    """
    nested = (tuple, list, dict)
    if not isinstance(y, nested) or not isinstance(sample_weight, nested):
        if isinstance(y, nested) and not isinstance(sample_weight, nested):
            return keras.tree.map_structure(lambda _: sample_weight, y)
        return sample_weight
    if isinstance(y, dict) != isinstance(sample_weight, dict) or len(y) != len(sample_weight):
        got = sorted(map(str, sample_weight)) if isinstance(sample_weight, dict) else f"{len(sample_weight)} of them"
        if isinstance(y, dict) and isinstance(sample_weight, dict):
            missing, unknown = sorted(set(y) - set(sample_weight)), sorted(set(sample_weight) - set(y))
            named = [f"there is none for {missing}"] * bool(missing) + [f"there is no output {unknown}"] * bool(unknown)
            raise ValueError(f"`sample_weight` needs an array for each output of `y`: {' and '.join(named)}. Give ones for the rest.")
        wanted = sorted(map(str, y)) if isinstance(y, dict) else f"{len(y)} outputs"
        raise ValueError(f"`sample_weight` needs an array for each output of `y` ({wanted}), in the same structure; got {got}.")
    if isinstance(y, dict) and set(y) != set(sample_weight):
        missing = sorted(set(y) - set(sample_weight))
        raise ValueError(f"`sample_weight` needs an array for each output of `y`: there is none for {missing}. Give ones for the rest.")
    return sample_weight


def weighted(feed: Any, class_weight: Mapping[int, float]) -> Any:
    """A feed with batches `(x, y, sample_weight)` in the place of `(x, y)`.

    Args:
        feed: a feed or `FeedSchedule`.
        class_weight: class -> weight.

    Raises:
        ValueError: if its batches are not `(x, y)` with a single `y`.
    """
    if isinstance(feed, FeedSchedule):
        return FeedSchedule({epoch: weighted(one, class_weight) for epoch, one in feed.feeds.items()})
    spec = feed.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not isinstance(spec[1], tf.TensorSpec):
        held = "hold sample weights" if isinstance(spec, tuple) and len(spec) == 3 else "are not (x, y) with a single y"
        raise ValueError(f"`class_weight` cannot be applied to this {type(feed).__name__}: its batches {held}.")
    if isinstance(feed, DatasetFeed):
        if type(feed) is not DatasetFeed:
            raise ValueError(f"`class_weight` cannot be applied to a {type(feed).__name__}; let its batches hold sample weights.")
        adapter = _private_api.data_adapter(x=feed.dataset, class_weight=class_weight)
        return DatasetFeed(adapter.get_tf_dataset(), class_weight=class_weight)
    return ClassWeightFeed(feed, class_weight)


class ClassWeightFeed(Feed):
    """The batches of another feed of blocks, with a weight for each example.

    Args:
        feed: the feed, with batches `(x, y)`.
        class_weight: class -> weight.
    """

    def __init__(self, feed: Feed, class_weight: Mapping[int, float]):
        self._feed, self._class_weight = feed, dict(class_weight)
        x, y = feed.element_spec
        self.element_spec = (x, y, tf.TensorSpec(y.shape[:1], keras.config.floatx()))
        self.endless, self.seekable, self.prefetch = feed.endless, feed.seekable, feed.prefetch
        self.told_apart, self.passes_apart = feed.told_apart, feed.passes_apart

    @property
    def steps_per_epoch(self) -> int | None:  # type: ignore[override]
        return self._feed.steps_per_epoch

    def blocks(self, position: Position) -> Iterator[Block]:
        for block in self._feed.blocks(position):
            x, y = block.tensors
            labels = np.asarray(y)
            weights = weights_of(labels.reshape(-1, *labels.shape[2:]), self._class_weight)
            yield Block((x, y, tf.convert_to_tensor(weights.reshape(labels.shape[:2]))), block.n)

    def in_epochs_of(self, steps: int) -> None:
        self._feed.in_epochs_of(steps)

    def end_pass(self) -> None:
        self._feed.end_pass()

    def describe(self) -> dict[str, Any]:
        return {**self._feed.describe(), "class_weight": class_weight_text(self._class_weight)}

    def findings(self) -> list[str]:
        return self._feed.findings()

    def state_dict(self, position: Position) -> dict[str, Any]:
        return self._feed.state_dict(position)

    def load_state_dict(self, state: dict[str, Any]) -> Position:
        return self._feed.load_state_dict(state)
