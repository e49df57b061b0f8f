"""The counters of a run, kept in one object: steps, epochs, the position in the feed, examples, seconds."""

from __future__ import annotations

import dataclasses
from typing import Any

from loops.feeds.base import Position

__all__ = ["Progress"]


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: completed `train_step` calls since the beginning of the run.
        epoch: 0-based index of the epoch in progress.
        step_in_epoch: completed steps of this epoch.
        pass_index: 0-based index of the pass over the feed in progress.
        batch: batches of this pass that were consumed.
        examples: examples that were trained on.
        seconds: wall time spent training in this run (hooks and evaluation included).
        steps_per_epoch: steps of an epoch, None while unknown.
        epoch_ended: True from the last step of an epoch until the next epoch begins.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    pass_index: int = 0
    batch: int = 0
    examples: int = 0
    seconds: float = 0.0
    steps_per_epoch: int | None = None
    epoch_ended: bool = False

    @property
    def position(self) -> Position:
        """The next batch of the feed that was not consumed."""
        return Position(self.pass_index, self.batch)

    def advance(self, steps: int, examples: int) -> None:
        """Counts `steps` completed steps over `examples` examples."""
        self.step += steps
        self.step_in_epoch += steps
        self.batch += steps
        self.examples += examples

    def end_pass(self) -> None:
        """Goes on to the next pass: the feed has given the last batch of this one."""
        self.pass_index += 1
        self.batch = 0

    def end_epoch(self) -> None:
        """Marks the epoch as complete; `epoch` keeps its index until `begin_epoch`."""
        self.epoch_ended = True

    def begin_epoch(self) -> None:
        """Goes on to the next epoch if the last one was complete."""
        if self.epoch_ended:
            self.epoch += 1
            self.step_in_epoch = 0
            self.epoch_ended = False

    def state_dict(self) -> dict[str, Any]:
        """All counters, JSON-able."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, state[field.name])
