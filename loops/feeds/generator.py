"""Batches that a Python generator yields. Its position cannot be saved, only counted."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras

from loops.feeds.base import Block, Feed, Position
from loops.feeds.fingerprints import fingerprints_of_batches
from loops.feeds.stacking import Stacker
from loops.messages import say

__all__ = ["GeneratorFeed"]

_PEEKED = 2  # batches; dimensions in which they differ vary


_MAX_KEPT_BYTES = 256 << 20


class GeneratorFeed(Feed):
    """Batches of a Python generator, made in a background thread.

    Nothing of an epoch is read before callbacks and hooks have begun it, so they may change what the generator gives. A resumed run reads
    the batches that were trained on once more and drops them, and says so. That is exact if the generator gives the same batches again, and
    fast if `source` is a function: then only the pass in progress is read again. A `keras.utils.PyDataset` needs none of this, because its
    batches have an index.

    Args:
        source: gives batches; a batch is a nested structure of arrays, mostly `(x, y)`. It is a function that returns an iterable of
            batches, called for each pass, without arguments or with the number of the pass (from 0); or an iterable that is iterated
            once for each pass; or an iterator, whose next `steps_per_epoch` batches are a pass (without that, all batches). When an
            iterator has ended, training ends, too.
        steps_per_epoch: batches after which a pass ends; None for as many as there are.
        read_ahead: whether the batches of the next epoch may be read while this one is trained on and evaluated, because nothing changes
            what the generator gives. Then short epochs need not wait for their first batches.
        replay: whether the batches of an iterator are kept, and given again in later passes when it has ended; at most 256 MB. That is for
            evaluations.

    Raises:
        TypeError: if `source` is none of these.
        ValueError: if it gives no batch, or the first two do not fit together.

    Example:
        >>> import numpy as np
        >>> def batches(number_of_pass):
        ...     rng = np.random.default_rng(number_of_pass)
        ...     for _ in range(100):
        ...         yield rng.normal(size=[32, 4]), rng.normal(size=[32, 1])
        >>> GeneratorFeed(batches).element_spec[0].shape
        TensorShape([None, 4])
    """

    seekable = False

    def __init__(
        self,
        source: Callable[..., Iterable[Any]] | Iterable[Any],
        *,
        steps_per_epoch: int | None = None,
        read_ahead: bool = False,
        replay: bool = False,
    ):
        if not callable(source) and not isinstance(source, Iterable):
            raise TypeError(f"GeneratorFeed takes a function that returns batches, or an iterable of batches; got {type(source).__name__}.")
        if hasattr(source, "__array__") or isinstance(source, (str, bytes, dict)):
            raise TypeError(
                f"GeneratorFeed takes something that gives batches; got {type(source).__name__}: for arrays use loops.ArrayFeed."
            )
        self._source, self.steps_per_epoch = source, steps_per_epoch
        self._is_iterator = not callable(source) and iter(source) is source
        self.passes_apart = not read_ahead
        self._kept: Kept | None = Kept() if replay and self._is_iterator and steps_per_epoch is None else None
        self._epoch: int | None = None
        # With epochs that are shorter than a pass: number of the epoch -> the pass over the source that it begins in, and where.
        self._epoch_begins: dict[int, tuple[int, int]] = {0: (0, 0)}
        self._reading: Iterator[Any] | None = None
        self._passes_begun = 0
        first = self._begin(0)
        peeked = list(itertools.islice(first, _PEEKED))
        self._first: Iterator[Any] | None = itertools.chain(peeked, first)
        self._stacker = Stacker(peeked, "generator")
        self._first_batches = fingerprints_of_batches(peeked)
        self.element_spec = self._stacker.element_spec

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "first_batches": self._first_batches}

    def findings(self) -> list[str]:
        again = "the whole run" if self._is_iterator else "the pass"
        return [
            f"A Python generator cannot be saved: a resumed run reads the batches of {again} that were trained on again and drops them."
        ]

    def in_epochs_of(self, steps: int) -> None:
        if not self.passes_apart or self.steps_per_epoch is not None:
            return
        if self._is_iterator:
            self.steps_per_epoch = steps
        else:
            self._epoch = steps

    def state_dict(self, position: Position) -> dict[str, Any]:
        begins = self._epoch_begins.get(position.pass_index)
        return {**super().state_dict(position), **({"begins": list(begins)} if self._epoch is not None and begins else {})}

    def load_state_dict(self, state: dict[str, Any]) -> Position:
        position = Position(state["pass_index"], state["batch"])
        if "begins" in state:
            self._epoch_begins = {position.pass_index: (state["begins"][0], state["begins"][1])}
        return position

    def blocks(self, position: Position) -> Iterator[Block]:
        if self._epoch is not None:
            return self._stacker.blocks(self._batches_of_epoch(position, self._epoch))
        batches, drop = self._pass(position)
        self._drop(batches, drop, position)
        left = None if self.steps_per_epoch is None else self.steps_per_epoch - position.batch
        return self._stacker.blocks(itertools.islice(batches, left))

    def _drop(self, batches: Iterator[Any], count: int, position: Position) -> None:
        if count:
            say(f"Resuming: reading and dropping {count} batches of a Python generator.")
            if sum(1 for _ in itertools.islice(batches, count)) < count:
                raise ValueError(f"The generator ended before batch {position.batch} of pass {position.pass_index}, where the run stood.")

    def _batches_of_epoch(self, position: Position, length: int) -> Iterator[Any]:
        """The batches of an epoch that need not be a whole pass over the source: it ends after `length` batches, or with the pass."""
        index, count = position.pass_index, position.batch
        of_pass, done = self._epoch_begins[index]
        if self._reading is None or count:  # a run that goes on; what was read in this process is read again
            self._reading = self._of_pass(of_pass)
            self._drop(self._reading, done + count, position)
        for batch in itertools.islice(self._reading, length - count):
            count += 1
            yield batch
        if not count and done:  # the pass had ended just where the epoch before ended
            of_pass, done, self._reading = of_pass + 1, 0, self._of_pass(of_pass + 1)
            for batch in itertools.islice(self._reading, length):
                count += 1
                yield batch
        if count < length:
            self._reading = None
        following = (of_pass + 1, 0) if count < length else (of_pass, done + count)
        self._epoch_begins = {index: (of_pass, done), index + 1: following}

    def _of_pass(self, index: int) -> Iterator[Any]:
        first, self._first = self._first, None
        return first if first is not None and index == 0 else self._begin(index)

    def _pass(self, position: Position) -> tuple[Iterator[Any], int]:
        """The batches of a pass, and how many of them to drop first."""
        first, index = self._first, position.pass_index
        if self._is_iterator:
            if self._kept is not None:
                assert first is not None
                return self._kept.read(first), position.batch
            if position.batch and index < self._passes_begun:
                raise ValueError(
                    f"The generator cannot go back to batch {position.batch} of pass {index}, where the run stood when it failed: give a "
                    "function that returns a generator, or make generator and feed anew."
                )
            missed = max(0, index - self._passes_begun) * (self.steps_per_epoch or 0)
            self._passes_begun = max(self._passes_begun, index) + 1
            assert first is not None
            return first, missed + position.batch
        return self._of_pass(index), position.batch

    def _begin(self, index: int) -> Iterator[Any]:
        if not callable(self._source):
            return iter(self._source)
        takes_index = any(
            p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
            for p in inspect.signature(self._source).parameters.values()
        )
        return iter(self._source(index) if takes_index else self._source())


class Kept:
    """The batches of an iterator, kept as they are read, so that they can be read again when it has ended."""

    def __init__(self) -> None:
        self._batches: list[Any] | None = []
        self._bytes = 0

    def read(self, batches: Iterator[Any]) -> Iterator[Any]:
        """What was read before, then what `batches` still gives; only that if it is too much to keep."""
        yield from list(self._batches or [])
        for batch in batches:
            if self._batches is not None:
                self._bytes += sum(getattr(leaf, "nbytes", 0) for leaf in keras.tree.flatten(batch) if leaf is not None)
                self._batches.append(batch)
                if self._bytes > _MAX_KEPT_BYTES:
                    self._batches = None
            yield batch
