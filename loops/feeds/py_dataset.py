"""A `keras.utils.PyDataset` as a feed: batches by index, made by its workers, so any position can be read at once."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import keras

from loops import _private_api
from loops.feeds.base import Block, Feed, Position
from loops.feeds.fingerprints import class_weight_text, fingerprints_of_batches
from loops.feeds.shuffling import Permutations
from loops.feeds.stacking import Stacker
from loops.messages import say

__all__ = ["PyDatasetFeed"]

_PEEKED = 2  # batches; as in Keras, dimensions in which they differ vary


class PyDatasetFeed(Feed):
    """Batches of a `keras.utils.PyDataset`, made ahead by its `workers` (threads, or processes with `use_multiprocessing`).

    The batch with index i is `dataset[i]`, so a resumed run need not read earlier batches again. It is exact if `__getitem__` depends only
    on the index and on the calls of `on_epoch_end`, which a resumed run repeats. Nothing of an epoch is read before callbacks and hooks
    have begun it, so they may change what the dataset gives. `on_epoch_end` is called in the training thread: once before the first epoch,
    as in Keras, and after each epoch. If the dataset gets shorter, epochs do too; if it gets longer, an epoch still has as many batches as
    at first, as in Keras. Both are said.

    Args:
        dataset: the dataset. A batch is `x`, `(x,)`, `(x, y)`, `(x, y, sample_weight)` or a dict.
        shuffle: whether to take the batches in another order in each pass; the order depends on `seed` and the pass alone.
        seed: seed of these orders.
        class_weight: dict from integer class to weight, for batches `(x, y)`.
        steps_per_epoch: batches of an epoch, after which the next one goes on in the dataset; None for all of them.
        read_ahead: whether batches of the next epoch may be made while this one is trained on and evaluated, because nothing changes the
            dataset. Then short epochs need not wait for their first batches. It has no effect if the dataset overrides `on_epoch_begin` or
            `on_epoch_end`.

    Raises:
        TypeError: if it is not a PyDataset.
        ValueError: if it is empty, or its batches do not fit together.

    Example:
        >>> import keras, numpy as np
        >>> class Squares(keras.utils.PyDataset):
        ...     def __len__(self):
        ...         return 10
        ...     def __getitem__(self, i):
        ...         return np.full([4, 1], i), np.full([4, 1], i**2)
        >>> feed = PyDatasetFeed(Squares(workers=2), shuffle=True)
        >>> feed.steps_per_epoch
        10
    """

    def __init__(
        self,
        dataset: keras.utils.PyDataset,
        *,
        shuffle: bool = False,
        seed: int = 0,
        class_weight: Mapping[int, float] | None = None,
        steps_per_epoch: int | None = None,
        read_ahead: bool = False,
    ):
        if not isinstance(dataset, keras.utils.PyDataset):
            raise TypeError(f"PyDatasetFeed takes a keras.utils.PyDataset, got {type(dataset).__name__}.")
        self.dataset, self._class_weight = dataset, class_weight
        n = dataset.num_batches
        if n == 0:
            raise ValueError("The PyDataset is empty: it has 0 batches.")
        self._length, self._said_length = n, n
        self.steps_per_epoch, self.endless = n, n is None
        self._epoch: int | None = None
        self.shuffle, self.seed = bool(shuffle) and n is not None, int(seed)
        self._orders = Permutations(n, self.seed) if self.shuffle else None
        peeked = [self._standardized(dataset[i]) for i in range(min(_PEEKED, n or _PEEKED))]
        self._stacker = Stacker(peeked, "PyDataset")
        self._first_batches = fingerprints_of_batches(peeked)
        self.element_spec = self._stacker.element_spec
        overridden = [
            getattr(type(dataset), name) is not getattr(keras.utils.PyDataset, name) for name in ("on_epoch_begin", "on_epoch_end")
        ]
        self.passes_apart = any(overridden) or not read_ahead
        self.seekable = not any(overridden)
        self._passes_begun = 0
        if steps_per_epoch is not None:
            self.in_epochs_of(steps_per_epoch)
        dataset.on_epoch_end()  # Keras calls it once before the first epoch

    def describe(self) -> dict[str, Any]:
        order = {
            "shuffle": self.shuffle,
            "seed": self.seed if self.shuffle else None,
            "class_weight": class_weight_text(self._class_weight),
        }
        return {**order, **super().describe(), "first_batches": self._first_batches}

    def in_epochs_of(self, steps: int) -> None:
        if not self.passes_apart:
            return  # an epoch goes on with the pass, which is read ahead
        self._epoch, self.endless = steps, False
        self.steps_per_epoch = steps if self._length is None or self._length % steps == 0 else min(steps, self._length)

    def blocks(self, position: Position) -> Iterator[Block]:
        if self.passes_apart:
            self._begin_pass(position.pass_index)
        return self._stacker.blocks(map(self._standardized, self._batches(position)))

    def end_pass(self) -> None:
        self.dataset.on_epoch_end()

    def _begin_pass(self, index: int) -> None:
        while self._passes_begun < index:  # done in another process
            self._passes_begun += 1
            self.dataset.on_epoch_begin()
            self.dataset.on_epoch_end()
        self._passes_begun += 1
        self.dataset.on_epoch_begin()

    def _batches(self, position: Position) -> Iterator[Any]:
        indices: Iterator[int] = iter(self._indices(position))
        workers, apart = int(self.dataset.workers), bool(self.dataset.use_multiprocessing)
        if workers > 1 or (workers > 0 and apart):
            return _made_by_workers(self.dataset, indices, workers, processes=apart)
        return (self.dataset[i] for i in indices)

    def _indices(self, position: Position) -> Iterable[int]:
        """The indices of the batches from a position on: those of a pass over the dataset, or of an epoch within such a pass."""
        n, epoch = self._length_now(), self._epoch
        if self._length is None or n is None:
            first = position.batch + (position.pass_index * epoch if epoch else 0)
            return itertools.count(first) if epoch is None else range(first, (position.pass_index + 1) * epoch)
        # Of epochs that are shorter than a pass, the last one of the pass is shorter still, unless the numbers fit.
        epochs = 1 if epoch is None else -(-self._length // epoch)
        of_pass, of_epoch = divmod(position.pass_index, epochs)
        begin, end = (0, n) if epoch is None else (of_epoch * epoch, min(n, (of_epoch + 1) * epoch))
        if self._orders is None:
            return range(begin + position.batch, end)
        order = [i for i in self._orders.of(of_pass).tolist() if i < n]
        return order[begin + position.batch : end]

    def _length_now(self) -> int | None:
        """How many batches of the dataset are read in a pass that begins now."""
        now, at_first = self.dataset.num_batches, self._length
        if now != self._said_length:
            self._said_length = now
            if now is not None and at_first is not None and now > at_first:
                say(f"Note: the PyDataset has {now} batches now and had {at_first} at first; an epoch still takes {at_first}, as in Keras.")
            elif now != at_first:
                say(f"Note: the PyDataset has {now} batches now and had {at_first} at first; epochs have as many as there are.")
        return now if now is None or at_first is None else min(now, at_first)

    def _standardized(self, batch: Any) -> Any:
        if isinstance(batch, dict):
            return batch
        batch = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
        if not 1 <= len(batch) <= 3:
            raise ValueError(f"A batch of a PyDataset is (x,), (x, y), (x, y, sample_weight) or a dict; this one has {len(batch)} parts.")
        if self._class_weight is not None:
            if len(batch) == 3:
                raise ValueError("Give either `sample_weight` or `class_weight`, not both: the batches hold sample weights.")
            if len(batch) == 2:
                batch = (*batch, _private_api.sample_weights_of_classes(batch[1], self._class_weight))
        return batch


def _made_by_workers(dataset: keras.utils.PyDataset, indices: Iterator[int], workers: int, *, processes: bool) -> Iterator[Any]:
    """Batches in the order of `indices`; at most `max_queue_size` of them are being made or wait to be taken."""
    pool: Executor
    if processes:
        pool = ProcessPoolExecutor(workers, initializer=_begin_worker, initargs=(dataset,))
        make: Any = _batch_in_worker
    else:
        pool, make = ThreadPoolExecutor(workers, thread_name_prefix="feed worker"), dataset.__getitem__
    under_way: deque[Future[Any]] = deque()
    try:
        for index in itertools.islice(indices, max(workers, dataset.max_queue_size)):
            under_way.append(pool.submit(make, index))
        while under_way:
            batch = under_way.popleft().result()
            for index in itertools.islice(indices, 1):
                under_way.append(pool.submit(make, index))
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_dataset_of_worker: keras.utils.PyDataset | None = None


def _begin_worker(dataset: keras.utils.PyDataset) -> None:
    global _dataset_of_worker
    _dataset_of_worker = dataset


def _batch_in_worker(index: int) -> Any:
    assert _dataset_of_worker is not None
    return _dataset_of_worker[index]
