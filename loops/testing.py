"""Tools for testing training loops, ours and those of users."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["read_events"]


def read_events(logdir: str | os.PathLike[str]) -> dict[str, dict[str, list[tuple[int, Any]]]]:
    """Reads all TensorBoard event files below a directory.

    Args:
        logdir: directory to search, with its subdirectories.

    Returns:
        run -> tag -> list of (step, value) in the order in which they were written. A run is named by its path below `logdir` ("."
        for `logdir` itself). A scalar is a float, a text a str, a histogram an array of shape [buckets, 3], an image the list of its
        byte strings (width, height, PNG files). A graph has the tag "graph" and its serialized `GraphDef`.

    Example:
        >>> import tempfile
        >>> from loops.summaries import SummaryWriter
        >>> logdir = tempfile.mkdtemp()
        >>> with SummaryWriter(logdir + "/train") as writer:
        ...     writer.scalars([10], {"loss": [0.5]})
        >>> read_events(logdir)
        {'train': {'loss': [(10, 0.5)]}}
    """
    runs: dict[str, dict[str, list[tuple[int, Any]]]] = {}
    for directory, _, files in sorted(os.walk(logdir)):
        tags: defaultdict[str, list[tuple[int, Any]]] = defaultdict(list)
        for file in sorted(name for name in files if ".tfevents." in name):
            _read_file(os.path.join(directory, file), tags)
        if tags:
            runs[os.path.relpath(directory, logdir)] = dict(tags)
    return runs


def _read_file(path: str, tags: defaultdict[str, list[tuple[int, Any]]]) -> None:
    records = iter(tf.data.TFRecordDataset(path).as_numpy_iterator())
    while True:
        try:
            event = tf.compat.v1.Event.FromString(next(records))
        except StopIteration:
            return
        except tf.errors.DataLossError:  # the last record of a run that was killed while writing
            return
        if event.graph_def:
            tags["graph"].append((event.step, event.graph_def))
        for value in event.summary.value:
            tags[value.tag].append((event.step, _decode(value)))


def _decode(value: Any) -> Any:
    if value.HasField("simple_value"):
        return value.simple_value
    array = tf.make_ndarray(value.tensor)
    if array.dtype == object:
        return [bytes(item) for item in array.ravel()] if array.ndim else bytes(array.item()).decode()
    return float(array) if array.ndim == 0 else np.asarray(array)
