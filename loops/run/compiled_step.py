"""The training step of a run as a compiled program: its mode, what was traced into it, and when it has to be traced again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops.cluster import Cluster
from loops.engine import compile_mode
from loops.engine.execution import Execution
from loops.engine.kept_programs import KeptPrograms, StepSettings
from loops.engine.program import Program
from loops.feeds import Feed
from loops.messages import say, warn
from loops.tasks import replicas
from loops.tasks.base import Task
from loops.tasks.run_variables import CAPTURED, identities, note_on
from loops.tasks.step_context import Transform
from loops.tasks.trace_changes import TraceChanges
from loops.tasks.tracking import Tracked, apply_flags
from loops.tasks.trained import Trained
from loops.tasks.used_variables import alike

__all__ = ["CompiledStep"]


class CompiledStep:
    """Makes the programs of a run and holds the execution that runs them.

    Args:
        task: what is trained.
        strategy: how batches are spread over devices.
        mode: "graph", "xla" or "eager"; None lets `first_program` choose.
        seed: seed of `Task.seed`.
        transforms: gradient transforms, clipping included.
        observed: returns the names that hooks observe now.
        before_retrace: called before the step is traced again.

    Attributes:
        mode: how steps are compiled, None before that is decided.
        why_mode: why "auto" chose this mode, JSON-able; empty if the mode was given.
        retraces: how often the step was traced again.
        replaced: whether hooks have put other models, layers or optimizers into the task, in this process or an earlier one.
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
        before_retrace: Callable[[], Any] = lambda: None,
    ):
        self.mode = mode
        self.why_mode: dict[str, Any] = {}
        self.retraces = 0
        self.replaced = False
        self._task, self._strategy, self._seed, self._transforms, self._observed = task, strategy, seed, transforms, observed
        self._before_retrace = before_retrace
        self._execution: Execution | None = None
        self._programs = KeptPrograms.of(task)
        self._taken: list[tuple[Program, StepSettings]] = []
        self._of_eager_steps: TraceChanges | None = None
        self._cached_logs: tuple[int, dict[str, Any]] | None = None
        self._looked_at: Any = None
        self._named = self._has_run = False

    # Programs.

    def first_program(self, feed: Feed, *, steps: int | None, saved: bool, guarded: bool) -> Program:
        """The program that a run begins with. If `mode` is None, the rule of `compile_mode` chooses; the choice stands for later runs.

        Args:
            feed: what the run trains on.
            steps: length of the run in steps, None if that is unknown.
            saved: whether the run has a workdir.
            guarded: whether the program has to find non-finite steps.
        """
        if self.mode is not None:
            program = self._program(self.mode)
            if program.mode == "xla" and (sentence := compile_mode.warning(program, feed)):
                warn(f"Warning: {sentence}")
            return program
        choice = compile_mode.choose(self._program, feed, steps=steps, saved=saved, guarded=guarded)
        self.mode, self.why_mode = choice.program.mode, choice.why
        self._release(but=choice.program)
        return choice.program

    def _program(self, mode: str) -> Program:
        settings = self._settings(mode)
        program = self._programs.take(settings)
        self._taken.append((program, settings))
        return program

    def _settings(self, mode: str) -> StepSettings:
        return StepSettings("train_step", mode, self._strategy, self._seed, tuple(self._transforms), self._observed())

    def _release(self, *, but: Program | None = None, keep: bool = True) -> None:
        for program, settings in self._taken:
            if program is not but:
                self._programs.release(program, settings, keep=keep)
        self._taken = [taken for taken in self._taken if taken[0] is but]

    def run_ends(self, *, keep: bool) -> None:
        """The run has ended: other runs of the task may use its program, unless it ended by an error."""
        self._has_run = False
        self._release(keep=keep)

    def run_begins_again(self) -> None:
        """Before a further run of the loop: goes on with its program, or has the step traced again if the task has changed since then.

        Hooks change models, layers and flags at looks, too; these changes `notice_changes` finds.
        """
        announced = self._changes is not None and self._changes.is_outdated()
        if self._taken or announced or self.mode in (None, "eager"):
            return
        assert self.mode is not None
        settings, before = self._settings(self.mode), self.execution.program
        program, reason = self._programs.take_again(before, settings)
        if reason is not None:
            self._retraced_for(reason)
        self._taken.append((program, settings))
        if program is not before:
            self._execution_uses(program)

    # The execution.

    @property
    def is_open(self) -> bool:
        """Whether there is an execution."""
        return self._execution is not None

    @property
    def execution(self) -> Execution:
        """The execution; there is one after `open`."""
        assert self._execution is not None
        return self._execution

    def open(self, execution: Execution | None) -> None:
        """Sets the execution of the run; None removes it, after a first run that could not begin."""
        self._execution = execution

    @property
    def graph(self) -> tf.Graph | None:
        """The graph of the step, once it was traced; that for the feed's batches, if it is known apart from others."""
        if self._execution is None:
            return None
        return self._execution.step.graph_for(self._execution.feed.element_spec) or self._execution.step.graph

    # Tracing.

    def trace(self) -> None:
        """Traces the step unless it is traced already, and calls `remember_constants`. In eager mode only the optimizer is built."""
        if self.mode == "eager":
            self.execution.step.build(self.execution.feed.element_spec)
        else:
            self.execution.build()
        self.remember_constants()

    def create_variables(self) -> None:
        """Makes sure that the variables that are found by attribute exist. An eager step is traced only if it has to make some of them."""
        self.execution.step.build(self.execution.feed.element_spec)
        tracked = self._task.tracked
        unbuilt = [one for one in (*tracked.layers, *tracked.optimizers.values()) if not getattr(one, "built", True)]
        if self.mode != "eager" or unbuilt:
            self.execution.build()

    def trace_if_missing(self) -> None:
        """Traces the step if there is no graph of it: some variables of the run's state are found in the graph only."""
        if self.graph is None and self.mode != "eager":
            self.trace()

    def trace_ahead(self) -> None:
        """Traces a step of graph mode for the feed's batches, if the program has traced it for others only, or not at all."""
        if self.execution.step.graph_for(self.execution.feed.element_spec) is None:
            self.trace()

    def has_run(self) -> None:
        """To be called after each call: from now on the constants of the trace are those of the run."""
        self._has_run = True
        self.remember_constants()

    def remember_constants(self) -> None:
        """Remembers the values that the trace took for constants; does nothing if called again before the next retrace."""
        if self._changes is None:
            self._of_eager_steps = TraceChanges(self._task)
        self._name_what_is_not_found()

    def _name_what_is_not_found(self) -> None:
        """Names once the variables that the step uses and no attribute leads to.

        Raises:
            ValueError: if the run is saved and two such variables of an eager step cannot be told apart.
        """
        used = self.execution.step.used
        seen = len(self.execution.step.graphs), len(used)
        if seen == self._looked_at:
            return
        self._looked_at = seen
        captured = self.execution.program.variables()[CAPTURED]
        if self.mode == "eager" and used.refusal is not None and (sentence := alike(identities(captured))) is not None:
            raise ValueError(f"A run whose state is saved has to know its variables again, but {sentence}.")
        if not self._named and (note := note_on(self._task, captured)) is not None:
            self._named = True
            say(f"Note: {note}")

    def notice_changes(self, tracked: Tracked) -> None:
        """Retraces the step if the task holds other objects, or `trainable` flags changed.

        Warns if Python values changed that the traced step took for constants.

        Args:
            tracked: what the task holds now.

        Raises:
            ValueError: if a new model was not made under the strategy of the run.
        """
        if self._changes is None:
            return
        if changed := self._changes.changed_objects(tracked):
            replicas.strategy_of(tracked.model_variables(), self._strategy)
            self.retrace(f"the task has changed: {changed}")
        elif self.mode == "eager":
            if self._changes.changed_flags():  # the next step will see them; optimizers get slots then
                self._before_retrace()
                self._of_eager_steps = None
        elif names := self._changes.changed_flags():
            self.retrace(f"`trainable` changed for {names}")
        elif not self._has_run and (reason := self._changes.changed_inputs(self._transforms)):
            self.retrace(reason)  # a hook has changed it before the first step
        else:
            for sentence in self._changes.changed_constants():
                warn(f"Warning: {sentence}")

    def retrace(self, reason: str) -> None:
        """Makes a new program, so that the step is traced again before the next call, and says why."""
        self._retraced_for(reason)
        self._release(keep=False)
        if self._execution is not None:
            assert self.mode is not None
            self._execution_uses(self._program(self.mode))

    def _retraced_for(self, reason: str) -> None:
        say(f"{'The training step is another one now' if self.mode == 'eager' else 'Retracing the training step'}: {reason}.")
        self._before_retrace()
        self.retraces += 1
        self.replaced |= self._changes is not None and self._changes.changed_objects() is not None

    def _execution_uses(self, program: Program) -> None:
        self.execution.use(program)
        self._of_eager_steps, self._looked_at = None, None

    @property
    def _changes(self) -> TraceChanges | None:
        """What the steps took for constant; None before the first."""
        if self._execution is None or self.mode == "eager":
            return self._of_eager_steps
        return self._execution.program.step.changes

    def set_flags(self, flags: Mapping[str, list[bool]]) -> None:
        """Sets the `trainable` flags of a state before it is restored, and retraces if the step was traced with other flags."""
        tracked = self._task.tracked
        apply_flags(tracked, flags)
        self.notice_changes(tracked)

    @property
    def trained(self) -> Trained:
        """The objects that the last steps trained; those of the task, if it was not traced since a retrace."""
        return self._changes.trained if self._changes is not None else Trained.of(self._task)

    # What the steps reported.

    def logs_to_date(self) -> dict[str, Any]:
        """The logs of the epoch to date. They are read once at a boundary, however many hooks ask for them."""
        step = self.execution.progress.step
        if self._cached_logs is None or self._cached_logs[0] != step:
            self._cached_logs = step, self._task.results("train", self.execution.trace.epoch_logs(), self.execution.metrics)
        return self._cached_logs[1]

    def forget_logs(self) -> None:
        """Drops the cached logs, because the state went back."""
        self._cached_logs = None

    @property
    def several_replicas(self) -> bool:
        """Whether there is more than one replica."""
        return bool(self._strategy.num_replicas_in_sync > 1)

    def average_replicas(self) -> None:
        """Averages the moving statistics of layers over the replicas, where they have drifted apart."""
        if self.several_replicas:
            replicas.average_moving_statistics(self._task.tracked.statistics(), Cluster.of(self._strategy))
