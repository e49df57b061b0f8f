"""Evaluation and prediction: one pass over a feed in blocks, one fetch at the end, and the state of the task as before. Knows no hooks."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from loops.choices import Compile, check_choice
from loops.cluster import Agreement
from loops.engine.joined_outputs import joined_outputs
from loops.engine.kept_programs import ProgramOfLoop, StepSettings
from loops.engine.program import Call, Program
from loops.engine.rows import TraceLog
from loops.feeds import Feed, Position
from loops.feeds.base import checked_feed
from loops.feeds.parts import part_of
from loops.feeds.reader import FeedIteratorReader, open_reader
from loops.tasks.base import Task
from loops.tasks.checks import check_task
from loops.tasks.kept_values import KeptValues
from loops.tasks.reductions import to_floats
from loops.tasks.replicas import strategy_of
from loops.tasks.run_variables import flat
from loops.user_errors.tracebacks import shortened

__all__ = ["EmptyFeed", "EvalLoop", "PredictLoop", "Predictions"]

#: Arrays `[N, ...]` in the model's output structure; mostly one array, which is what type checkers and editors take it for.
Predictions = np.ndarray[Any, np.dtype[Any]] | Any

_MAX_CALL_STEPS = 256

Logs = Callable[[], dict[str, Any]]
OnBatch = Callable[[int, Logs, bool], None]
OnCall = Callable[[int, Logs], None]
OnPrediction = Callable[[int, Any], None]


class EmptyFeed(ValueError):
    """A feed gave no batch to evaluate or predict for."""


class EvalLoop:
    """Evaluates a task on a feed.

    All that evaluating changes is put back afterwards, so that it does not change the training: metrics, seed states, and whatever else
    `eval_step` and `eval_end` assign, weights included. Only variables that the traced step can write are kept for that. For `eval_end`,
    and in eager mode, there is no trace to ask, so all that it uses are kept.

    Args:
        task: what to evaluate.
        strategy: how batches are spread over devices; None: the strategy that the task's variables were made under.
        compile: "auto", "graph", "xla" or "eager".
        seed: seed of `Task.seed` in `eval_step`.
        of_run: whether a training run evaluates, again and again, until `release`. Python values that change meanwhile are not looked at,
            as in its training step; models, layers and `trainable` flags are.

    Example:
        >>> import keras, numpy as np, loops
        >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1, kernel_initializer="zeros")])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> EvalLoop(task).run(loops.ArrayFeed((np.ones([8, 3]), np.full([8, 1], 2.0))))
        {'loss': 4.0}
    """

    def __init__(
        self,
        task: Task,
        *,
        strategy: tf.distribute.Strategy | None = None,
        compile: Compile = "auto",
        seed: int = 0,
        of_run: bool = False,
    ):
        check_task(task, "eval_step")
        self.task = task
        strategy = strategy_of(task.tracked.model_variables(), strategy)
        self._programs = ProgramOfLoop(task, StepSettings("eval_step", resolve_mode(compile), strategy, seed), of_run=of_run)
        self._first_specs: weakref.WeakKeyDictionary[Feed, Any] = weakref.WeakKeyDictionary()
        self._kept = KeptValues()

    def __repr__(self) -> str:
        return f"EvalLoop({self.task!r}, {self._programs.settings.mode!r})"

    def trace(self, feed: Feed) -> None:
        """Traces the step for the batches of `feed`, if their shapes are known, without a read that the feed could not repeat.

        `run` uses the trace, unless the task has changed since then.
        """
        if self._programs.settings.mode == "eager":
            return
        with self._programs.borrowed(ahead=True) as program:
            feed = own_part(feed, program)
            if feed not in self._first_specs:
                self._first_specs[feed] = first_spec(program, feed)  # which may read a block
            if (spec := self._first_specs[feed]) is not None:
                program.step.concrete(spec)

    def release(self, *, keep: bool) -> None:
        """The training run that evaluates has ended; others may use the program then, unless there was an error."""
        self._programs.release(keep=keep)

    @shortened
    def run(
        self,
        feed: Feed,
        *,
        steps: int | None = None,
        on_batch: OnBatch | None = None,
        on_call: OnCall | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """One pass over `feed`.

        Args:
            feed: what to evaluate on.
            steps: batches to evaluate; None: all of a pass.
            on_batch: called before every batch, and once after the last, with the number of batches done, a function that reads the logs to
                date, and whether this is the call after the last. With it every batch is a call of its own.
            on_call: called after every call, with the number of batches done and a function that reads the logs to date.
            stopped: asked after every call; if it returns True, the evaluation ends there.

        Returns:
            name -> float (array for a metric with several values), sorted by name.
        """
        checked_feed(feed, "feed")
        with self._programs.borrowed() as program:
            return self._run(program, own_part(feed, program), steps, on_batch, on_call, stopped)

    def _run(
        self,
        program: Program,
        feed: Feed,
        steps: int | None,
        on_batch: OnBatch | None,
        on_call: OnCall | None,
        stopped: Callable[[], bool] | None,
    ) -> dict[str, Any]:
        assert program.step.training_step is not None
        program.step.training_step.assign(self.task.step)
        kept, eager = self._kept, program.mode == "eager"
        kept.keep(flat(program.variables()) if eager else self.task.tracked.metric_variables())
        self.task.reset_metrics()
        trace, metrics, done = TraceLog(), dict[str, Any](), 0
        collected: list[tuple[Call, int]] = []
        try:

            def tell(batch: int, last: bool) -> None:
                if on_batch is not None:
                    with kept.changes_stay(but=self.task.tracked.metric_variables()):
                        on_batch(batch, lambda: self._results(trace, metrics), last)

            def before(batch: int) -> bool:
                tell(batch, False)
                return batch > 0 and stopped is not None and stopped()

            most = 1 if on_batch is not None or (stopped is not None and stopped()) else _MAX_CALL_STEPS
            with kept.of_all_used() if eager else contextlib.nullcontext():
                for call, n in _calls(program, feed, steps, most, before, lambda graph: kept.keep(program.state_writes(graph))):
                    trace.append(call.rows, n, call.meta.spec)
                    metrics.update(call.meta.metrics)
                    collected.append((call, n))
                    done += n
                    if on_call is not None:
                        on_call(done, lambda: self._results(trace, metrics))
                    if stopped is not None and stopped():
                        break
            if not done:
                raise EmptyFeed("There was nothing to evaluate: the feed gave no batch.")
            tell(done, True)
            logs = self._results(trace, metrics)
            if not any(call.collected for call, _ in collected):
                return logs
            joined = joined_outputs(collected, program.step.cluster)
            with kept.of_all_used():
                return to_floats({**logs, **self.task.eval_end(joined)})
        finally:
            kept.put_back()

    def _results(self, trace: TraceLog, metrics: dict[str, Any]) -> dict[str, Any]:
        return to_floats(self.task.results("eval", trace.epoch_logs(), metrics))


class PredictLoop:
    """Predicts for every example of a feed.

    Args:
        task: the task, with a `predict_step`.
        strategy: how batches are spread over devices; None: the strategy that the task's variables were made under.
        compile: "auto", "graph", "xla" or "eager".
    """

    def __init__(self, task: Task, *, strategy: tf.distribute.Strategy | None = None, compile: Compile = "auto"):
        check_task(task, "predict_step")
        self._task = task
        strategy = strategy_of(task.tracked.model_variables(), strategy)
        self._programs = ProgramOfLoop(task, StepSettings("predict_step", resolve_mode(compile), strategy))

    def __repr__(self) -> str:
        return f"PredictLoop({self._task!r}, {self._programs.settings.mode!r})"

    @shortened
    def run(
        self,
        feed: Feed,
        *,
        steps: int | None = None,
        batches: int = 1,
        on_batch: OnPrediction | None = None,
        on_call: Callable[[int], None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> Predictions:
        """One pass over `feed`.

        Args:
            feed: what to predict for.
            steps: batches to predict for; None: all of a pass.
            batches: how many batches `on_batch` watches at a time.
            on_batch: called before these batches with the index of the first and None, and after them with the outputs. They are a call of
                their own.
            on_call: called after every call, with the number of batches done.
            stopped: asked after every call; if it returns True, the prediction ends there.

        Returns:
            The outputs in the structure that `predict_step` returns: arrays `[N, ...]`, ragged or sparse tensors where it returns those.
        """
        checked_feed(feed, "feed")

        def before(batch: int) -> bool:
            if on_batch is not None:
                on_batch(batch, None)
            return False

        most = batches if on_batch is not None or (stopped is not None and stopped()) else _MAX_CALL_STEPS
        calls, done = [], 0
        with self._programs.borrowed() as program:
            for call, n in _calls(program, own_part(feed, program), steps, most, before):
                calls.append((call, n))
                done += n
                if on_batch is not None:
                    on_batch(done - n, call.collected["output"])
                if on_call is not None:
                    on_call(done)
                if stopped is not None and stopped():
                    break
        if not calls:
            raise EmptyFeed("There was nothing to predict: the feed gave no batch.")
        return joined_outputs(calls, program.step.cluster)["output"]


def own_part(feed: Feed, program: Program) -> Feed:
    """The part of a feed that this worker process reads."""
    cluster = program.step.cluster
    return part_of(feed, cluster.index, cluster.count)


def resolve_mode(compile: Compile) -> str:
    """The program mode for a `compile` argument; "auto" is graph mode.

    Raises:
        ValueError: if `compile` is no such word.
    """
    check_choice(compile, Compile, "compile")
    return "graph" if compile == "auto" else compile


def first_spec(program: Program, feed: Feed) -> Any:
    """Type specs of the first batch for which a program would trace its step; None if only reading would show them, once.

    A program of XLA traces for the shapes of a block, so that a dimension that the feed leaves open is one more number there.
    """
    spec = feed.element_spec
    if program.mode != "xla" or all(s is None or s.shape.is_fully_defined() for s in tf.nest.flatten(spec)):
        return spec
    if not (feed.seekable and feed.told_apart):
        return None
    return next(iter(feed.blocks(Position()))).batch_spec


def _calls(
    program: Program,
    feed: Feed,
    steps: int | None,
    most: int,
    before: Callable[[int], bool],
    traced: Callable[[Any], None] | None = None,
) -> Any:
    """Yields (call, steps done) over one pass, or over `steps` steps; ends if `before`, called with the steps done, returns True.

    `traced` gets the graph of the step before each call.
    """
    if feed.endless and steps is None:
        raise ValueError("The feed never ends; say how many batches to evaluate (steps=...).")
    if program.mode == "xla":
        feed.cut_like(program.blocks)
    reader = open_reader(feed, Position(), program.mode, continuing=False, passes=1)
    agreement = Agreement(program.step.cluster, time.monotonic, lambda: (False, False))
    done = 0
    try:
        while steps is None or done < steps:
            if not reader.ready():
                agreement.before_call(0, settle=False)
                return
            known = reader.available
            n = min(most, most if known is None else known, most if steps is None else steps - done)
            n = agreement.before_call(n, settle=False)
            if before(done):
                return
            if traced is not None and (graph := program.graph_for(reader.source, feed.element_spec)) is not None:
                traced(graph)
            call: Call = program(reader.source, feed.element_spec, start=reader.start, n=n, first_step=done)
            did = n if known is not None else int(call.done)
            if did:
                yield call, did
            reader.consumed(did)
            done += did
            if did < n:
                assert isinstance(reader, FeedIteratorReader)
                reader.end_pass()
                return
    finally:
        reader.close()
