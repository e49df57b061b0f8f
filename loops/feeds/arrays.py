"""Arrays in memory or on disk, cut into blocks just in time. Position is an index, so seeking costs nothing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.feeds.base import MOST_BLOCK_STEPS, Block, Feed, Position, block_steps, compiled_steps
from loops.feeds.buffers import Buffers
from loops.feeds.class_weights import checked_sample_weight, weights_of
from loops.feeds.fingerprints import as_fed, class_weight_text, fingerprints, named_leaves
from loops.feeds.held_arrays import HeldArrays, blank_block, can_be_held
from loops.feeds.shuffling import Permutations
from loops.feeds.split import part_of_rows

__all__ = ["ArrayFeed"]

_NEAR = 4  # a program is compiled for arrays so many times as long, and serves those so many times as short


class ArrayFeed(Feed):
    """Batches of arrays that share their first dimension.

    A pass visits every example once; the last batch may be smaller. With `shuffle`, pass `p` follows a permutation that depends on
    `seed` and `p` alone, so any batch of any pass can be read without reading the ones before it.

    A training run on a CPU copies arrays in memory that take an eighth of it at most (of the machine, or of what the control group of the
    process allows), and its program gathers the batches of the copy; the copy ends with the run. Of larger arrays, those on disk, and where
    `prefetch` is 0, a thread gathers blocks of batches, just in time. The batches are the same. As with `model.fit`, a run trains on the
    arrays as they were when it began; to change them during a run set `feed.prefetch = 0`.

    Args:
        data: array, or nested tuple, list or dict of arrays (NumPy, `np.memmap`, tensors, anything `np.asarray` takes), each `[N, ...]`.
            Sparse matrices of SciPy are made dense block by block. For supervised learning `(x, y)` or `(x, y, sample_weight)`. float64
            and other floats become `keras.config.floatx()`. None stays None.
        batch_size: examples per batch.
        shuffle: whether to permute the examples, in another order in every pass.
        seed: seed of the permutations.
        sample_weight: weights per example `[N]`, appended as third part of `(x, y)`.
        class_weight: dict from integer class to weight; needs `y`.
        drop_remainder: whether to leave out a last batch that is smaller.

    Raises:
        ValueError: if the data is empty, lengths differ, an array contains neither numbers nor strings, or weights do not fit.

    Example:
        >>> import numpy as np
        >>> feed = ArrayFeed((np.zeros([100, 4]), np.zeros([100])), batch_size=32)
        >>> feed.steps_per_epoch
        4
    """

    told_apart = True

    def __init__(
        self,
        data: Any,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        seed: int = 0,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        drop_remainder: bool = False,
    ):
        if not isinstance(batch_size, (int, float, np.integer)):
            raise TypeError(
                f"`batch_size` must be a whole number, 1 or more; got {type(batch_size).__name__}. ArrayFeed takes all arrays in one "
                "structure, as in ArrayFeed((x, y), batch_size=32)."
            )
        if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
            raise ValueError(f"`batch_size` must be a whole number, 1 or more; got {batch_size!r}.")
        data = _with_weights(data, sample_weight, class_weight)
        self._class_weight = class_weight_text(class_weight)
        structure = keras.tree.lists_to_tuples(data)
        self._structure = structure
        named = [(path, leaf) for path, leaf in keras.tree.flatten_with_path(structure) if leaf is not None]
        self._arrays = [_as_array(leaf, path) for path, leaf in named]
        self.n_examples = _common_length(self._arrays, [path for path, _ in named])
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.seed = int(seed)
        full, tail = divmod(self.n_examples, self.batch_size)
        self._tail = 0 if drop_remainder else tail
        self._full = full
        self.steps_per_epoch = full + bool(self._tail)
        if self.steps_per_epoch == 0:
            raise ValueError(f"`drop_remainder` leaves no batch: {self.n_examples} examples are fewer than batch_size={self.batch_size}.")
        self._part = (0, 1)
        self.element_spec = self._pack(self._specs())
        batch_bytes = sum(_tf_dtype(a).size * self.batch_size * int(np.prod(a.shape[1:])) for a in self._arrays)
        self.block_steps = block_steps(batch_bytes, min(MOST_BLOCK_STEPS, max(1, full)))
        self._compiled_steps: int | None = None
        self._compiled_index: int | None = None
        self._compiled_rows: int | None = None
        self._buffers = Buffers()
        self._orders = Permutations(self.n_examples, self.seed) if self.shuffle else None

    def _specs(self) -> list[tf.TensorSpec]:
        # As in Keras, the batch dimension is static exactly when all batches have one size: TensorFlow chooses kernels by it.
        first, last = part_of_rows(self.batch_size, *self._part)
        return [tf.TensorSpec([None if self._tail else last - first, *a.shape[1:]], _tf_dtype(a)) for a in self._arrays]

    def part(self, index: int, count: int) -> ArrayFeed:
        """This feed for worker `index` of `count`: the same batches, of which it gathers this worker's rows only."""
        part = copy.copy(self)
        part._part = (index, count)
        part.element_spec = part._pack(part._specs())
        return part

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """The fingerprint of each array by its name; see `loops.feeds.fingerprints`."""
        names = named_leaves(self._structure, weights="class_weight" if self._class_weight else "sample_weight")
        return fingerprints(zip((name for name, leaf in names if leaf is not None), self._arrays, strict=True))

    @property
    def examples_per_batch(self) -> int:
        return self.batch_size

    @property
    def is_short(self) -> bool:
        return self._full <= self.block_steps  # one block, and a smaller last batch

    def _more_to_show(self) -> str:
        return f", {self.n_examples:,} examples{f', shuffled with seed {self.seed}' if self.shuffle else ''}"

    def describe(self) -> dict[str, Any]:
        order = {"shuffle": self.shuffle, "seed": self.seed if self.shuffle else None, "class_weight": self._class_weight}
        described = {"examples": self.n_examples, "batch_size": self.batch_size, **order, **super().describe()}
        return {**described, "fingerprint": self.fingerprint}

    def cut_like(self, compiled: Sequence[tuple[Any, int, int | None]]) -> None:
        fitting = [one for one in compiled if one[2] is not None and self.n_examples <= one[2] <= _NEAR**2 * self.n_examples]
        self._compiled_steps = compiled_steps([one for one in compiled if one[2] is None], self.batch_size, self.block_steps)
        self._compiled_index = compiled_steps(fitting, self.batch_size, self._index_steps)
        self._compiled_rows = min((n for _, k, n in fitting if n is not None and k == self._compiled_index), default=None)

    @functools.cached_property
    def can_be_held(self) -> bool:
        """Whether a run may keep the arrays on the device, and its program gather the batches."""
        return type(self).blocks is ArrayFeed.blocks and can_be_held(self._arrays)

    @property
    def _index_steps(self) -> int:
        """The number of batches whose rows an index names; it has few bytes."""
        return min(MOST_BLOCK_STEPS, max(1, self._full))

    def held(self) -> Feed:
        if not (self.prefetch and self.can_be_held):
            return self
        return HeldArrays(self._arrays, self._held_rows, self.element_spec, self._pack, self._indices)

    @property
    def _held_rows(self) -> int:
        return self._compiled_rows or _NEAR * self.n_examples

    def blank_block(self) -> Block:
        """A block with the shapes of a full one, as a run reads it."""
        if not (self.prefetch and self.can_be_held and self._full):
            return next(iter(self.blocks(Position())))
        first, last = part_of_rows(self.batch_size, *self._part)
        return blank_block(self._arrays, self._held_rows, self._pack, self._compiled_index or self._index_steps, last - first)

    def _indices(self, position: Position) -> Iterator[tuple[np.ndarray, int]]:
        for order, begin, n, k, batch_size in self._places(position, self._compiled_index or self._index_steps):
            which, size = self._which(order, begin, n, batch_size)
            index = np.zeros([k, size], np.int32)
            index[:n] = (np.arange(which.start, which.stop) if isinstance(which, slice) else which).reshape(n, size)
            yield index, n

    def blocks(self, position: Position) -> Iterator[Block]:
        for place in self._places(position, self._compiled_steps or self.block_steps):
            yield self._cut(*place)

    def _places(self, position: Position, steps: int) -> Iterator[tuple[np.ndarray | None, int, int, int, int]]:
        """Of each block: the order of the pass, its first example, its batches, the most that it has room for, and their size."""
        order = self._orders.of(position.pass_index) if self._orders is not None else None
        first = position.batch
        while first < self._full:
            if self._orders is not None and 2 * first >= self._full:
                self._orders.prepare(position.pass_index + 1)
            n = min(steps, self._full - first)
            yield order, first * self.batch_size, n, steps, self.batch_size
            first += n
        if self._tail and first < self._full + 1:
            yield order, self._full * self.batch_size, 1, 1, self._tail

    def _cut(self, order: np.ndarray | None, begin: int, n: int, k: int, batch_size: int) -> Block:
        which, size = self._which(order, begin, n, batch_size)
        return Block(self._pack([self._stacked(a, which, n, k, size) for a in self._arrays]), n)

    def _which(self, order: np.ndarray | None, begin: int, n: int, batch_size: int) -> tuple[slice | np.ndarray, int]:
        """The rows of `n` batches, and how many of each batch are this worker's."""
        part: Any = slice(begin, begin + n * batch_size)
        first, last = part_of_rows(batch_size, *self._part)
        if last - first < batch_size:
            part = np.arange(begin, begin + n * batch_size).reshape(n, batch_size)[:, first:last].reshape(-1)
        return part if order is None else order[part], last - first

    def _stacked(self, array: Any, which: slice | np.ndarray, n: int, k: int, batch_size: int) -> tf.Tensor:
        """`n` batches of the rows `which` of an array, and padding up to `k` batches."""
        if _tf_dtype(array) == tf.string:
            rows = array[which].reshape(n, batch_size, *array.shape[1:])
            return tf.convert_to_tensor(np.concatenate([rows, np.full([k - n, *rows.shape[1:]], b"", rows.dtype)]))
        stacked = self._buffers.array([k, batch_size, *array.shape[1:]], as_fed(array.dtype))
        _gather(array, which, stacked.reshape(-1, *array.shape[1:])[: n * batch_size])
        stacked[n:] = 0
        return self._buffers.tensor(stacked)

    def _pack(self, leaves: list[Any]) -> Any:
        """Puts one value for each array back into the structure of the data; None stays None."""
        values = iter(leaves)
        return keras.tree.map_structure(lambda leaf: None if leaf is None else next(values), self._structure)


def _gather(array: Any, which: slice | np.ndarray, rows: np.ndarray) -> None:
    """Writes the rows `which` of an array into `rows`, which may have another dtype."""
    if not isinstance(array, np.ndarray):
        rows[:] = array[which].toarray()
    elif isinstance(which, slice) or not array.flags.c_contiguous:  # `np.take` would first copy all of the array
        rows[:] = array[which]
    elif array.dtype == rows.dtype:
        np.take(array, which, axis=0, out=rows, mode="clip")  # for short rows several times faster than an index; "raise" would copy
    else:
        rows[:] = np.take(array, which, axis=0)


def _tf_dtype(array: np.ndarray) -> tf.DType:
    return tf.string if array.dtype.kind in "OSU" else tf.as_dtype(as_fed(array.dtype))


def _as_array(leaf: Any, path: tuple[Any, ...]) -> Any:
    if _private_api.is_scipy_sparse(leaf):
        return leaf.tocsr()  # of the formats this one gives rows fastest
    array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    where = _where(path)
    if array.dtype.kind == "O" and not all(isinstance(v, (str, bytes)) for v in array.flat):
        raise ValueError(
            f"The data{where} has dtype object and is not text: its rows have different lengths or mixed types. "
            "Give arrays of numbers or strings, or a tf.data.Dataset of ragged tensors."
        )
    if array.dtype.kind in "Mm":
        raise ValueError(f"The data{where} has dtype {array.dtype}, which TensorFlow cannot hold; convert it to numbers first.")
    if array.ndim == 0:
        raise ValueError(f"The data{where} is a single value, {leaf!r}; an array with one row an example was expected.")
    return array


def _common_length(arrays: list[np.ndarray], paths: list[tuple[Any, ...]]) -> int:
    if not arrays:
        raise ValueError("The feed was given no array.")
    lengths = [a.shape[0] for a in arrays]
    if len(set(lengths)) > 1:
        listed = ", ".join(f"{_where(p).removeprefix(' at ') or 'data'}: {n}" for p, n in zip(paths, lengths, strict=True))
        raise ValueError(f"All arrays must have the same number of examples (first dimension); got {listed}.")
    if lengths[0] == 0:
        raise ValueError("The data is empty: its arrays have 0 examples.")
    return lengths[0]


def _where(path: tuple[Any, ...]) -> str:
    names = {0: "x", 1: "y", 2: "sample_weight"}
    head = [names.get(path[0], str(path[0]))] if path else []
    return " at " + "/".join([*head, *map(str, path[1:])]) if path else ""


def _with_weights(data: Any, sample_weight: Any, class_weight: Mapping[int, float] | None) -> Any:
    if sample_weight is None and class_weight is None:
        return data
    if sample_weight is not None and class_weight is not None:
        raise ValueError("Give either `sample_weight` or `class_weight`, not both.")
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError("`sample_weight` and `class_weight` need data of the form (x, y).")
    x, y = data
    return x, y, checked_sample_weight(y, sample_weight) if class_weight is None else weights_of(y, class_weight)
