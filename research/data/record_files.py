"""The same examples as CSV, TFRecord and PNG files: writing them, and `tf.data` pipelines that read them back, bit for bit.

The pipelines give unbatched examples; `batches` shuffles and batches them, the same way for all.
"""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from research.study import InputError

__all__ = ["batches", "read_csv", "read_images", "read_tfrecord", "write_csv", "write_images", "write_tfrecord"]

Columns = Mapping[str, np.ndarray]
Specs = Mapping[str, tf.TensorSpec]

_TARGET = "target"
_GREY = 15  # A grey value of 0..16 becomes one of 0..240, so that the files can be looked at.


def batches(examples: tf.data.Dataset, batch_size: int, *, shuffle: int = 0, seed: int = 0) -> tf.data.Dataset:
    """Batches of examples, in an order that depends on `seed` alone; every pass has its own.

    Args:
        examples: a dataset of single examples.
        batch_size: examples per batch; the last batch may be smaller.
        shuffle: examples that are shuffled at a time: all of them, for a good shuffle. 0 keeps the order.
        seed: seed of the shuffle.
    """
    if shuffle:
        examples = examples.shuffle(shuffle, seed=seed)
    return examples.batch(batch_size).prefetch(2)


def write_csv(path: pathlib.Path, columns: Columns, target: np.ndarray) -> None:
    """Writes a table with a header; a column `[N, ...]` becomes `NAME_0`, `NAME_1`, ..., a missing number an empty cell.

    Args:
        path: file to write; its folder is made.
        columns: name -> `[N, ...]`, numbers or words.
        target: class indices `[N]`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {name: np.reshape(values, (len(values), -1)) for name, values in columns.items()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(cell for name, values in columns.items() for cell in _cells(name, values.shape[1:])), _TARGET])
        for i, label in enumerate(target):
            # The shortest digits from which the same float32 is read.
            writer.writerow([*("" if v != v else str(v) for values in flat.values() for v in values[i]), int(label)])


def read_csv(path: pathlib.Path, specs: Specs) -> tf.data.Dataset:
    """Examples `(dict of columns, target)` of what `write_csv` wrote.

    Args:
        path: the file.
        specs: name -> shape and dtype of a column of one example, in the order of the file. A missing number is NaN, a missing word "".
    """
    defaults: list[Any] = []
    for spec in specs.values():
        missing = {tf.string: "", tf.float32: np.nan}.get(spec.dtype, 0)
        defaults += [tf.constant([missing], spec.dtype)] * (spec.shape.num_elements() or 1)

    def pack(*cells: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        columns, at = {}, 0
        for name, spec in specs.items():
            count = spec.shape.num_elements() or 1
            columns[name] = tf.reshape(tf.stack(cells[at : at + count]), spec.shape)
            at += count
        return columns, cells[-1]

    return tf.data.experimental.CsvDataset(_existing(path), [*defaults, tf.int32], header=True).map(pack)


def write_tfrecord(path: pathlib.Path, columns: Columns, target: np.ndarray) -> None:
    """Writes a `tf.train.Example` for each row; arguments as for `write_csv`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i, label in enumerate(target):
            features = {name: _feature(values[i]) for name, values in columns.items()}
            features[_TARGET] = tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)]))
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def read_tfrecord(path: pathlib.Path, specs: Specs) -> tf.data.Dataset:
    """Examples `(dict of columns, target)` of what `write_tfrecord` wrote; arguments as for `read_csv`."""
    stored = {tf.int32: tf.int64}
    features = {name: tf.io.FixedLenFeature(spec.shape, stored.get(spec.dtype, spec.dtype)) for name, spec in specs.items()}
    features[_TARGET] = tf.io.FixedLenFeature([], tf.int64)

    def parse(record: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        columns = tf.io.parse_single_example(record, features)
        target = tf.cast(columns.pop(_TARGET), tf.int32)
        return {name: tf.cast(columns[name], spec.dtype) for name, spec in specs.items()}, target

    return tf.data.TFRecordDataset(_existing(path)).map(parse)


def write_images(folder: pathlib.Path, images: np.ndarray, target: np.ndarray) -> None:
    """Writes each image as `folder/CLASS/NUMBER.png`.

    Args:
        folder: made if it is not there.
        images: whole grey values in 0..16, `[N, height, width]`.
        target: class indices `[N]`.
    """
    for label in np.unique(target):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(images * _GREY, np.uint8)[..., None]
    for i, (image, label) in enumerate(zip(pixels, target, strict=True)):
        tf.io.write_file(str(folder / str(label) / f"{i:05d}.png"), tf.io.encode_png(image))


def read_images(folder: pathlib.Path, name: str, shape: Sequence[int]) -> tf.data.Dataset:
    """Examples `({name: float32 [height, width]}, target)` of what `write_images` wrote, in the order of their numbers.

    Args:
        folder: what `write_images` wrote.
        name: name of the only column.
        shape: height and width.
    """
    files = sorted(folder.glob("*/*.png"), key=lambda file: file.name)
    if not files:
        raise InputError(f"{folder} holds no images CLASS/NUMBER.png.")
    labels = np.array([int(file.parent.name) for file in files], np.int32)

    def read(file: tf.Tensor, label: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        pixels = tf.io.decode_png(tf.io.read_file(file), channels=1)
        return {name: tf.cast(tf.ensure_shape(pixels, [*shape, 1])[..., 0], tf.float32) / _GREY}, label

    return tf.data.Dataset.from_tensor_slices(([str(file) for file in files], labels)).map(read)


def _cells(name: str, shape: Sequence[int]) -> list[str]:
    return [f"{name}_{i}" for i in range(int(np.prod(shape)))] if len(shape) else [name]


def _feature(value: Any) -> tf.train.Feature:
    values = np.ravel(value)
    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if values.dtype.kind in "iu":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[str(v).encode() for v in values]))


def _existing(path: pathlib.Path) -> str:
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    return str(path)
