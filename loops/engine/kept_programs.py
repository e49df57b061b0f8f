"""The programs of a task, kept from run to run: a second fit, evaluation or prediction traces nothing again.

A program belongs to its task and dies with it. One run at a time uses it; who asks meanwhile gets a program of its own. Before it is used
again, all that its traces took for constant is compared with what there is now, and what differs means another program. Of what a trace
takes from elsewhere (the seed of the run, gradient transforms, what hooks observe, the strategy) the settings are compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from loops.engine.program import Program
from loops.engine.step import GlobalStep
from loops.engine.summary_step import records
from loops.graphs.hidden_random_state import stateful_random_ops
from loops.graphs.walk import nodes
from loops.tasks.base import Task
from loops.tasks.step_context import Transform

__all__ = ["KeptPrograms", "ProgramOfLoop", "StepSettings"]

_ATTRIBUTE = "_tapeloops_programs"
_MOST = 8  # of one task; those used last stay
_MOST_SIGNATURES = 16  # of one program, which begins anew then


@dataclasses.dataclass(frozen=True, eq=False)
class StepSettings:
    """What a program is made for, beside the task.

    Attributes:
        method: "train_step", "eval_step" or "predict_step".
        mode: "graph", "xla" or "eager".
        strategy: how batches are spread over devices.
        seed: seed of the run.
        transforms: gradient transforms.
        observes: names of the tensors that hooks observe.
    """

    method: str
    mode: str
    strategy: tf.distribute.Strategy
    seed: int = 0
    transforms: Sequence[Transform] = ()
    observes: frozenset[str] = frozenset()

    def same_program(self, other: StepSettings) -> bool:
        """Whether one program may serve both, as far as that does not depend on what was traced."""
        mine, others = (self.method, self.mode, self.observes), (other.method, other.mode, other.observes)
        return mine == others and self.strategy is other.strategy


class KeptPrograms:
    """The programs of one task. Use `KeptPrograms.of(task)`.

    Example:
        >>> import loops
        >>> task = loops.Task()
        >>> KeptPrograms.of(task) is KeptPrograms.of(task)
        True
    """

    def __init__(self, task: Task | None = None):
        self._task = None if task is None else weakref.ref(task)
        self._lock = threading.Lock()
        self._kept: list[tuple[StepSettings, Program]] = []

    @classmethod
    def of(cls, task: Task) -> KeptPrograms:
        """Those of a task; an attribute of it, so that they end with it."""
        # Not by setattr: a class of the user's may have its own.
        found: KeptPrograms = vars(task).setdefault(_ATTRIBUTE, cls(task))
        if found._task is None or found._task() is not task:  # the task is a copy of another one
            vars(task)[_ATTRIBUTE] = found = cls(task)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptPrograms, ()  # copies of the task have none

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Program]:
        """The programs that no run uses now."""
        return iter([program for _, program in self._kept])

    def take(self, settings: StepSettings) -> Program:
        """A program for these settings, until it is `released`: one that is kept and is up to date, else a new one."""
        with self._lock:
            for kept, program in reversed(self._kept):
                if program.in_use or not kept.same_program(settings):
                    continue
                if _reason_against(program, settings) is None:
                    _begin(program, settings)
                    return program
                if _reason_against(program, kept) is not None:  # the task is another one now
                    self._forget(program)
        return self._new(settings)

    def take_again(self, program: Program, settings: StepSettings) -> tuple[Program, str | None]:
        """For the next run of a loop that released a program: that one, if it may be used, else another.

        Returns:
            The program, and what has changed since it was traced, None if nothing has.
        """
        reason = _reason_against(program, settings)
        with self._lock:
            if reason is None and not program.in_use:
                _begin(program, settings)
                return program, None
        return self.take(settings), reason

    def release(self, program: Program, settings: StepSettings, *, keep: bool = True) -> None:
        """The run that took a program has ended; it is kept for others unless something in it belongs to that run.

        Args:
            program: what `take` gave.
            settings: for what it was taken.
            keep: False after an error.
        """
        keep = keep and _may_be_kept(program)
        with self._lock:
            self._forget(program)
            program.in_use = False
            if keep:
                program.step.used.refusal = None
                self._kept = [*self._kept, (settings, program)][-_MOST:]

    def _new(self, settings: StepSettings) -> Program:
        task = None if self._task is None else self._task()
        assert task is not None
        step = GlobalStep(
            task,
            settings.method,
            settings.strategy,
            seed=settings.seed,
            transforms=settings.transforms,
            observes=settings.observes,
            fuse=settings.mode == "graph" and settings.method == "train_step",
        )
        program = Program(step, settings.mode)
        program.in_use = True
        return program

    def _forget(self, program: Program) -> None:
        self._kept = [entry for entry in self._kept if entry[1] is not program]


class ProgramOfLoop:
    """The program of a loop that evaluates or predicts: borrowed for each of its runs.

    Args:
        task: what it runs.
        settings: for what it needs a program.
        of_run: whether it keeps the program from the first borrowing to `release`, as long as the task holds the same objects and flags.
    """

    def __init__(self, task: Task, settings: StepSettings, *, of_run: bool = False):
        self.settings = settings
        self._programs, self._of_run = KeptPrograms.of(task), of_run
        self._last: Program | None = None
        self._held: Program | None = None
        self._ahead = False

    @contextlib.contextmanager
    def borrowed(self, *, ahead: bool = False) -> Iterator[Program]:
        """The program.

        Args:
            ahead: whether it is only to be traced. Until it is used first, Python values count, too, and writers of summaries.
        """
        if self._held is not None and self._is_outdated(self._held):
            self.release(keep=False)
            self._last = None
        program = self._held or self._next()
        self._held, self._ahead, failed = program if self._of_run else None, ahead, True
        try:
            yield program
            failed = False
        finally:
            if failed or not self._of_run:
                self._held = None
                self._programs.release(program, self.settings, keep=not failed)

    def release(self, *, keep: bool) -> None:
        """Gives back what is held, for others to use if it is to be kept."""
        if self._held is not None:
            self._programs.release(self._held, self.settings, keep=keep)
        self._held = None

    def _next(self) -> Program:
        if self._last is None:
            self._last = self._programs.take(self.settings)
        else:
            self._last, _ = self._programs.take_again(self._last, self.settings)
        return self._last

    def _is_outdated(self, program: Program) -> bool:
        if self._ahead:
            return _reason_against(program, self.settings) is not None or not _may_be_kept(program)
        return program.step.changes is not None and program.step.changes.is_outdated()


def _begin(program: Program, settings: StepSettings) -> None:
    program.step.seed, program.in_use = settings.seed, True
    if program.step.changes is not None:
        program.step.changes.run_begins()


def _reason_against(program: Program, settings: StepSettings) -> str | None:
    """Why a program's traces are not those that there would be now; None if they are."""
    step = program.step
    if step.changes is None:
        return None
    if step.draws_seeds and step.seed != settings.seed:
        return f"the seed of the run changed from {step.seed} to {settings.seed}"
    if step.saw_no_writer and records():
        return "tf.summary has a writer now"
    found = step.changes.changed_objects() or step.changes.changed_flags()
    return found or step.changes.changed_inputs(settings.transforms)


def _may_be_kept(program: Program) -> bool:
    step = program.step
    if program.mode == "eager" or step.changes is None or not (step.changes.complete and step.consistent):
        return False
    if len(step.graphs) > _MOST_SIGNATURES:
        return False
    if program.looked_at != len(step.graphs):
        # Summaries go to what was the default writer; hidden random state begins anew with each trace.
        program.looked_at = len(step.graphs)
        summaries = any(True for graph in step.graphs for _ in nodes(graph, lambda kind: "Summary" in kind))
        program.of_one_run = summaries or any(stateful_random_ops(graph) for graph in step.graphs)
    return not program.of_one_run
