"""Evaluations within a training run: tells the hooks, and adds the results to the logs of the epoch in progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops import _private_api, fault_points
from loops.choices import Compile
from loops.feeds import Feed
from loops.hooks.base import Hook
from loops.messages import say, warn
from loops.run.eval_loop import EmptyFeed, EvalLoop
from loops.run.parts import RunParts
from loops.triggers import Trigger, parse

__all__ = ["Evaluations"]


class Evaluations:
    """Evaluates the task of a run.

    Args:
        parts: the run.
        strategy: how batches are spread over devices.
        compile: "auto", "graph", "xla" or "eager".
        seed: seed of `Task.seed` in `eval_step`.
    """

    def __init__(self, parts: RunParts, strategy: tf.distribute.Strategy, *, compile: Compile, seed: int):
        self._parts, self._strategy, self._compile, self._seed = parts, strategy, compile, seed
        self._loop: EvalLoop | None = None
        self._retraces = 0

    def run(self, feed: Feed, name: str, *, steps: int | None = None) -> dict[str, Any]:
        """Evaluates on `feed` now.

        Args:
            feed: what to evaluate on.
            name: prefix of the logs.
            steps: batches to evaluate; None: all of a pass.

        Returns:
            "<name>_<metric>" -> float.
        """
        parts = self._parts
        parts.agreement.cluster.check_together()
        evaluator, mode = self._evaluator(), self._mode_of(feed, name)
        parts.step.average_replicas()
        if _private_api.is_model(parts.task.model):
            parts.task.model.stop_evaluating = False
        for hook in parts.hooks:
            hook.on_evaluate_begin(parts.loop, name)
        fault_points.reached(fault_points.EVALUATION)
        watchers = [hook for hook in parts.hooks if hook.watches_evaluation]

        def tell(batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
            for hook in watchers:
                hook.on_evaluate_batch(batch, logs, last)

        with parts.accounts.of("evaluation"):
            try:
                results = evaluator.run(feed, steps=steps, mode=mode, on_batch=tell if watchers else None, stopped=self._stopped)
            except EmptyFeed:
                results = {}
                warn(
                    f"Warning: there was no batch for the evaluation {name!r}, so it adds no logs. Data that is evaluated more than once "
                    "has to be given in a form that can be read again: arrays, a PyDataset, a function that returns a generator."
                )
        if parts.loop.outcome is not None:  # between two runs
            self.run_ends(keep=True)
        logs = {f"{name}_{key}": value for key, value in results.items()}
        parts.logs.evaluation.update(logs)
        for hook in parts.hooks:
            hook.on_evaluate_end(parts.loop, name, logs)
        return logs

    def trace(self) -> None:
        """Traces the evaluation step for the feeds of all evaluations that are known, so that an error in it shows before training.

        The evaluations use these traces. Nothing is read from a feed that could not be read again, and nothing else changes.
        """
        for hook in self._parts.hooks:
            if hook.evaluation is not None and hook.evaluation_feed is not None and self._will_run(hook):
                try:
                    self._evaluator().trace(hook.evaluation_feed, self._mode_of(hook.evaluation_feed, hook.evaluation))
                except Exception as error:
                    error.add_note(f"(found when the evaluation {hook.evaluation!r} was traced, before training)")
                    raise

    def run_ends(self, *, keep: bool) -> None:
        """The run has ended: other runs of the task may use its evaluation program, unless it ended by an error."""
        if self._loop is not None:
            self._loop.release(keep=keep)

    def _mode_of(self, feed: Feed, name: str) -> str:
        """The mode of an evaluation, which stays the same in all of a run, also when it is resumed.

        With compile="auto" the rule chooses it once, for all evaluations of that name up to the targets, those before a restart included.
        What is evaluated beside these is a graph: how often that will be is not known.
        """
        if self._compile != "auto":
            return self._compile
        hook = next((hook for hook in self._parts.hooks if hook.evaluation == name and hook.evaluation_feed is feed), None)
        if hook is None:
            return "graph"
        decisions = self._parts.decisions
        if name not in decisions["evaluation_modes"]:
            decisions["evaluation_modes"] = {**decisions["evaluation_modes"], name: self._chosen(hook, feed)}
        return str(decisions["evaluation_modes"][name])

    def _chosen(self, hook: Hook, feed: Feed) -> str:
        parts = self._parts
        if any(one.watches_evaluation for one in parts.hooks):
            return "graph"  # each batch is a call of its own then
        steps = getattr(hook, "steps", None) or feed.steps_per_epoch
        times = self._times(parse(hook.every))
        every = None if steps is None else steps * times
        mode = self._evaluator().mode_for(feed, every, saved=parts.loop.workdir is not None)
        if mode == "xla":
            say(f"compile='auto' takes xla for the evaluation {hook.evaluation!r}: {times:,} passes of {steps:,} steps.")
        return mode

    def _times(self, trigger: Trigger) -> int:
        """How often a hook evaluates from the first step to the targets of the run."""
        loop, length = self._parts.loop, self._parts.progress.steps_per_epoch
        epochs, steps = loop.epochs, loop.steps
        if length is not None:
            epochs, steps = (
                min((n for n in (epochs, None if steps is None else steps // length) if n is not None), default=None),
                min((n for n in (steps, None if epochs is None else epochs * length) if n is not None), default=None),
            )
        elif steps is not None:
            epochs = None
        return trigger.times_in(epochs, steps)

    def _will_run(self, hook: Hook) -> bool:
        """Whether an evaluation may come before the targets of this run are reached."""
        loop, progress, trigger = self._parts.loop, self._parts.progress, parse(hook.every)
        due, length = trigger.next_step(progress.step), progress.steps_per_epoch
        if trigger.may_fire_between_steps() or (due is not None and due <= (loop.steps or due)):
            return True
        last = loop.epochs
        if loop.steps is not None:
            if length is None:
                return True
            by_steps = progress.epoch + (loop.steps - progress.step + progress.step_in_epoch) // length
            last = by_steps if last is None else min(last, by_steps)
        ends = (dataclasses.replace(progress, epoch=epoch, epoch_ended=True) for epoch in range(progress.epoch, last or 0))
        return any(trigger.due(end, 0.0) for end in ends)

    def _stopped(self) -> bool:
        """Whether a Keras callback has set `model.stop_evaluating`."""
        return bool(getattr(self._parts.task.model, "stop_evaluating", False))

    def _evaluator(self) -> EvalLoop:
        """The evaluation program. After a retrace of the training step it is made again, because it may depend on what has changed."""
        if self._loop is None or self._retraces != self._parts.step.retraces:
            self.run_ends(keep=False)
            self._loop = EvalLoop(self._parts.task, strategy=self._strategy, compile=self._compile, seed=self._seed, of_run=True)
            self._retraces = self._parts.step.retraces
        return self._loop
