"""Arrays that are kept on the device while a run reads them: the program gathers the rows of each batch, and no thread cuts blocks.

Beside a step that uses all cores a thread that gathers costs more than its own time: whoever waits for the core that it takes waits.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from loops.feeds.base import Feed, IndexedBlock, Position
from loops.feeds.buffers import Buffers, on_the_host
from loops.feeds.fingerprints import as_fed
from loops.messages import warn

__all__ = ["HeldArrays", "blank_block", "can_be_held"]

_SHARE = 1 / 8  # of the memory of the machine, or of what its control group allows
_SAMPLED_ROWS = 16
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class HeldArrays(Feed):
    """The batches of an `ArrayFeed`, as blocks that say which rows of its arrays they are.

    It copies the arrays when it is made: by who begins a run, not by the thread that reads ahead, as hooks may change them. A change is
    warned of if it is one of 16 rows that are looked at when a pass begins.

    Args:
        arrays: NumPy arrays `[N, ...]`.
        rows: N or more, the length of the tensors; memory behind the N rows is never touched. Programs are compiled for it.
        element_spec: type specs of a batch.
        pack: one value for each array -> a batch's structure.
        places: position -> for each block the rows `[K, B]` and the number of batches that count.
    """

    def __init__(
        self,
        arrays: list[np.ndarray],
        rows: int,
        element_spec: Any,
        pack: Callable[[list[Any]], Any],
        places: Callable[[Position], Iterator[tuple[np.ndarray, int]]],
    ):
        self._arrays, self._places = arrays, places
        self.element_spec = element_spec
        self._held: Any = pack([_copied(array, rows) for array in arrays])
        self._sample, self._has_warned = self._look(), False

    def blocks(self, position: Position) -> Iterator[IndexedBlock]:
        if self._look() != self._sample and not self._has_warned:
            self._has_warned = True
            warn(
                "Warning: the arrays of a feed have changed during the run, which trains on them as they were when it began; to train on "
                "what changes set feed.prefetch = 0."
            )
        held = self._held
        for index, n in self._places(position):
            yield IndexedBlock(held, n, tf.constant(index))

    def release(self) -> None:
        self._held = None

    def _look(self) -> list[bytes]:
        return [array[_sampled(len(array))].tobytes() for array in self._arrays]


def blank_block(arrays: list[np.ndarray], rows: int, pack: Callable[[list[Any]], Any], steps: int, batch_size: int) -> IndexedBlock:
    """A block with the shapes of a full one of `HeldArrays`, for a call that does no step; its memory is never touched."""
    tensors = pack([Buffers.tensor(_empty(array, rows)) for array in arrays])
    return IndexedBlock(tensors, steps, tf.zeros([steps, batch_size], tf.int32))


def can_be_held(arrays: list[Any]) -> bool:
    """Whether arrays are numbers in memory, of at most an eighth of the machine's, and the device is its CPU."""
    if not all(isinstance(a, np.ndarray) and a.dtype.kind in "biufc" and not _is_mapped(a) for a in arrays) or not on_the_host():
        return False
    return (
        4 * max(map(len, arrays)) <= np.iinfo(np.int32).max and sum(a.size * as_fed(a.dtype).itemsize for a in arrays) <= _SHARE * _memory()
    )


def _copied(array: np.ndarray, rows: int) -> tf.Tensor:
    copy = _empty(array, rows)
    copy[: len(array)] = array
    return Buffers.tensor(copy)


def _empty(array: np.ndarray, rows: int) -> np.ndarray:
    return Buffers().array([rows, *array.shape[1:]], as_fed(array.dtype))


def _sampled(n: int) -> np.ndarray:
    return np.unique(np.linspace(0, n - 1, _SAMPLED_ROWS).astype(np.int64))


def _is_mapped(array: Any) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return array is not None and not isinstance(array, bytes | bytearray) and type(array).__name__ == "mmap"


def _memory() -> int:
    """Bytes of memory that this process may use; 0 if the system does not say."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
    for limit in _LIMITS:
        try:
            memory = min(memory, int(pathlib.Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return memory
