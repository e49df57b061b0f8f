"""The training loop as its user sees it: what it is given, `run`, and what hooks may ask of it. How it runs is in `loops/run/`."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops.choices import Compile, NonFiniteAction, Resume, check_choice
from loops.cluster import Agreement, Cluster
from loops.engine.execution import Execution
from loops.engine.nonfinite import OnNonFinite
from loops.engine.progress import Progress
from loops.engine.timing import Accounts, Timing
from loops.errors import NonFiniteError, Preempted
from loops.feeds import Feed, FeedSchedule
from loops.feeds.base import checked_feed
from loops.hooks._assemble import acting_and_silent, assemble, keep_as_wanted
from loops.hooks._methods import check_hook
from loops.hooks.base import Hook
from loops.hooks.history import History
from loops.run import arguments, descriptions, ending
from loops.run.compiled_step import CompiledStep
from loops.run.epochs import Epochs
from loops.run.evaluations import Evaluations
from loops.run.final_weights import FinalWeights
from loops.run.hook_schedule import HookSchedule
from loops.run.parts import RunParts
from loops.run.restart import Restart, Settings
from loops.run.run_feeds import RunFeeds
from loops.run.saved_states import SavedStates
from loops.run.signals import Interrupts
from loops.tasks.base import Task
from loops.tasks.checks import check_task
from loops.tasks.clipping import as_transforms
from loops.tasks.learning_rates import LearningRates
from loops.tasks.replicas import strategy_of
from loops.tasks.trained import Trained
from loops.user_errors.tracebacks import shortened

__all__ = ["TrainLoop"]


class TrainLoop:
    """Trains a task on a feed.

    Args:
        task: what a step of learning is.
        feed: where batches come from; a `FeedSchedule` for other data from some epoch on.
        hooks: `loops.hooks` and `keras.callbacks.Callback` objects, in any order.
        evaluate: name -> feed, evaluated at the end of every epoch; for another cadence use `hooks.Evaluate`.
        steps_per_epoch: steps of an epoch; None makes an epoch a pass over the feed.
        workdir: folder for what the run leaves; adds snapshots, TensorBoard, CSVLogger and best and last weights unless the hooks have
            them.
        resume: "auto" carries on the run that the workdir holds, "never" takes a new folder only, "must" a folder with a run only.
        strategy: how batches are spread over devices; None takes the one that the task's variables were made under.
        compile: "graph" (one TensorFlow graph for a window), "xla", "eager" (Python, for debugging), or "auto"; see `docs/design.md`.
        seed: seed of `Task.seed`.
        clip: bound of the global gradient norm, or a gradient transform `(gradients, variables) -> gradients`, or a list of them.
        on_nonfinite: what to do about a step that makes loss or state non-finite: "raise" `NonFiniteError`, "stop", "skip" the batch,
            "rollback", or "ignore"; or a `loops.OnNonFinite` with a budget.
        config: settings to keep in `config.json` beside those of the loop.

    Attributes:
        progress, history: the counters, and the logs of all epochs.
        hooks: all hooks, those that a workdir brought included.
        outcome: None while running, then "finished", "stopped", "interrupted" or "failed".
        clock: monotonic seconds; tests put a fake in its place.

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

    @shortened
    def __init__(
        self,
        task: Task,
        feed: Feed | FeedSchedule,
        hooks: Sequence[Any] = (),
        *,
        evaluate: Mapping[str, Feed] | None = None,
        steps_per_epoch: int | None = None,
        workdir: str | os.PathLike[str] | None = None,
        resume: Resume = "auto",
        strategy: tf.distribute.Strategy | None = None,
        compile: Compile = "auto",
        seed: int = 0,
        clip: Any = None,
        on_nonfinite: NonFiniteAction | OnNonFinite = "raise",
        config: Mapping[str, Any] | None = None,
    ):
        check_task(task, "train_step")
        check_choice(compile, Compile, "compile")
        schedule = feed if isinstance(feed, FeedSchedule) else None
        feed = checked_feed(feed if schedule is None else schedule.feeds[0], "feed")
        self.task, self.steps_per_epoch = task, arguments.checked_steps_per_epoch(steps_per_epoch)
        self.evaluations = arguments.checked_evaluations(evaluate)
        self.strategy = strategy_of(task.tracked.model_variables(), strategy)
        cluster, self.compile, self.clip = Cluster.of(self.strategy), compile, clip
        self.is_chief, self.seed, self.config = cluster.is_chief, arguments.checked_seed(seed), dict(config or {})
        self._saved = SavedStates(workdir, resume, cluster)
        self.history = History()
        every = assemble(hooks, cluster, history=self.history, evaluations=self.evaluations, workdir=self._saved.workdir, model=task.model)
        self.hooks, silent = acting_and_silent(every, self.is_chief)
        arguments.check_evaluations(task, self.evaluations, every)
        keep_as_wanted(self._saved, every)
        self.on_nonfinite = arguments.policy(on_nonfinite, every)
        self._saved.keeps_good = self.on_nonfinite.action == "rollback" or any(hook.rolls_back for hook in every)
        self.clock: Callable[[], float] = time.monotonic
        self.epochs: int | None = None
        self.steps: int | None = None
        self.outcome: str | None = None
        self._running, self._first_step, self._interrupts = False, 0, Interrupts()
        step = CompiledStep(
            task,
            self.strategy,
            mode=compile if compile != "auto" else None,
            seed=self.seed,
            transforms=as_transforms(clip),
            observed=lambda: frozenset().union(*(hook.observes for hook in [*self.hooks, *silent])),
            before_retrace=lambda: self._parts.hooks.before_retrace(self),
        )
        agreement = Agreement(cluster, lambda: self.clock(), lambda: (self._interrupts.requested, self._interrupts.preempted))
        accounts = Accounts(lambda: self.clock())
        self._parts = RunParts(self, task, feed, HookSchedule(self.hooks), step, accounts, agreement, [hook.name for hook in every])
        self._parts.feeds = RunFeeds(self._parts, schedule)
        self.progress: Progress = self._parts.progress
        self._restart = Restart(self._parts, self._saved, Settings(compile, self.seed, clip, self.strategy, self.config))
        self._evaluations = Evaluations(self._parts, self.strategy, compile=compile, seed=self.seed)
        self._epochs = Epochs(self._parts, self._saved, self._evaluations)
        self._final = FinalWeights(self._parts)

    def __repr__(self) -> str:
        return descriptions.of_loop(self, self._parts)

    # Running.

    @shortened
    def run(self, epochs: int | None = None, steps: int | None = None) -> History:
        """Trains until `epochs` epochs or `steps` steps are complete, counted from the very beginning; whichever comes first.

        With a workdir that holds a run, that run is carried on; a complete one returns its history. Ctrl-C ends the run after the call in
        progress, with `outcome` "interrupted"; a second one ends it at once.

        Returns:
            `loop.history`, with `history` (name -> values by epoch) and `epoch`.

        Raises:
            ValueError: without a target, if an epoch would never end, or if the run in the workdir cannot be carried on.
            NonFiniteError: see `on_nonfinite`.
            Preempted: after SIGTERM, when the state is saved; it ends the process with exit code 75.
            SaveError: at the end, if the last state or a record could not be saved.
        """
        if self._running:
            raise RuntimeError("A hook called loop.run while the loop runs; a hook may call loop.evaluate and loop.stop.")
        self._restart.check_targets(epochs, steps)
        self._running = True
        self.epochs, self.steps, self.outcome = epochs, steps, None
        parts = self._parts
        parts.decisions["stop_reason"] = None
        begun, self._interrupts = self.clock(), Interrupts(self._saved.grace)
        parts.accounts.begin()
        try:
            with self._interrupts, parts.agreement.cluster.noticing_loss():
                self._final.take_back()
                self._restart.prepare()
                self._first_step = self.progress.step
                begun = self.clock() - self.progress.seconds
                self._epochs.run_until_done(begun)
                done = parts.target_reached()
                self.outcome = "stopped" if self.stopping else "interrupted" if parts.agreement.ends and not done else "finished"
                self._saved.keep_final(parts)
                if self.outcome != "interrupted":
                    for hook in self.hooks:
                        hook.release_weights(self)
                    self._final.put()
        except NonFiniteError:
            self.outcome = "failed"
            self._saved.keep_final(parts)
            raise
        except BaseException as error:
            self.outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            parts.agreement.cluster.leave(error)
            raise
        finally:
            self.progress.seconds = self.clock() - begun
            self._running = False
            ending.end(parts, self._saved, self._evaluations)
            parts.accounts.end()
        if parts.agreement.ends_by_system and self.outcome == "interrupted":
            raise Preempted
        return self.history

    # What hooks use.

    @property
    def workdir(self) -> pathlib.Path | None:
        """The folder of the run, or None."""
        return self._saved.workdir

    @property
    def feed(self) -> Feed:
        """Where batches come from; assign another at a look. A resumed run asks for it again, see `loops/run/run_feeds.py`."""
        return self._parts.feed

    @feed.setter
    def feed(self, feed: Feed) -> None:
        self._parts.feeds.assign(feed)

    @property
    def mode(self) -> str | None:
        """How steps are compiled, "graph", "xla" or "eager"; None with compile="auto" before the first run."""
        return self._parts.step.mode

    @property
    def trained(self) -> Trained:
        """The objects that the last steps trained: those of the task, also where a hook has just put others into it."""
        return self._parts.step.trained

    @property
    def graph(self) -> tf.Graph | None:
        """The graph of the training step, once it was traced."""
        return self._parts.step.graph

    @property
    def execution(self) -> Execution:
        """What runs the steps, from the first run on: its programs, rows and calls, for tests and benchmarks to count."""
        return self._parts.execution

    @property
    def timing(self) -> Timing:
        """Where the time of the run in progress went up to now, or of the last `run`: waiting for data, computing, hooks, ..."""
        return self._parts.accounts.timing(steps=self.progress.step - self._first_step)

    @property
    def learning_rate(self) -> LearningRates:
        """The learning rates of all optimizers; `loop.learning_rate = 0.1` sets them."""
        return self._parts.rates

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.learning_rate.set(value)

    @property
    def stop_reason(self) -> str | None:
        """Why training ends before its targets, or None."""
        return self._parts.stop_reason

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
        self._parts.stop(reason)
        self._parts.requests.end_epoch |= end_epoch

    def save(self) -> None:
        """Saves the whole state of the run to its workdir: at a look when all hooks have acted, between two runs at once.

        Raises:
            ValueError: without a workdir.
            RuntimeError: before the first run.
            SaveError: between two runs, if that is not possible.
        """
        if self.workdir is None:
            raise ValueError("loop.save has nowhere to save to: give TrainLoop or fit a `workdir`.")
        if self._running:
            self._parts.requests.save = True
        else:
            with self._final.taken_back():
                self._restart.save_between_runs()

    def rollback(self, reason: str) -> None:
        """Goes back to the last good state when all hooks have acted, and drops the batches since then; see `loops.OnNonFinite`.

        Raises:
            RuntimeError: if no good state is kept: the loop needs on_nonfinite="rollback", or the hook `rolls_back = True`.
        """
        if not self._saved.keeps_good:
            raise RuntimeError("No good state is kept to roll back to: give TrainLoop on_nonfinite='rollback'.")
        self._parts.requests.rollback = reason

    @shortened
    def evaluate(self, feed: Feed, name: str, *, steps: int | None = None) -> dict[str, Any]:
        """Evaluates on `feed` now; the logs, prefixed with `name`, join those of the epoch in progress.

        Args:
            feed: what to evaluate on.
            name: prefix of the logs, and name of the TensorBoard run ("val" writes to `validation/`).
            steps: batches to evaluate; None takes the whole pass.

        Returns:
            "<name>_<metric>" -> float.
        """
        return self._evaluations.run(checked_feed(feed, name), name, steps=steps)

    def log(self, name: str, value: Any) -> None:
        """Adds to the logs of the epoch in progress."""
        self._parts.logs.log(name, value)

    def retrace(self, reason: str) -> None:
        """Has the step traced again before the next call, and says why."""
        self._parts.step.retrace(reason)

    # Between two runs.

    def attach(self, hook: Hook) -> None:
        """One more hook for the runs to come, between two runs.

        Raises:
            RuntimeError: while the loop runs.
            ValueError: if there is a hook of that name.
        """
        if self._running:
            raise RuntimeError("A hook can be attached between two runs only.")
        check_hook(hook)
        self._parts.hooks.add(hook)
        self.hooks.append(hook)
        self._observed_changed(hook)

    def detach(self, hook: Hook) -> None:
        """Takes away what `attach` added."""
        self.hooks.remove(hook)
        self._parts.hooks.remove(hook)
        self._observed_changed(hook)

    def _observed_changed(self, hook: Hook) -> None:
        if self._parts.step.is_open and hook.observes:
            self.retrace(f"what {hook.name} observes ({', '.join(sorted(hook.observes))}) has changed")
