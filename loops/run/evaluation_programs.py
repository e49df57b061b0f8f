"""The programs of a loop that evaluates or predicts, one for each mode. With compile="auto" the rule of training chooses for each pass."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import tensorflow as tf

from loops.choices import Compile, check_choice
from loops.engine import compile_mode
from loops.engine.kept_programs import ProgramOfLoop, StepSettings
from loops.engine.program import Program
from loops.feeds import Feed
from loops.tasks.base import Task

__all__ = ["EvaluationPrograms"]


class EvaluationPrograms:
    """The programs of one loop.

    Args:
        task: what is evaluated.
        method: "eval_step" or "predict_step".
        strategy: how batches are spread over devices.
        compile: "auto", "graph", "xla" or "eager".
        seed: seed of `Task.seed`.
        of_run: see `ProgramOfLoop`.

    Raises:
        ValueError: if `compile` is no such word.
    """

    def __init__(self, task: Task, method: str, strategy: tf.distribute.Strategy, *, compile: Compile, seed: int = 0, of_run: bool = False):
        check_choice(compile, Compile, "compile")
        self.compile = compile
        self._task, self._settings, self._of_run = task, StepSettings(method, "graph", strategy, seed), of_run
        self._programs: dict[str, ProgramOfLoop] = {}

    def of(self, mode: str) -> ProgramOfLoop:
        """The program of a mode."""
        if mode not in self._programs:
            self._programs[mode] = ProgramOfLoop(self._task, dataclasses.replace(self._settings, mode=mode), of_run=self._of_run)
        return self._programs[mode]

    @contextlib.contextmanager
    def borrowed(self, feed: Feed, steps: int | None, *, watched: bool) -> Iterator[Program]:
        """The program for one pass.

        Args:
            feed: what is read.
            steps: batches of the pass; None: all.
            watched: whether somebody looks at each batch, which is a call of its own then: XLA has nothing to win there.
        """
        if self.compile != "auto" or watched:
            with self.of("graph" if self.compile == "auto" else self.compile).borrowed() as program:
                yield program
            return
        with contextlib.ExitStack() as stack:
            steps = feed.steps_per_epoch if steps is None else steps
            choice = compile_mode.choose(
                lambda mode: stack.enter_context(self.of(mode).borrowed()), feed, steps=steps, saved=False, guarded=False, forward=True
            )
            yield choice.program

    def mode_for(self, feed: Feed, steps: int | None, *, saved: bool) -> str:
        """The mode for many passes. The step is traced for that, and compiled if that is XLA.

        Args:
            feed: what will be read.
            steps: batches of all passes; None: nobody knows.
            saved: whether a resumed run has to read the same.
        """
        if self.compile != "auto":
            return self.compile
        with contextlib.ExitStack() as stack:
            choice = compile_mode.choose(
                lambda mode: stack.enter_context(self.of(mode).borrowed(ahead=True)),
                feed,
                steps=steps,
                saved=saved,
                guarded=False,
                forward=True,
            )
        return str(choice.why["mode"])

    def release(self, *, keep: bool) -> None:
        """Gives back what is held; see `ProgramOfLoop`."""
        for program in self._programs.values():
            program.release(keep=keep)
