"""The last step of the last call: what hooks may ask of it, and what is kept of it when a run has ended."""

from __future__ import annotations

import dataclasses
from typing import Any

from loops.engine.batch_readers import eager_batch
from loops.engine.held_batches import alone
from loops.engine.program import Call
from loops.engine.recovery import arrays_of
from loops.feeds import Block, IndexedBlock

__all__ = ["LastCall"]


@dataclasses.dataclass(frozen=True)
class LastCall:
    """A call, and where its last batch is.

    Attributes:
        call: what it returned.
        source: what it read, a block or an iterator.
        index: the place of its last batch in the block.
    """

    call: Call
    source: Any
    index: int

    def observed(self) -> dict[str, Any]:
        """The tensors that hooks observe, of the last step, as arrays."""
        return dict(arrays_of(self.call.observed))

    def batch(self) -> Any:
        """The batch of the last step, as arrays.

        Raises:
            ValueError: if it was not carried out of the program.
        """
        if self.call.last_batch is not None:
            return arrays_of(self.call.last_batch)
        if "batch" in self.call.observed:
            return arrays_of(self.call.observed["batch"])
        if not isinstance(self.source, Block):
            raise ValueError(
                "The batch of a tf.data iterator stays in the program; give the hook `observes = {'batch'}` to have it carried out."
            )
        return arrays_of(eager_batch(self.source, self.index))

    def without_data(self) -> LastCall:
        """The same with nothing but its batch, if the source holds a copy of all data."""
        if not isinstance(self.source, IndexedBlock):
            return self
        return LastCall(self.call, *alone(self.source, self.index))
