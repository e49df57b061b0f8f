"""The pipelines study: the same data from CSV, TFRecord and image files gives the same batches, and so the same training.

Config: `research/configs/pipelines.py`. Files and pipelines: `research.data.record_files`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from research.data import datasets, record_files, tables
from research.report import metrics_table
from research.studies import heart
from research.studies.classification import make_model
from research.study import Comparison, InputError, Runs, Study, from_config, in_scope
from research.supervised import make_optimizer

__all__ = ["Examples", "build", "examples_of", "open_source", "write_sources"]

_PARTS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Data in three parts, as columns, and what is to be learnt from it.

    Attributes:
        columns: part -> name -> `[N, ...]`.
        target: part -> int32 class indices `[N]`.
        sources: kinds of files that it can be kept in.
        encode: turns batches of columns into what the model takes.
        make_model: makes the model.
        loss: its loss.
        description: one sentence on what it is.
    """

    columns: Mapping[str, Mapping[str, np.ndarray]]
    target: Mapping[str, np.ndarray]
    sources: tuple[str, ...]
    encode: Callable[[Mapping[str, Any]], Any]
    make_model: Callable[[], keras.Model]
    loss: str
    description: str

    @property
    def specs(self) -> dict[str, tf.TensorSpec]:
        """Shape and dtype of each column of one example."""
        return {
            name: tf.TensorSpec(values.shape[1:], tf.string if values.dtype.kind == "U" else values.dtype)
            for name, values in self.columns["train"].items()
        }


def examples_of(dataset: str, *, hidden: Sequence[int], data_dir: str | os.PathLike[str] | None = None, seed: int = 0) -> Examples:
    """The data sets of this study.

    Args:
        dataset: "digits" (images of 8x8) or "heart_disease" (a table with words and gaps).
        hidden: units of the hidden layers.
        data_dir: see `research.data.tables.heart_disease`.
        seed: decides how the patients are split.

    Raises:
        InputError: for another name, or data that cannot be had.
    """
    if dataset == "digits":
        data = datasets.load("digits")
        splits = dict(zip(_PARTS, (data.train, data.val, data.test), strict=True))
        return Examples(
            columns={part: {"image": split.x} for part, split in splits.items()},
            target={part: split.y for part, split in splits.items()},
            sources=("csv", "tfrecord", "images"),
            encode=lambda columns: columns["image"] / 16,
            make_model=functools.partial(make_model, (8, 8), 10, hidden=hidden),
            loss="sparse_categorical_crossentropy",
            description=data.description,
        )
    if dataset == "heart_disease":
        table = tables.heart_disease(data_dir)
        rows = dict(zip(_PARTS, heart.folds(table.target, 5, seed)[0], strict=True))
        encoder = heart.Encoder(table.columns, rows["train"], heart.KINDS, crossing=64)
        encoded = encoder({name: values[:1] for name, values in table.columns.items()})
        return Examples(
            columns={part: {name: values[index] for name, values in table.columns.items()} for part, index in rows.items()},
            target={part: table.target[index] for part, index in rows.items()},
            sources=("csv", "tfrecord"),
            encode=encoder,
            make_model=functools.partial(heart.make_model, encoded, hidden=hidden, embedding=8, categories=encoder.categories, dropout=0.0),
            loss="binary_crossentropy",
            description=table.description,
        )
    raise InputError(f"config.dataset is {dataset!r}; this study reads digits or heart_disease.")


def write_sources(folder: pathlib.Path, examples: Examples) -> None:
    """Writes all parts in all kinds of files, unless they are there.

    Args:
        folder: gets `train.csv`, `train.tfrecord`, `train/CLASS/NUMBER.png`, and the same for `val` and `test`.
        examples: what to write.

    Raises:
        InputError: if the folder cannot be written.
    """
    content = hashlib.sha256()
    for part in _PARTS:
        for values in (*examples.columns[part].values(), examples.target[part]):
            content.update(np.ascontiguousarray(values).tobytes())
    written = folder / "written.sha256"
    try:
        if written.exists() and written.read_text() == content.hexdigest():
            return
        for part in _PARTS:
            columns, target = examples.columns[part], examples.target[part]
            record_files.write_csv(folder / f"{part}.csv", columns, target)
            record_files.write_tfrecord(folder / f"{part}.tfrecord", columns, target)
            if "images" in examples.sources:
                record_files.write_images(folder / part, columns["image"], target)
        # Last, so that what was not written to its end is written again.
        written.write_text(content.hexdigest())
    except OSError as error:
        raise InputError(
            f"The files of the study cannot be written to {folder} ({error.strerror or error}); give --config.files."
        ) from error


def open_source(source: str, part: str, folder: pathlib.Path, specs: Mapping[str, tf.TensorSpec]) -> tf.data.Dataset:
    """Single examples `(dict of columns, target)` from files of one kind.

    Args:
        source: "csv", "tfrecord" or "images".
        part: "train", "val" or "test".
        folder: what `write_sources` wrote.
        specs: shape and dtype of each column of one example.
    """
    if source == "csv":
        return record_files.read_csv(folder / f"{part}.csv", specs)
    if source == "tfrecord":
        return record_files.read_tfrecord(folder / f"{part}.tfrecord", specs)
    return record_files.read_images(folder / part, "image", specs["image"].shape)


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Comparison:
    """Writes the files and makes the study, one part for each kind of file; see `research.study.build`.

    Raises:
        InputError: for a data set that this study does not have, a folder that cannot be written, or sizes that fit no model or batch.
    """
    examples = examples_of(config.dataset, hidden=config.hidden, data_dir=data_dir, seed=seed)
    folder = pathlib.Path(config.files).expanduser() / config.dataset
    write_sources(folder, examples)

    def feed(source: str, part: str) -> loops.DatasetFeed:
        read = open_source(source, part, folder, examples.specs)
        in_batches = record_files.batches(read, config.batch_size, shuffle=len(examples.target[part]) * (part == "train"), seed=seed)
        encoded = in_batches.map(lambda columns, target: (examples.encode(columns), target))
        # Neither a CSV nor a TFRecord file says how many rows it has.
        steps = -(-len(examples.target[part]) // config.batch_size)
        return loops.DatasetFeed(encoded.apply(tf.data.experimental.assert_cardinality(steps)))

    def make(source: str) -> Study:
        with from_config():
            with in_scope(strategy):
                model = examples.make_model()
                optimizer = make_optimizer(config.optimizer)
                task = loops.SupervisedTask(model, loss=examples.loss, optimizer=optimizer, metrics=["accuracy"])
            feeds = {part: feed(source, part) for part in _PARTS}
        return Study(
            task=task,
            model=model,
            train=feeds["train"],
            evaluate={"val": feeds["val"]},
            test=feeds["test"],
            title=f"{config.dataset} from {source}",
            description=f"{examples.description} Read from {source} files in {folder}.",
            preprocessing=examples.encode,
            examples={name: values[:16] for name, values in examples.columns["test"].items()},
        )

    return Comparison(
        parts={source: lambda _, source=source: make(source) for source in examples.sources},
        conclude=lambda runs: _conclude(runs, feed),
        description=f"{examples.description} Read from {', '.join(examples.sources)} files in {folder}.",
    )


def _conclude(runs: Runs, feed: Callable[[str, str], loops.DatasetFeed]) -> Sequence[str]:
    rows: dict[str, dict[str, float]] = {}
    passes: dict[str, list[Any]] = {}
    for source, run in runs.items():
        dataset = feed(source, "train").dataset
        start = time.perf_counter()
        passes[source] = list(dataset.as_numpy_iterator())
        rows[source] = {"seconds for a first pass": time.perf_counter() - start, "test accuracy": run.test["accuracy"]}
    first, *others = passes.values()
    same = all(_same_bits(first, other) for other in others)
    weights = [run.study.model.get_weights() for run in runs.values()]
    trained = all(_same_bits(weights[0], other) for other in weights[1:])
    return [
        metrics_table(rows),
        "",
        f"The {len(first)} training batches of each source are {'the same, bit for bit' if same else 'NOT the same'}; "
        f"the weights after training are {'the same, bit for bit' if trained else 'not the same'}.",
    ]


def _same_bits(one: Any, other: Any) -> bool:
    pairs = zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
