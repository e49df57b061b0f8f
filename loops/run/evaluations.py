"""Evaluations within a training run: tells the hooks, and adds the results to the logs of the epoch in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops import _private_api, fault_points
from loops.feeds import Feed
from loops.messages import warn
from loops.run.eval_loop import EmptyFeed, EvalLoop
from loops.run.parts import RunParts

__all__ = ["Evaluations"]


class Evaluations:
    """Evaluates the task of a run.

    Args:
        parts: the run.
        strategy: how batches are spread over devices.
        compile: "auto", "graph", "xla" or "eager".
        seed: seed of `Task.seed` in `eval_step`.
    """

    def __init__(self, parts: RunParts, strategy: tf.distribute.Strategy, *, compile: str, seed: int):
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
        evaluator = self._evaluator()
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
                results = evaluator.run(feed, steps=steps, on_batch=tell if watchers else None, stopped=self._stopped)
            except EmptyFeed:
                results = {}
                warn(
                    f"Warning: there was no batch for the evaluation {name!r}, so it adds no logs. Data that is evaluated more than once "
                    "has to be given in a form that can be read again: arrays, a PyDataset, a function that returns a generator."
                )
        logs = {f"{name}_{key}": value for key, value in results.items()}
        parts.logs.evaluation.update(logs)
        for hook in parts.hooks:
            hook.on_evaluate_end(parts.loop, name, logs)
        return logs

    def _stopped(self) -> bool:
        """Whether a Keras callback has set `model.stop_evaluating`."""
        return bool(getattr(self._parts.task.model, "stop_evaluating", False))

    def _evaluator(self) -> EvalLoop:
        """The evaluation program. After a retrace of the training step it is made again, because it may depend on what has changed."""
        if self._loop is None or self._retraces != self._parts.step.retraces:
            self._loop = EvalLoop(self._parts.task, strategy=self._strategy, compile=self._compile, seed=self._seed)
            self._retraces = self._parts.step.retraces
        return self._loop
