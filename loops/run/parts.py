"""The parts of a training run. The modules beside this one act on them: `restart` begins the run, `epochs` does it, `ending` ends it."""

from __future__ import annotations

import dataclasses
from typing import Any

from loops.cluster import Agreement
from loops.engine.execution import Execution
from loops.engine.nonfinite import OnNonFinite
from loops.engine.progress import Progress
from loops.engine.timing import Accounts
from loops.feeds import Feed
from loops.hooks.base import Loop
from loops.run.compiled_step import CompiledStep
from loops.run.epoch_logs import EpochLogs
from loops.run.hook_schedule import HookSchedule
from loops.tasks.base import Task
from loops.tasks.learning_rates import LearningRates

__all__ = ["Requests", "RunParts"]


@dataclasses.dataclass
class Requests:
    """What hooks asked for. The loop does it when all hooks have acted at a boundary.

    Attributes:
        end_epoch: whether an epoch in progress counts as complete.
        save: whether to save the run.
        rollback: why to go back to the last good state, or None.
    """

    end_epoch: bool = False
    save: bool = False
    rollback: str | None = None


def _no_decisions() -> dict[str, Any]:
    return {"stop_reason": None, "skip": 0, "rollback": 0, "evaluation_modes": {}}


@dataclasses.dataclass
class RunParts:
    """The state of one training run.

    Attributes:
        loop: the loop as hooks see it; its clock, targets and outcome are read here.
        task: what is trained.
        feed: where batches come from.
        hooks: the hooks, and when they look.
        step: the compiled step, with its execution.
        accounts: where the time goes, by the loop's clock.
        progress: the counters.
        logs: logs of the epoch in progress.
        decisions: why the run stops, how often it recovered, and name -> mode of its evaluations; JSON-able, part of the saved state.
        requests: what hooks asked for.
        agreement: what the worker processes of the run agree on.
        all_hooks: names of all hooks, those included that act in another worker process only.
        feeds: which feed is read when, a `RunFeeds`.
        epoch_begins_again: True after a rollback to a state in which the epoch had not begun.
    """

    loop: Loop
    task: Task
    feed: Feed
    hooks: HookSchedule
    step: CompiledStep
    accounts: Accounts
    agreement: Agreement
    all_hooks: list[str]
    progress: Progress = dataclasses.field(default_factory=Progress)
    logs: EpochLogs = dataclasses.field(default_factory=EpochLogs)
    decisions: dict[str, Any] = dataclasses.field(default_factory=_no_decisions)
    requests: Requests = dataclasses.field(default_factory=Requests)
    epoch_begins_again: bool = False
    feeds: Any = None
    _rates: tuple[dict[str, Any], LearningRates] | None = None

    @property
    def execution(self) -> Execution:
        """What runs the steps; there is none before the first run."""
        return self.step.execution

    @property
    def rates(self) -> LearningRates:
        """The learning rates of the optimizers that the task has now."""
        return self._rates_of(self.task.optimizers)

    def _rates_of(self, optimizers: dict[str, Any]) -> LearningRates:
        if self._rates is None:
            self._rates = optimizers, LearningRates(optimizers)
        elif {name: id(o) for name, o in self._rates[0].items()} != {name: id(o) for name, o in optimizers.items()}:
            self._rates = optimizers, self._rates[1].followed_by(optimizers)
        return self._rates[1]

    def notice_changes(self) -> None:
        """Has the step traced again if hooks have changed what it was traced with. New optimizers get rates that can be scaled first."""
        tracked = self.task.tracked  # one walk through the task for both
        if self._rates is not None:
            self._rates_of(tracked.optimizers)
        self.step.notice_changes(tracked)

    @property
    def stop_reason(self) -> str | None:
        """Why training ends before its targets, or None."""
        reason: str | None = self.decisions["stop_reason"]
        return reason

    def stop(self, reason: str) -> None:
        """Ends training. If it is called several times, the first reason counts."""
        if self.stop_reason is None:
            self.decisions["stop_reason"] = reason

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of an epoch, None if an epoch is a pass over the feed."""
        return self.loop.steps_per_epoch

    @property
    def on_nonfinite(self) -> OnNonFinite:
        """What to do about a non-finite step."""
        return self.loop.on_nonfinite

    def now(self) -> float:
        """Seconds on the loop's clock."""
        return self.loop.clock()

    def agreed_now(self) -> float:
        """Seconds by which hooks that count them are due: those of the loop's clock, with several workers of the chief's."""
        return self.agreement.now()

    def target_reached(self) -> bool:
        """Whether the epochs or steps that were asked for are complete."""
        epochs, steps = self.loop.epochs, self.loop.steps
        done = self.progress.epoch + 1 if self.progress.epoch_ended else self.progress.epoch
        return (epochs is not None and done >= epochs) or (steps is not None and self.progress.step >= steps)
