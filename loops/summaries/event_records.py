"""TensorBoard events, serialized, as `tf.summary` (version 2) makes them; scalars are in `event_rows.py`, files in `event_files.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

__all__ = ["file_version", "graph", "histogram", "histogram_buckets", "images", "keras_graph", "png_files", "session_start", "text"]


def file_version(wall_time: float) -> bytes:
    """The first event of a file."""
    return bytes(tf.compat.v1.Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())


def session_start(step: int, wall_time: float) -> bytes:
    """An event that makes a TensorBoard that is running drop what it has read of this run at `step` and later."""
    log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    return bytes(tf.compat.v1.Event(wall_time=wall_time, step=int(step), session_log=log).SerializeToString())


def histogram(tag: str, values: npt.ArrayLike, step: int, wall_time: float) -> list[bytes]:
    """The distribution of an array of any shape; see `histogram_buckets`."""
    return [_event(tag, histogram_buckets(values), step, wall_time, "histograms")]


def histogram_buckets(values: npt.ArrayLike, buckets: int = 30) -> npt.NDArray[np.float64]:
    """The histogram that TensorBoard expects: rows of (left edge, right edge, count), shape [buckets, 3].

    As in `tf.summary.histogram`: without data all rows are zero; if all values are equal, the buckets have no width and the last one counts
    the values. Non-finite values are not counted.

    Args:
        values: any shape and real dtype.
        buckets: number of buckets.

    Returns:
        A float64 array of shape [buckets, 3].

    Example:
        >>> histogram_buckets([0.0, 1.0, 1.0, 2.0], buckets=2).tolist()
        [[0.0, 1.0, 1.0], [1.0, 2.0, 3.0]]
    """
    data = np.asarray(values).reshape(-1).astype(np.float64)
    data = data[np.isfinite(data)]
    if not data.size:
        return np.zeros((buckets, 3))
    low, high = data.min(), data.max()
    width = (high - low) / buckets
    if width == 0.0:
        return np.stack([np.full(buckets, low), np.full(buckets, low), np.r_[np.zeros(buckets - 1), data.size]], axis=1)
    index = np.minimum(((data - low) / width).astype(np.int64), buckets - 1)
    edges = np.linspace(low, high, buckets + 1)
    return np.stack([edges[:-1], edges[1:], np.bincount(index, minlength=buckets)], axis=1)


def images(tag: str, array: npt.NDArray[Any], step: int, wall_time: float) -> list[bytes]:
    """Images of shape [n, height, width, channels], as `png_files` takes them."""
    height, width = array.shape[1:3]
    content = np.array([str(width).encode(), str(height).encode(), *png_files(array)], object)
    return [_event(tag, content, step, wall_time, "images")]


def png_files(images: npt.NDArray[Any]) -> list[bytes]:
    """The contents of PNG files: shape [n, height, width, channels] with 1, 3 or 4 channels, uint8, or floats clipped to 0..1."""
    if images.dtype != np.uint8:
        images = (np.clip(np.nan_to_num(images.astype(np.float32)), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return [tf.io.encode_png(image).numpy() for image in images]


def text(tag: str, content: str, step: int, wall_time: float) -> list[bytes]:
    """A text in Markdown."""
    return [_event(tag, content, step, wall_time, "text")]


def keras_graph(tag: str, model_json: str, wall_time: float) -> list[bytes]:
    """A Keras model for TensorBoard's conceptual graph, given as `model.to_json()`."""
    return [_event(tag, model_json, 0, wall_time, "graph_keras_model")]


def graph(graph: Any, wall_time: float) -> list[bytes]:
    """A `tf.Graph` or a `GraphDef`."""
    graph_def = graph.as_graph_def(add_shapes=True) if isinstance(graph, tf.Graph) else graph
    return [bytes(tf.compat.v1.Event(wall_time=wall_time, graph_def=graph_def.SerializeToString()).SerializeToString())]


def _event(tag: str, content: Any, step: int, wall_time: float, plugin: str) -> bytes:
    value = _value(tag, tf.compat.v1.make_tensor_proto(content), plugin)
    summary = tf.compat.v1.Summary(value=[value])
    return bytes(tf.compat.v1.Event(wall_time=wall_time, step=int(step), summary=summary).SerializeToString())


def _value(tag: str, tensor: Any, plugin: str) -> Any:
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    if plugin == "graph_keras_model":
        metadata.plugin_data.content = b"1"  # version of the format, which this plugin requires
    return tf.compat.v1.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
