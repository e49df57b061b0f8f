"""What hooks, and users, see and ask of a training run. How it runs is the business of `train_loop.py`."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import tensorflow as tf

from loops import crash_points, replicas
from loops.accounting import Accounts, Timing
from loops.epoch_logs import EpochLogs
from loops.eval_loop import EvalLoop, resolve_mode
from loops.execution import Execution
from loops.feeds import Feed
from loops.gradients import as_transforms
from loops.hooks.base import Hook, Phase
from loops.hooks.history import History
from loops.hooks.lineup import line_up
from loops.keeper import Keeper
from loops.looks import Looks
from loops.nonfinite import OnNonFinite
from loops.program import Program
from loops.progress import Progress
from loops.schedules import LearningRates
from loops.task import Task
from loops.trace_watch import TraceWatch
from loops.traced_step import GlobalStep

if TYPE_CHECKING:
    from loops.train_loop import TrainLoop

__all__ = ["LoopFace", "checked_feed"]


class LoopFace:
    """The settings and the public face of a training loop; for the arguments see `loops.TrainLoop`.

    Attributes:
        progress: the counters.
        task: what is trained.
        history: the logs of all epochs.
        hooks: all hooks, those that a workdir brought included.
        evaluations: name -> feed.
        mode: how steps are compiled, "graph", "xla" or "eager"; None with compile="auto" before the first run.
        is_chief: whether this process writes records and files.
        epochs, steps: targets of the run in progress, or None.
        outcome: None while running, then "finished", "stopped", "interrupted" or "failed".
        clock: monotonic seconds; tests put a fake in its place.
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
        resume: str = "auto",
        strategy: tf.distribute.Strategy | None = None,
        compile: str = "auto",
        seed: int = 0,
        clip: Any = None,
        on_nonfinite: str | OnNonFinite = "raise",
        config: Mapping[str, Any] | None = None,
    ):
        if not isinstance(task, Task):
            raise TypeError(
                f"`task` must be a loops.Task, got {type(task).__name__}; for a compiled Keras model use loops.KerasTask(model)."
            )
        if getattr(task.train_step, "__func__", None) is Task.train_step:
            raise TypeError(f"{type(task).__name__} defines no train_step(self, batch), so it cannot be trained.")
        policy = OnNonFinite.parse(on_nonfinite)
        if steps_per_epoch is not None and (int(steps_per_epoch) != steps_per_epoch or steps_per_epoch < 1):
            raise ValueError(f"`steps_per_epoch` must be a whole number, 1 or more; got {steps_per_epoch!r}.")
        self.task, self._feed = task, checked_feed(feed, "feed")
        self.evaluations = {name: checked_feed(f, f"evaluate[{name!r}]") for name, f in (evaluate or {}).items()}
        self.strategy = replicas.strategy_of(task.tracked.model_variables(), strategy)
        self.is_chief = replicas.is_chief(self.strategy)
        self.steps_per_epoch, self.seed, self.clip = steps_per_epoch, int(seed), clip
        mode = resolve_mode(compile)
        self.compile, self.mode = compile, mode if compile != "auto" else None
        self._why_mode: dict[str, Any] = {}
        self._transforms = as_transforms(clip)
        self._keeper = Keeper(workdir, resume)
        self.history = History()
        self.hooks: list[Hook] = line_up(hooks, history=self.history, evaluations=self.evaluations, workdir=self.workdir, model=task.model)
        if not self.is_chief:  # records and files are the chief's
            self.hooks = [hook for hook in self.hooks if hook.phase < Phase.RECORD or hook is self.history]
        asked = {hook.on_nonfinite for hook in self.hooks}
        self.on_nonfinite = next((OnNonFinite(action) for action in ("raise", "stop") if action in asked), policy)
        self._keeper.keeps_good = self.on_nonfinite.action == "rollback" or any(hook.rolls_back for hook in self.hooks)
        self.config = dict(config or {})
        self.progress = Progress()
        self.clock: Callable[[], float] = time.monotonic
        self.epochs: int | None = None
        self.steps: int | None = None
        self.outcome: str | None = None
        self._logs, self._end_epoch = EpochLogs(), False
        self._looks = Looks(self.hooks)
        self._running = self._save_asked = self._epoch_anew = False
        self._rollback_asked: str | None = None
        self._failures: dict[str, str] = {}
        self._watch: TraceWatch | None = None
        self._read: tuple[int, dict[str, Any]] | None = None
        self._execution: Execution | None = None
        self._accounts, self._first_step = Accounts(), 0
        self._evaluator: EvalLoop | None = None
        self._learning_rates: LearningRates | None = None
        self._rated: dict[str, Any] = {}

    # What hooks use.

    @property
    def workdir(self) -> pathlib.Path | None:
        """The folder of the run, or None."""
        return self._keeper.workdir

    @property
    def feed(self) -> Feed:
        """Where batches come from; assign another at a look."""
        return self._feed

    @feed.setter
    def feed(self, feed: Feed) -> None:
        self._feed = checked_feed(feed, "feed")
        self._check_end(self.steps)
        self.progress.steps_per_epoch = self.steps_per_epoch or feed.steps_per_epoch
        if self._execution is not None:
            self._execution.switch(feed)

    @property
    def graph(self) -> tf.Graph | None:
        """The graph of the training step, once it was traced."""
        return self._execution.step.graph if self._execution is not None else None

    @property
    def timing(self) -> Timing:
        """Where the time of the run in progress went up to now, or of the last `run`: waiting for data, computing, hooks, ..."""
        within = self._execution is not None and self._execution.waits_within_calls
        return self._accounts.timing(steps=self.progress.step - self._first_step, data_within_compute=within)

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
    def stop_reason(self) -> str | None:
        """Why training ends before its targets, or None."""
        reason: str | None = self._keeper.decisions["stop_reason"]
        return reason

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
            self._keeper.decisions["stop_reason"] = reason
        self._end_epoch |= end_epoch

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
            self._save_asked = True
        else:
            cast("TrainLoop", self)._save_between_runs()

    def rollback(self, reason: str) -> None:
        """Goes back to the last good state when all hooks have acted, and drops the batches since then; see `loops.OnNonFinite`.

        Raises:
            RuntimeError: if no good state is kept: the loop needs on_nonfinite="rollback", or the hook `rolls_back = True`.
        """
        if not self._keeper.keeps_good:
            raise RuntimeError("No good state is kept to roll back to: give TrainLoop on_nonfinite='rollback'.")
        self._rollback_asked = reason

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
            self._evaluator = EvalLoop(self.task, strategy=self.strategy, compile=self.compile, seed=self.seed)
        self._average_replicas()
        loop = cast("TrainLoop", self)
        for hook in self._looks:
            hook.on_evaluate_begin(loop, name)
        crash_points.reached(crash_points.EVALUATION)
        watchers = [hook for hook in self._looks if hook.watches_evaluation]

        def tell(batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
            for hook in watchers:
                hook.on_evaluate_batch(batch, logs, last)

        with self._accounts.of("evaluation"):
            results = self._evaluator.run(checked_feed(feed, name), steps=steps, on_batch=tell if watchers else None)
        logs = {f"{name}_{key}": value for key, value in results.items()}
        self._logs.evaluation.update(logs)
        for hook in self._looks:
            hook.on_evaluate_end(loop, name, logs)
        return logs

    def log(self, name: str, value: Any) -> None:
        """Adds to the logs of the epoch in progress."""
        self._logs.extra[name] = value

    def retrace(self, reason: str) -> None:
        """Has the step traced anew before the next call, and says why."""
        print(f"Retracing the training step: {reason}.", flush=True)
        if self._execution is not None:
            self._execution.use(self._new_program(self._mode))
        self._evaluator = None
        self._watch = None

    def attach(self, hook: Hook) -> None:
        """One more hook for the runs to come, between two runs.

        Raises:
            RuntimeError: while the loop runs.
            ValueError: if there is a hook of that name.
        """
        if self._running:
            raise RuntimeError("A hook can be attached between two runs only.")
        if hook.name in {other.name for other in self.hooks}:
            raise ValueError(f"There is a hook named {hook.name!r} already; give this one another `name`.")
        self.hooks.append(hook)
        self._looks.add(hook)
        self._observe_anew(hook)

    def detach(self, hook: Hook) -> None:
        """Takes away what `attach` added."""
        self.hooks.remove(hook)
        self._looks.remove(hook)
        self._observe_anew(hook)

    def _observe_anew(self, hook: Hook) -> None:
        if self._execution is not None and hook.observes:
            self.retrace(f"what {hook.name} observes ({', '.join(sorted(hook.observes))}) has changed")

    @property
    def _mode(self) -> str:
        assert self.mode is not None
        return self.mode

    def _new_program(self, mode: str) -> Program:
        observes = frozenset().union(*(hook.observes for hook in self.hooks))
        step = GlobalStep(
            self.task,
            "train_step",
            self.strategy,
            seed=self.seed,
            transforms=self._transforms,
            observes=observes,
            fuse=mode == "graph",
        )
        return Program(step, mode)

    def _average_replicas(self) -> None:
        if self.strategy.num_replicas_in_sync > 1:
            replicas.average_moving_statistics(self.task.tracked.model_variables())

    def _check_end(self, steps: int | None) -> None:
        if self._feed.endless and self.steps_per_epoch is None and steps is None:
            raise ValueError("The feed never ends, so an epoch would not either: give TrainLoop `steps_per_epoch`, or run(steps=...).")


def checked_feed(feed: Any, what: str) -> Feed:
    """`feed` if it is one.

    Raises:
        TypeError: if not.
    """
    if isinstance(feed, tf.data.Dataset):
        raise TypeError(f"`{what}` is a tf.data.Dataset; wrap it: loops.DatasetFeed(dataset).")
    if not isinstance(feed, Feed):
        raise TypeError(f"`{what}` must be a loops feed (ArrayFeed, DatasetFeed, NoFeed or your own); got {type(feed).__name__}.")
    return feed
