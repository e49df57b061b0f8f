"""A fingerprint of what a `tf.data` pipeline reads, as far as it can be read twice without changing what the pipeline gives.

Two things are looked at: the arrays that the pipeline was made from, for which no iterator has to be made; and the first elements of each
part of the pipeline that lies below every shuffle, cache, batch and filter, and neither calls Python nor draws random numbers. An iterator
of such a part touches no seed, no file and no counter of the pipeline itself. What maps do further up is not seen.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.dataset_inspection import Pipeline, Replay, parts
from loops.feeds.fingerprints import fingerprints

__all__ = ["fingerprint"]

# Reading the first element would wait for many others, leave something behind, or depend on what was read before.
_NOT_READ = re.compile(
    "Shuffle|Random|Cache|Snapshot|Save|Filter|Skip|TakeWhile|Service|Sql|Iterator|Generator|Group|Window|Unbatch|Sample|Directed"
)
# What only arranges elements of its input: one of these is enough.
_ARRANGES = re.compile("Batch|Prefetch|Options|Repeat|Take|Shard|MaxIntraOp|PrivateThreadPool|Model|Cardinality")
_MOST_PARTS, _MOST_ELEMENTS, _MOST_ARRAY_BYTES = 16, 4, 8 << 20


def fingerprint(dataset: tf.data.Dataset) -> dict[str, str]:
    """Name -> fingerprint of the arrays and of the first elements that can be looked at; empty if there are none.

    Args:
        dataset: any dataset. No iterator of it is made, nor of any part that shuffles.

    Example:
        >>> x = np.arange(6.0)
        >>> one, other = (tf.data.Dataset.from_tensor_slices(a).shuffle(6).batch(2) for a in (x, x + 1))
        >>> fingerprint(one) == fingerprint(other), list(fingerprint(one))
        (False, ['array 0 of the tf.data pipeline'])
    """
    arrays = [tensor for part in parts(dataset) for tensor in _private_api.arrays_in(part)]
    found = fingerprints((f"array {i} of the tf.data pipeline", _without_folders(a)) for i, a in enumerate(arrays))
    for i, part in enumerate(itertools.islice(_readable(dataset), _MOST_PARTS)):
        try:
            elements = list(itertools.islice(part, _MOST_ELEMENTS))
        except tf.errors.OpError:  # it will be seen where the data is read
            continue
        for k, element in enumerate(elements):
            name = f"element {k} of source {i} of the tf.data pipeline"
            found.update(fingerprints((f"part {j} of {name}", _without_folders(leaf)) for j, leaf in enumerate(tf.nest.flatten(element))))
    return found


def _readable(dataset: Any) -> Iterator[Any]:
    """The topmost parts of a pipeline whose first element may be read."""
    to_visit, seen = [dataset], {id(dataset)}
    while to_visit:
        part = to_visit.pop(0)
        inputs = _private_api.inputs_of(part)
        if inputs and (_ARRANGES.search(type(part).__name__) or not _may_be_read(part)):
            new = [each for each in inputs if id(each) not in seen]
            seen |= {id(each) for each in new}
            to_visit += new
        elif not _private_api.arrays_in(part) and (inputs or _may_be_read(part)):
            yield part


def _may_be_read(part: Any) -> bool:
    arrays = [array for each in parts(part) for array in _private_api.arrays_in(each)]
    if sum(int(a.shape.num_elements() or 0) * a.dtype.size for a in arrays) > _MOST_ARRAY_BYTES:  # inspecting it would copy them
        return False
    pipeline = Pipeline.of(part)
    if pipeline.replay is not Replay.NOTHING or pipeline.unsaveable is not None or pipeline.findings or not pipeline.operations:
        return False
    return not any(_NOT_READ.search(operation) for operation in pipeline.operations)


def _without_folders(value: Any) -> Any:
    """Names of files without their folders, so that data may be moved; everything else as it is."""
    if not isinstance(value, tf.Tensor) or value.dtype != tf.string:
        return value
    texts = value.numpy()
    flat = [texts] if isinstance(texts, bytes) else list(texts.flat)
    sep = os.sep.encode()
    if not all(sep in text and not text.endswith(sep) and len(text) < 4096 for text in flat):
        return value
    return np.array([os.path.basename(text) for text in flat], object).reshape(np.shape(texts))
