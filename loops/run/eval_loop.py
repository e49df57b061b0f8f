"""Evaluation and prediction: one pass over a feed in blocks, one fetch at the end, and the state of the task as before. Knows no hooks."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from loops.choices import Compile
from loops.engine.joined_outputs import joined_outputs
from loops.engine.program import Call, Program
from loops.engine.rows import TraceLog
from loops.feeds import Feed
from loops.feeds.base import checked_feed
from loops.run.evaluation_programs import EvaluationPrograms
from loops.run.passes import calls, first_spec, own_part
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
        compile: "graph", "xla", "eager", or "auto": XLA for a pass that is so long that it saves more time than compiling takes, as far as
            the rule of `engine/compile_mode.py` knows, else a graph.
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
        self._programs = EvaluationPrograms(task, "eval_step", strategy, compile=compile, seed=seed, of_run=of_run)
        self._first_specs: weakref.WeakKeyDictionary[Feed, Any] = weakref.WeakKeyDictionary()
        self._kept = KeptValues()

    def __repr__(self) -> str:
        return f"EvalLoop({self.task!r}, {self._programs.compile!r})"

    def mode_for(self, feed: Feed, steps: int | None, *, saved: bool) -> str:
        """The mode for evaluations that a run will make on one feed, with `steps` batches in all; see `EvaluationPrograms.mode_for`."""
        return self._programs.mode_for(feed, steps, saved=saved)

    def trace(self, feed: Feed, mode: str) -> None:
        """Traces the step for the batches of `feed`, if their shapes are known, without a read that the feed could not repeat.

        `run` in this mode uses the trace, unless the task has changed since then.
        """
        if mode == "eager":
            return
        with self._programs.of(mode).borrowed(ahead=True) as program:
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
        mode: str | None = None,
        on_batch: OnBatch | None = None,
        on_call: OnCall | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """One pass over `feed`.

        Args:
            feed: what to evaluate on.
            steps: batches to evaluate; None: all of a pass.
            mode: "graph", "xla" or "eager", if that was chosen already; None: by `compile`.
            on_batch: called before every batch, and once after the last, with the number of batches done, a function that reads the logs to
                date, and whether this is the call after the last. With it every batch is a call of its own.
            on_call: called after every call, with the number of batches done and a function that reads the logs to date.
            stopped: asked after every call; if it returns True, the evaluation ends there.

        Returns:
            name -> float (array for a metric with several values), sorted by name.
        """
        checked_feed(feed, "feed")
        chosen = self._programs.of(mode).borrowed() if mode else self._programs.borrowed(feed, steps, watched=on_batch is not None)
        with chosen as program:
            program.step.cluster.check_together()
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
        cluster = program.step.cluster
        # Metrics are read by all workers or by none: what watches may be on the chief only.
        each_batch, each_call = cluster.any(on_batch is not None, on_call is not None)
        try:

            def logs_for(watched: bool) -> Logs:
                if not (watched and cluster.several):
                    return lambda: self._results(trace, metrics)
                read = self._results(trace, metrics) if done else {}
                return lambda: read

            def tell(batch: int, last: bool) -> None:
                logs = logs_for(each_batch)
                if on_batch is not None:
                    with kept.changes_stay(but=self.task.tracked.metric_variables()):
                        on_batch(batch, logs, last)

            def before(batch: int) -> bool:
                tell(batch, False)
                return batch > 0 and stopped is not None and stopped()

            def keep_writes(graph: tf.Graph) -> None:
                kept.keep(program.state_writes(graph))

            most = 1 if on_batch is not None or (stopped is not None and stopped()) else _MAX_CALL_STEPS
            with kept.of_all_used() if eager else contextlib.nullcontext():
                for call, n in calls(program, feed, steps, most, before, stopped, each_batch, keep_writes):
                    trace.append(call.rows, n, call.meta.spec)
                    metrics.update(call.meta.metrics)
                    collected.append((call, n))
                    done += n
                    logs = logs_for(each_call)
                    if on_call is not None:
                        on_call(done, logs)
            if not done:
                raise EmptyFeed("There was nothing to evaluate: the feed gave no batch.")
            tell(done, True)
            results = self._results(trace, metrics)
            if not any(call.collected for call, _ in collected):
                return results
            joined = joined_outputs(collected, program.step.cluster)
            with kept.of_all_used():
                return to_floats({**results, **self.task.eval_end(joined)})
        finally:
            kept.put_back()

    def _results(self, trace: TraceLog, metrics: dict[str, Any]) -> dict[str, Any]:
        return to_floats(self.task.results("eval", trace.epoch_logs(), metrics))


class PredictLoop:
    """Predicts for every example of a feed.

    Args:
        task: the task, with a `predict_step`.
        strategy: how batches are spread over devices; None: the strategy that the task's variables were made under.
        compile: as in `EvalLoop`.
    """

    def __init__(self, task: Task, *, strategy: tf.distribute.Strategy | None = None, compile: Compile = "auto"):
        check_task(task, "predict_step")
        self._task = task
        strategy = strategy_of(task.tracked.model_variables(), strategy)
        self._programs = EvaluationPrograms(task, "predict_step", strategy, compile=compile)

    def __repr__(self) -> str:
        return f"PredictLoop({self._task!r}, {self._programs.compile!r})"

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
        made, done = [], 0
        with self._programs.borrowed(feed, steps, watched=on_batch is not None) as program:
            program.step.cluster.check_together()
            for call, n in calls(program, own_part(feed, program), steps, most, before, stopped):
                made.append((call, n))
                done += n
                if on_batch is not None:
                    on_batch(done - n, call.collected["output"])
                if on_call is not None:
                    on_call(done)
        if not made:
            raise EmptyFeed("There was nothing to predict: the feed gave no batch.")
        return joined_outputs(made, program.step.cluster)["output"]
