"""What a feed is: a data source cut into blocks of batches. A feed knows no model and no loop."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from loops.user_errors.reasons import described

__all__ = ["MOST_BLOCK_STEPS", "Block", "Feed", "IndexedBlock", "Position", "block_steps", "checked_feed", "compiled_steps"]

MOST_BLOCK_STEPS = 1024
_BLOCK_BYTES = 8 << 20
_NEAR = 4  # of other lengths of blocks those up to so many times as short or long will do


@dataclasses.dataclass(frozen=True)
class Position:
    """The next batch that has not been consumed.

    Attributes:
        pass_index: 0-based index of the pass over the data.
        batch: number of batches of that pass that were consumed.
    """

    pass_index: int = 0
    batch: int = 0


@dataclasses.dataclass(frozen=True)
class Block:
    """Up to K consecutive batches of one signature.

    Attributes:
        tensors: nested structure of tensors `[K, B, ...]`; batches from `n` on are padding.
        n: number of valid batches, 1 <= n <= K.
    """

    tensors: Any
    n: int

    @functools.cached_property
    def batch_spec(self) -> Any:
        """Nested structure of the `tf.TensorSpec`s of one batch, `[B, ...]`; None for a leaf that is None."""
        return tf.nest.map_structure(lambda t: None if t is None else tf.TensorSpec(t.shape[1:], t.dtype), self.tensors)

    def __repr__(self) -> str:
        return f"Block({self.n} batches in {described(self.tensors)})"

    @property
    def capacity(self) -> int:
        """K; for a block without tensors the next power of two, so that XLA compiles for few different values."""
        leaves = [leaf for leaf in tf.nest.flatten(self.tensors) if leaf is not None]
        return int(leaves[0].shape[0]) if leaves else 1 << (self.n - 1).bit_length()


@dataclasses.dataclass(frozen=True)
class IndexedBlock(Block):
    """Up to K consecutive batches, as rows of arrays that are on the device: the program gathers them.

    Attributes:
        tensors: nested structure of tensors `[N, ...]`, the arrays.
        index: which rows are the batches, int32 `[K, B]`.
    """

    index: Any = None

    @functools.cached_property
    def batch_spec(self) -> Any:
        size = self.index.shape[1]
        return tf.nest.map_structure(lambda t: None if t is None else tf.TensorSpec([size, *t.shape[1:]], t.dtype), self.tensors)

    @property
    def capacity(self) -> int:
        return int(self.index.shape[0])

    @property
    def rows(self) -> int:
        """N, the length of the arrays."""
        return int(next(t.shape[0] for t in tf.nest.flatten(self.tensors) if t is not None))


class Feed(abc.ABC):
    """A data source that a loop can read in blocks, from any position.

    Attributes:
        element_spec: nested structure of `tf.TypeSpec` of one batch.
        steps_per_epoch: batches in one pass, or None if that is not known beforehand.
        endless: True if a pass never ends.
        seekable: True if `blocks` gives the same batches again for the same position.
        prefetch: number of blocks in memory at a time: the block in training, and the next one, which a background thread makes meanwhile.
            With 0 each block is made when it is needed, for data that depends on what the model has learnt.
        told_apart: True if `describe` tells other data apart: it has a fingerprint of all that the feed gives, or the feed gives nothing.
        passes_apart: True if nothing of a pass may be read before the pass before was trained on and the hooks of the new epoch were
            called; `end_pass` is called in between. So it is where Python decides what the batches are: a callback may change that.
    """

    element_spec: Any
    steps_per_epoch: int | None = None
    endless: bool = False
    seekable: bool = True
    prefetch: int = 2
    told_apart: bool = False
    passes_apart: bool = False

    def __repr__(self) -> str:
        spec, n = getattr(self, "element_spec", None), self.steps_per_epoch
        length = "without end" if self.endless else "of unknown number" if n is None else f"{n:,} a pass"
        return f"{type(self).__name__}(batches {described(spec)}, {length}{self._more_to_show()})"

    def _more_to_show(self) -> str:
        """What else `repr` says, beginning with a comma."""
        return ""

    @abc.abstractmethod
    def blocks(self, position: Position) -> Iterator[Block]:
        """Yields the blocks of pass `position.pass_index`, beginning with batch `position.batch`."""

    def cut_like(self, compiled: Sequence[tuple[Any, int, int | None]]) -> None:
        """Called before an XLA program reads blocks: a feed may cut them to a length for which the program is compiled already.

        Args:
            compiled: of each program the type specs of a batch, the number of batches in a block, and the length of the arrays of an
                `IndexedBlock`, None for other blocks.
        """

    def held(self) -> Feed:
        """The feed as a run reads it from now on: one that has a copy of the data on the device, if it can. A new one for each run."""
        return self

    def release(self) -> None:
        """Called when a run has ended, on what `held` gave: its copy is let go."""

    @property
    def examples_per_batch(self) -> int | None:
        """Examples in a batch, that of the last one aside; None if that is not known."""
        leaves = (spec for spec in tf.nest.flatten(self.element_spec) if isinstance(spec, tf.TypeSpec) and getattr(spec, "shape", None))
        return next((spec.shape[0] for spec in leaves if spec.shape.rank and spec.shape[0] is not None), None)

    @property
    def is_short(self) -> bool:
        """Whether a single pass is made so quickly that a thread for it would take longer."""
        return False

    def in_epochs_of(self, steps: int) -> None:
        """Called before a run whose epochs are `steps` long. A feed with `passes_apart` makes each of its passes such an epoch."""

    def end_pass(self) -> None:
        """Called in the training thread when all batches of a pass were trained on, if the feed has `passes_apart`."""

    def describe(self) -> dict[str, Any]:
        """The properties that must not change when a run is resumed, JSON-able."""
        return {"feed": type(self).__name__, "batch": str(self.element_spec), "batches": self.steps_per_epoch}

    def findings(self) -> list[str]:
        """Sentences, shown before training, on what would give a resumed run other data, or make resuming slow."""
        return []

    def state_dict(self, position: Position) -> dict[str, Any]:
        """What another process needs to read on from `position`, JSON-able."""
        return dataclasses.asdict(position)

    def load_state_dict(self, state: dict[str, Any]) -> Position:
        """The position that `state_dict` described."""
        return Position(**state)


def block_steps(batch_bytes: int, most: int) -> int:
    """Number of batches in a block, for batches of `batch_bytes` bytes: some megabytes in all, and at most `most` batches."""
    return max(1, min(_BLOCK_BYTES // max(1, batch_bytes), most))


def compiled_steps(compiled: Sequence[tuple[Any, int, int | None]], batch_size: int, wanted: int) -> int | None:
    """Of the lengths of blocks that a program is compiled for (see `Feed.cut_like`) the one next to `wanted`; None if none is near."""
    found = [k for spec, k, _ in compiled if {s.shape[0] for s in tf.nest.flatten(spec) if s is not None} == {batch_size}]
    known = [k for k in found if wanted / _NEAR <= k <= wanted * _NEAR]
    return min(known, key=lambda k: max(k / wanted, wanted / k), default=None)


def checked_feed(feed: Any, what: str) -> Feed:
    """`feed` itself.

    Args:
        feed: anything.
        what: name of the argument, for the error.

    Raises:
        TypeError: if it is not a `Feed`.
    """
    if isinstance(feed, tf.data.Dataset):
        raise TypeError(f"`{what}` is a tf.data.Dataset; wrap it: loops.DatasetFeed(dataset).")
    if not isinstance(feed, Feed):
        if hasattr(feed, "first_epoch"):
            raise TypeError(f"`{what}` is a FeedSchedule, which is for training only; give a feed.")
        given = f"the class {feed.__name__}" if isinstance(feed, type) else type(feed).__name__
        raise TypeError(f"`{what}` must be a loops feed (ArrayFeed, DatasetFeed, NoFeed or your own); got {given}{_advice(feed)}.")
    return feed


def _advice(data: Any) -> str:
    if isinstance(data, type):
        return f": write {data.__name__}(...), with its arguments"
    if hasattr(data, "num_batches") and hasattr(data, "__getitem__"):
        return ": wrap it, as in loops.PyDatasetFeed(dataset)"
    if hasattr(data, "__next__"):
        return ": wrap it, as in loops.GeneratorFeed(generator)"
    if isinstance(data, (tuple, list, dict)) or hasattr(data, "__array__"):
        return ": wrap the arrays, as in loops.ArrayFeed((x, y))"
    return ""
