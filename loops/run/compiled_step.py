"""The training step of a run as a compiled program: in which mode, what was traced into it, and when it has to be traced again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops.engine import compile_mode
from loops.engine.execution import Execution
from loops.engine.program import Program
from loops.engine.step import GlobalStep
from loops.feeds import Feed
from loops.messages import say, warn
from loops.run.trace_changes import TraceChanges
from loops.tasks import replicas
from loops.tasks.base import Task
from loops.tasks.step_context import Transform
from loops.tasks.tracking import apply_flags

__all__ = ["CompiledStep"]


class CompiledStep:
    """Makes the programs of a run and holds the execution that runs them.

    Args:
        task: what is trained.
        strategy: how batches are spread over devices.
        mode: "graph", "xla" or "eager"; None lets `first_program` choose.
        seed: seed of `Task.seed`.
        transforms: gradient transforms, clipping included.
        observed: gives the names that hooks observe now.

    Attributes:
        mode: how steps are compiled, None while that is open.
        why_mode: what "auto" found when it chose the mode, JSON-able; else empty.
        retraces: how often the step was traced again.
    """

    def __init__(
        self,
        task: Task,
        strategy: tf.distribute.Strategy,
        *,
        mode: str | None,
        seed: int,
        transforms: Sequence[Transform],
        observed: Callable[[], frozenset[str]],
    ):
        self.mode = mode
        self.why_mode: dict[str, Any] = {}
        self.retraces = 0
        self._task, self._strategy, self._seed, self._transforms, self._observed = task, strategy, seed, transforms, observed
        self._execution: Execution | None = None
        self._changes: TraceChanges | None = None
        self._read: tuple[int, dict[str, Any]] | None = None

    # Programs.

    def first_program(self, feed: Feed, *, steps: int | None, guarded: bool) -> Program:
        """The program that a run begins with; with `mode` open, the one that is faster on this machine.

        Args:
            feed: what the run trains on.
            steps: how many steps the run will have, None if that is unknown.
            guarded: whether non-finite steps are to be found.
        """
        if self.mode is not None:
            program = self._program(self.mode)
            if program.mode == "xla" and (sentence := compile_mode.warning(program, feed)):
                warn(f"Warning: {sentence}")
            return program
        choice = compile_mode.choose(self._program, feed, steps=steps, guarded=guarded)
        self.mode, self.why_mode = choice.program.mode, choice.why
        return choice.program

    def _program(self, mode: str) -> Program:
        step = GlobalStep(
            self._task,
            "train_step",
            self._strategy,
            seed=self._seed,
            transforms=self._transforms,
            observes=self._observed(),
            fuse=mode == "graph",
        )
        return Program(step, mode)

    # The execution.

    @property
    def is_open(self) -> bool:
        """Whether there is an execution."""
        return self._execution is not None

    @property
    def execution(self) -> Execution:
        """What runs the steps, from `open` on."""
        assert self._execution is not None
        return self._execution

    def open(self, execution: Execution | None) -> None:
        """Takes the execution of the run; None gives it up, after a first run that could not begin."""
        self._execution = execution

    @property
    def compilations(self) -> int:
        """How many programs were compiled up to now."""
        return self._execution.program.compilations if self._execution is not None else 0

    @property
    def graph(self) -> tf.Graph | None:
        """The graph of the step, once it was traced."""
        return self._execution.step.graph if self._execution is not None else None

    # Tracing.

    def trace(self) -> None:
        """Traces the step if that has not happened, and remembers what the trace took for constant."""
        self.execution.build()
        self.remember()

    def trace_if_missing(self) -> None:
        """Traces the step if there is no graph of it: variables that only the traced step leads to belong to the state of a run."""
        if self.graph is None and self.mode != "eager":
            self.trace()

    def remember(self) -> None:
        """Remembers what the trace took for constant, if that has not happened since the last retrace."""
        self._changes = self._changes or TraceChanges(self._task)

    def check(self) -> None:
        """Retraces, or warns, if something changed that the traced step cannot see."""
        if self._changes is None or self.mode == "eager":
            return
        for sentence in self._changes.changed_constants():
            warn(f"Warning: {sentence}")
        if names := self._changes.changed_flags():
            self.retrace(f"`trainable` changed for {names}")

    def retrace(self, reason: str) -> None:
        """Has the step traced again before the next call, and says why."""
        say(f"Retracing the training step: {reason}.")
        self.retraces += 1
        if self._execution is not None:
            assert self.mode is not None
            self._execution.use(self._program(self.mode))
        self._changes = None

    def set_flags(self, flags: Mapping[str, list[bool]]) -> None:
        """Sets the `trainable` flags of a state that is about to be restored, and retraces if the step was traced with others."""
        apply_flags(self._task.tracked, flags)
        self.check()

    # What the steps reported.

    def logs_to_date(self) -> dict[str, Any]:
        """The logs of the epoch to date, read once at a boundary however many ask."""
        step = self.execution.progress.step
        if self._read is None or self._read[0] != step:
            self._read = step, self._task.results("train", self.execution.trace.epoch_logs(), self.execution.metrics)
        return self._read[1]

    def forget_logs(self) -> None:
        """Has the logs read again: the state went back."""
        self._read = None

    def average_replicas(self) -> None:
        """Brings statistics that drifted apart between replicas together."""
        if self._strategy.num_replicas_in_sync > 1:
            replicas.average_moving_statistics(self._task.tracked.model_variables())
