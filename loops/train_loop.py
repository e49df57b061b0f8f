"""The training loop: asks its hooks when they want to look, runs compiled calls exactly up to there, and lets them look.

until an epoch or step target is reached, or somebody stops it:
    begin an epoch
    until the epoch has ended:
        n = steps to the nearest look of any hook
        run up to n steps in one call
        if somebody's look is due, or the epoch ended: boundary
boundary: for each phase, for each hook: on_window_end if due, then on_epoch_end if the epoch ended
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops import replicas
from loops import workdir as workdirs
from loops.epoch_logs import EpochLogs
from loops.eval_loop import EvalLoop, resolve_mode
from loops.execution import Execution, NonFiniteStep
from loops.feeds import Feed
from loops.gradients import as_transforms
from loops.hooks.base import Hook
from loops.hooks.history import History
from loops.hooks.lineup import line_up
from loops.interrupts import Interrupts
from loops.logs import Window, to_floats
from loops.looks import Looks
from loops.program import Program
from loops.progress import Progress
from loops.schedules import LearningRates
from loops.task import Task
from loops.trace_watch import TraceWatch
from loops.traced_step import GlobalStep

__all__ = ["NonFiniteError", "TrainLoop"]

ON_NONFINITE = ("raise", "stop", "ignore")


class NonFiniteError(FloatingPointError):
    """A step made the loss or the state non-finite. The state is that from before the step."""


class TrainLoop:
    """Trains a task on a feed.

    Args:
        task: what a step of learning is.
        feed: where batches come from.
        hooks: `loops.hooks` and `keras.callbacks.Callback` objects, in any order.
        evaluate: name -> feed, evaluated at the end of every epoch; for another cadence use `hooks.Evaluate`.
        steps_per_epoch: steps of an epoch; None makes an epoch a pass over the feed.
        workdir: new folder for what the run leaves; adds TensorBoard, CSVLogger and best and last weights unless the hooks have them.
        strategy: how batches are spread over devices; None takes the one that the task's variables were made under.
        compile: "graph" (one TensorFlow graph for a window), "xla" (one XLA program), "eager" (Python, for debugging), or "auto".
        seed: seed of `Task.seed`.
        clip: bound of the global gradient norm, or a gradient transform `(gradients, variables) -> gradients`, or a list of them.
        on_nonfinite: what to do about a step that makes loss or state non-finite: "raise" `NonFiniteError`, "stop", or "ignore".
        config: settings to keep in `config.json` beside those of the loop.

    Raises:
        ValueError, TypeError: for arguments that do not fit, each with a sentence.

    Example:
        >>> import keras, numpy as np, loops
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> loop = TrainLoop(task, loops.ArrayFeed((np.ones([64, 4]), np.ones([64, 1]))))
        >>> history = loop.run(epochs=2)
        >>> loop.progress.step, loop.outcome
        (4, 'finished')
    """

    def __init__(
        self,
        task: Task,
        feed: Feed,
        hooks: Sequence[Any] = (),
        *,
        evaluate: Mapping[str, Feed] | None = None,
        steps_per_epoch: int | None = None,
        workdir: str | os.PathLike[str] | None = None,
        strategy: tf.distribute.Strategy | None = None,
        compile: str = "auto",
        seed: int = 0,
        clip: Any = None,
        on_nonfinite: str = "raise",
        config: Mapping[str, Any] | None = None,
    ):
        if not isinstance(task, Task):
            raise TypeError(
                f"`task` must be a loops.Task, got {type(task).__name__}; for a compiled Keras model use loops.KerasTask(model)."
            )
        if getattr(task.train_step, "__func__", None) is Task.train_step:
            raise TypeError(f"{type(task).__name__} defines no train_step(self, batch), so it cannot be trained.")
        if on_nonfinite not in ON_NONFINITE:
            raise ValueError(f"`on_nonfinite` must be one of {', '.join(map(repr, ON_NONFINITE))}; got {on_nonfinite!r}.")
        if steps_per_epoch is not None and (int(steps_per_epoch) != steps_per_epoch or steps_per_epoch < 1):
            raise ValueError(f"`steps_per_epoch` must be a whole number, 1 or more; got {steps_per_epoch!r}.")
        self.task, self._feed = task, _checked_feed(feed, "feed")
        self.evaluations = {name: _checked_feed(f, f"evaluate[{name!r}]") for name, f in (evaluate or {}).items()}
        self.strategy = replicas.strategy_of(task.tracked.model_variables(), strategy)
        self.steps_per_epoch = steps_per_epoch
        self._mode, self._seed, self._transforms, self._on_nonfinite = resolve_mode(compile), int(seed), as_transforms(clip), on_nonfinite
        if self._mode == "xla" and self.strategy.num_replicas_in_sync > 1:
            raise ValueError("compile='xla' compiles a window for one device; with several replicas use compile='graph'.")
        self.workdir = workdirs.check(workdir) if workdir is not None else None
        self.history = History()
        self.hooks: list[Hook] = line_up(hooks, history=self.history, evaluations=self.evaluations, workdir=self.workdir, model=task.model)
        self.progress = Progress()
        self.clock: Callable[[], float] = time.monotonic
        self.epochs: int | None = None
        self.steps: int | None = None
        self.outcome: str | None = None
        self.stop_reason: str | None = None
        self.is_chief = True
        self._logs, self._end_epoch = EpochLogs(), False
        self._looks = Looks(self.hooks)
        self._running = False
        self._watch: TraceWatch | None = None
        self._read: tuple[int, dict[str, Any]] | None = None
        self._execution: Execution | None = None
        self._evaluator: EvalLoop | None = None
        self._learning_rates: LearningRates | None = None
        self._rated: dict[str, Any] = {}
        self._config = {
            "loop": {
                "compile": compile,
                "mode": self._mode,
                "seed": self._seed,
                "steps_per_epoch": steps_per_epoch,
                "replicas": self.strategy.num_replicas_in_sync,
                "on_nonfinite": on_nonfinite,
                "clip": None if clip is None else repr(clip),
            },
            "config": dict(config or {}),
        }

    # What hooks use.

    @property
    def feed(self) -> Feed:
        """Where batches come from; assign another at a look."""
        return self._feed

    @feed.setter
    def feed(self, feed: Feed) -> None:
        self._feed = _checked_feed(feed, "feed")
        self._check_end(self.steps)
        self.progress.steps_per_epoch = self.steps_per_epoch or feed.steps_per_epoch
        if self._execution is not None:
            self._execution.switch(feed)

    @property
    def graph(self) -> tf.Graph | None:
        """The graph of the training step, once it was traced."""
        return self._execution.step.graph if self._execution is not None else None

    @property
    def learning_rate(self) -> LearningRates:
        """The learning rates of all optimizers; `loop.learning_rate = 0.1` sets them."""
        optimizers = self.task.optimizers
        if self._learning_rates is None or list(self._rated.values()) != list(optimizers.values()):
            self._learning_rates, self._rated = LearningRates(optimizers), optimizers
        return self._learning_rates

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.learning_rate.set(value)

    @property
    def stopping(self) -> bool:
        """True once somebody called `stop`."""
        return self.stop_reason is not None

    def stop(self, reason: str, *, end_epoch: bool = False) -> None:
        """Ends training at this boundary.

        Args:
            reason: a few words, shown to the user.
            end_epoch: whether an epoch in progress counts as complete, so that it is evaluated and recorded.
        """
        if self.stop_reason is None:
            self.stop_reason = reason
        self._end_epoch |= end_epoch

    def evaluate(self, feed: Feed, name: str, *, steps: int | None = None) -> dict[str, Any]:
        """Evaluates on `feed` now; the logs, prefixed with `name`, join those of the epoch in progress.

        Args:
            feed: what to evaluate on.
            name: prefix of the logs, and name of the TensorBoard run ("val" writes to `validation/`).
            steps: batches to evaluate; None takes the whole pass.

        Returns:
            "<name>_<metric>" -> float.
        """
        if self._evaluator is None:
            self._evaluator = EvalLoop(self.task, strategy=self.strategy, compile=self._mode, seed=self._seed)
        self._average_replicas()
        for hook in self._looks:
            hook.on_evaluate_begin(self, name)
        watchers = [hook for hook in self._looks if hook.watches_evaluation]

        def tell(batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
            for hook in watchers:
                hook.on_evaluate_batch(batch, logs, last)

        results = self._evaluator.run(_checked_feed(feed, name), steps=steps, on_batch=tell if watchers else None)
        logs = {f"{name}_{key}": value for key, value in results.items()}
        self._logs.evaluation.update(logs)
        for hook in self._looks:
            hook.on_evaluate_end(self, name, logs)
        return logs

    def log(self, name: str, value: Any) -> None:
        """Adds to the logs of the epoch in progress."""
        self._logs.extra[name] = value

    def retrace(self, reason: str) -> None:
        """Has the step traced anew before the next call, and says why."""
        print(f"Retracing the training step: {reason}.", flush=True)
        if self._execution is not None:
            self._execution.use(self._new_program())
        self._evaluator = None
        self._watch = None

    # Running.

    def run(self, epochs: int | None = None, steps: int | None = None) -> Any:
        """Trains until `epochs` epochs or `steps` steps are complete, counted from the very beginning; whichever comes first.

        Ctrl-C ends the run after the call in progress, with `outcome` "interrupted"; a second one ends it at once.

        Returns:
            `loop.history`, with `history` (name -> values by epoch) and `epoch`.

        Raises:
            ValueError: without a target, or if an epoch would never end.
            NonFiniteError: see `on_nonfinite`.
        """
        if self._running:
            raise RuntimeError("A hook called loop.run while the loop runs; a hook may call loop.evaluate and loop.stop.")
        self._check_targets(epochs, steps)
        self._running = True
        self.epochs, self.steps, self.outcome, self.stop_reason = epochs, steps, None, None
        begun = self.clock() - self.progress.seconds
        try:
            with Interrupts() as interrupts:
                self._begin()
                while not self._target_reached() and not self.stopping and not interrupts.requested:
                    self._run_epoch(interrupts, begun)
                self._flush()
            self.outcome = "stopped" if self.stopping else "interrupted" if interrupts.requested else "finished"
            if self.outcome != "interrupted":
                self._average_replicas()
                self.task.finalize()
        except BaseException as error:
            self.outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            raise
        finally:
            self.progress.seconds = self.clock() - begun
            self._running = False
            self._end()
        return self.history

    def _run_epoch(self, interrupts: Interrupts, begun: float) -> None:
        if self.progress.epoch_ended or self.progress.step_in_epoch == 0:
            self.progress.begin_epoch()
            self._logs = EpochLogs()
            self._execution_now.trace.new_epoch()
            self.task.reset_metrics()
            for hook in self.hooks:
                hook.on_epoch_begin(self)
        self._check_trace()
        while not (self.progress.epoch_ended or self.stopping or interrupts.requested or self._target_reached()):
            target = self._next_look()
            pass_ended = self._execution_now.advance(max(1, target - self.progress.step))
            self._watch = self._watch or TraceWatch(self.task)
            self.progress.seconds = self.clock() - begun
            self._count_epoch(pass_ended)
            if self.progress.step >= target or self.progress.epoch_ended or self._execution_now.must_settle or self._is_due_by_time():
                self._boundary()

    def _count_epoch(self, pass_ended: bool) -> None:
        progress, wanted = self.progress, self.steps_per_epoch
        if wanted is not None and progress.step_in_epoch >= wanted:
            progress.end_epoch()
        elif pass_ended and progress.step_in_epoch:
            if wanted is not None:
                print(
                    f"The feed ended after {progress.step_in_epoch} of {wanted} steps of epoch {progress.epoch + 1}; the epoch ends here."
                )
            else:
                progress.steps_per_epoch = progress.step_in_epoch
            progress.end_epoch()

    def _boundary(self) -> None:
        self._settle()
        if self.stopping:
            return
        self._visit()
        if self._end_epoch and not self.progress.epoch_ended:
            self.progress.end_epoch()
            self._visit()
        self._check_trace()

    def _check_trace(self) -> None:
        """Retraces, or warns, if something changed that the traced step cannot see."""
        if self._watch is None or self._mode == "eager":
            return
        for sentence in self._watch.changed_constants():
            print(f"Warning: {sentence}", flush=True)
        if names := self._watch.changed_flags():
            self.retrace(f"`trainable` changed for {names}")

    def _settle(self) -> None:
        bad = self._execution_now.settle()
        if bad is not None:
            self.progress.epoch_ended = False
            self._report(bad)

    def _visit(self) -> None:
        """One pass over the hooks."""
        if self.progress.epoch_ended:
            self._average_replicas()
            self._logs.train = self._train_logs()
        for hook in self._looks:
            if self._looks.due(hook, self.progress, self.clock()):
                self._look(hook)
            if self.progress.epoch_ended:
                hook.on_epoch_end(self, self._logs)
        self._execution_now.trace.forget(self._looks.oldest(self.progress.step))

    def _look(self, hook: Hook) -> None:
        opened = self._looks.take(hook, self.progress.step, self.clock())
        if opened is not None:
            first, seconds = opened
            run = self._execution_now
            window = Window(run.trace, first, self.progress.step, seconds, self._logs_to_date, run.observed, run.batch)
            hook.on_window_end(self, window)

    def _next_look(self) -> int:
        """The nearest step at which a hook wants to look, the epoch ends, or the run does."""
        step = self.progress.step
        targets = [self._looks.next_step(step), self.steps]
        if self.steps_per_epoch is not None:
            targets.append(step + self.steps_per_epoch - self.progress.step_in_epoch)
        return min((t for t in targets if t is not None), default=1 << 62)

    def _is_due_by_time(self) -> bool:
        return self._looks.due_by_time(self.progress, self.clock())

    def _flush(self) -> None:
        """Settles what was run since the last look, and gives hooks that want it their last window."""
        self._settle()
        for hook in self._looks:
            if hook.final_window:
                self._look(hook)

    def _report(self, bad: NonFiniteStep) -> None:
        message = bad.describe()
        if self._policy() == "raise":
            raise NonFiniteError(message)
        print(message, flush=True)
        self.stop(message)

    def _train_logs(self) -> dict[str, Any]:
        """The logs of the epoch to date, read once at a boundary however many ask."""
        step = self.progress.step
        if self._read is None or self._read[0] != step:
            self._read = step, self.task.results("train", self._execution_now.trace.epoch_logs(), self._execution_now.metrics)
        return self._read[1]

    def _logs_to_date(self) -> dict[str, Any]:
        return to_floats(self._train_logs())

    def _target_reached(self) -> bool:
        done = self.progress.epoch + 1 if self.progress.epoch_ended else self.progress.epoch
        return (self.epochs is not None and done >= self.epochs) or (self.steps is not None and self.progress.step >= self.steps)

    def _begin(self) -> None:
        self._end_epoch = False
        self.task.follow(self.progress)
        if self.workdir is not None and self._execution is None:
            workdirs.claim(self.workdir, self._config)
        for hook in self.hooks:
            hook.on_train_begin(self)
        if self._execution is None:
            continuing = self.steps_per_epoch is not None
            guarded = self._policy() != "ignore"
            self._execution = Execution(self._new_program(), self._feed, self.progress, guarded=guarded, continuing=continuing)
        self._looks.start(self.progress.step, self.clock())
        if self.steps_per_epoch is not None or self._feed.steps_per_epoch is not None:
            self.progress.steps_per_epoch = self.steps_per_epoch or self._feed.steps_per_epoch

    def _end(self) -> None:
        """Every hook gets its `on_train_end`, whatever the others do; the first error of theirs is raised if nothing else was."""
        if self._execution is not None:
            self._execution.rewind()
        errors: list[Exception] = []
        for hook in self._looks:
            try:
                hook.on_train_end(self)
            except Exception as error:  # the others come first
                errors.append(error)
        if errors and sys.exc_info()[0] is None:
            self.outcome = "failed"
            raise errors[0]

    @property
    def _execution_now(self) -> Execution:
        assert self._execution is not None
        return self._execution

    def _new_program(self) -> Program:
        observes = frozenset().union(*(hook.observes for hook in self.hooks))
        step = GlobalStep(self.task, "train_step", self.strategy, seed=self._seed, transforms=self._transforms, observes=observes)
        return Program(step, self._mode)

    def _policy(self) -> str:
        asked = {hook.on_nonfinite for hook in self.hooks}
        return next((policy for policy in ON_NONFINITE if policy in asked), self._on_nonfinite)

    def _average_replicas(self) -> None:
        if self.strategy.num_replicas_in_sync > 1:
            replicas.average_moving_statistics(self.task.tracked.model_variables())

    def _check_targets(self, epochs: int | None, steps: int | None) -> None:
        for name, value in (("epochs", epochs), ("steps", steps)):
            if value is not None and (isinstance(value, bool) or int(value) != value or value < 0):
                raise ValueError(f"`{name}` must be a whole number, 0 or more; got {value!r}.")
        if epochs is None and steps is None:
            raise ValueError("Say how far to train: run(epochs=...) or run(steps=...).")
        self._check_end(steps)

    def _check_end(self, steps: int | None) -> None:
        if self._feed.endless and self.steps_per_epoch is None and steps is None:
            raise ValueError("The feed never ends, so an epoch would not either: give TrainLoop `steps_per_epoch`, or run(steps=...).")


def _checked_feed(feed: Any, what: str) -> Feed:
    if isinstance(feed, tf.data.Dataset):
        raise TypeError(f"`{what}` is a tf.data.Dataset; wrap it: loops.DatasetFeed(dataset).")
    if not isinstance(feed, Feed):
        raise TypeError(f"`{what}` must be a loops feed (ArrayFeed, DatasetFeed, NoFeed or your own); got {type(feed).__name__}.")
    return feed
