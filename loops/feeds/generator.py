"""Batches that a Python generator yields. Its position cannot be saved, only counted."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from loops.feeds.base import Block, Feed, Position
from loops.feeds.fingerprints import fingerprints_of_batches
from loops.feeds.stacking import Stacker
from loops.messages import say

__all__ = ["GeneratorFeed"]

_PEEKED = 2  # batches; dimensions in which they differ vary


class GeneratorFeed(Feed):
    """Batches of a Python generator, read ahead in a background thread.

    A resumed run reads the batches that were trained on once more and drops them, and says so. That is exact if the generator gives the
    same batches again, and fast if `source` is a function: then only the pass in progress is read again. A `keras.utils.PyDataset` needs
    none of this, because its batches have an index.

    Args:
        source: gives batches; a batch is a nested structure of arrays, mostly `(x, y)`. It is a function that returns an iterable of
            batches, called for each pass, without arguments or with the number of the pass (from 0); or an iterable that is iterated
            once for each pass; or an iterator, whose next `steps_per_epoch` batches are a pass (without that, all batches).
        steps_per_epoch: batches after which a pass ends; None for as many as there are.

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

    def __init__(self, source: Callable[..., Iterable[Any]] | Iterable[Any], *, steps_per_epoch: int | None = None):
        if not callable(source) and not isinstance(source, Iterable):
            raise TypeError(f"GeneratorFeed takes a function that returns batches, or an iterable of batches; got {type(source).__name__}.")
        if hasattr(source, "__array__") or isinstance(source, (str, bytes, dict)):
            raise TypeError(
                f"GeneratorFeed takes something that gives batches; got {type(source).__name__}: for arrays use loops.ArrayFeed."
            )
        self._source, self.steps_per_epoch = source, steps_per_epoch
        self._is_iterator = not callable(source) and iter(source) is source
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

    def blocks(self, position: Position) -> Iterator[Block]:
        batches, drop = self._pass(position)
        if drop:
            say(f"Resuming: reading and dropping {drop} batches of a Python generator.")
            if sum(1 for _ in itertools.islice(batches, drop)) < drop:
                raise ValueError(f"The generator ended before batch {position.batch} of pass {position.pass_index}, where the run stood.")
        left = None if self.steps_per_epoch is None else self.steps_per_epoch - position.batch
        return self._stacker.blocks(itertools.islice(batches, left))

    def _pass(self, position: Position) -> tuple[Iterator[Any], int]:
        """The batches of a pass, and how many of them to drop first."""
        first, index = self._first, position.pass_index
        if self._is_iterator:
            if index > 0 and self.steps_per_epoch is None:
                raise ValueError(
                    "The generator has ended and cannot begin anew: give a function that returns a generator, one that yields for as long "
                    "as training goes on, or `steps_per_epoch`."
                )
            if position.batch and index < self._passes_begun:
                raise ValueError(
                    f"The generator cannot go back to batch {position.batch} of pass {index}, where the run stood when it failed: give a "
                    "function that returns a generator, or make generator and feed anew."
                )
            missed = max(0, index - self._passes_begun) * (self.steps_per_epoch or 0)
            self._passes_begun = max(self._passes_begun, index) + 1
            assert first is not None
            return first, missed + position.batch
        self._first = None
        return first if first is not None and index == 0 else self._begin(index), position.batch

    def _begin(self, index: int) -> Iterator[Any]:
        if not callable(self._source):
            return iter(self._source)
        takes_index = any(
            p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
            for p in inspect.signature(self._source).parameters.values()
        )
        return iter(self._source(index) if takes_index else self._source())
