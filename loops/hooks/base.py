"""`Hook`, the base class of what observes and steers a training loop; `Loop`, the protocol of what a hook may ask of it; `Phase`.

A hook says beforehand when it next wants to look. Nothing here knows how steps are run, or which hooks there are.
"""

from __future__ import annotations

import enum
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import tensorflow as tf

from loops.engine.nonfinite import OnNonFinite
from loops.engine.progress import Progress
from loops.engine.rows import Window
from loops.engine.timing import Timing
from loops.feeds import Feed
from loops.tasks.base import Task
from loops.tasks.learning_rates import LearningRates
from loops.tasks.trained import Trained
from loops.triggers import Trigger
from loops.user_errors.shown import call_text

__all__ = ["Hook", "Loop", "Phase"]


class Phase(enum.IntEnum):
    """Order in which hooks act at a boundary: all of one phase before any of the next, whatever their list order."""

    EVALUATE = 0
    DECIDE = 1
    RECORD = 2
    SAVE = 3


class Loop(Protocol):
    """What a hook may ask of the loop that calls it. `loops.TrainLoop` is one; annotate your hooks with it.

    Attributes:
        progress: the counters: step, epoch and so on.
        task: what is trained.
        hooks: all hooks of the loop.
        evaluations: name -> feed, of the evaluations given to the loop.
        history: the logs of all epochs, a `hooks.History`.
        clock: monotonic seconds.
        steps_per_epoch: steps of an epoch as given to the loop; None makes an epoch a pass over the feed.
        epochs, steps: targets of the run in progress, or None.
        outcome: None while running, then "finished", "stopped", "interrupted" or "failed".
        is_chief: whether this process writes records and files.

    Example:
        >>> from loops import hooks
        >>> class StopEarly(hooks.Hook):
        ...     every = "10 steps"
        ...     def on_window_end(self, loop: hooks.Loop, window):
        ...         if window.mean("loss") < 0.1:
        ...             loop.stop("the loss is low enough")
    """

    task: Task
    hooks: list[Hook]
    evaluations: dict[str, Feed]
    history: Any
    steps_per_epoch: int | None
    on_nonfinite: OnNonFinite
    outcome: str | None
    is_chief: bool

    @property
    def progress(self) -> Progress: ...

    @property
    def clock(self) -> Callable[[], float]: ...

    @property
    def epochs(self) -> int | None: ...

    @property
    def steps(self) -> int | None: ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the experiment that the loop was given to keep; empty if there are none."""

    @property
    def workdir(self) -> pathlib.Path | None:
        """The folder of the run, or None."""

    @property
    def feed(self) -> Feed:
        """Where batches come from; assign another at a look."""

    @feed.setter
    def feed(self, feed: Feed) -> None: ...

    @property
    def learning_rate(self) -> LearningRates:
        """The learning rates of all optimizers; assign a number to set them all."""

    @learning_rate.setter
    def learning_rate(self, value: float) -> None: ...

    @property
    def trained(self) -> Trained:
        """The objects that the last steps trained: those of the task, also where another hook has just put others into it."""

    @property
    def graph(self) -> tf.Graph | None:
        """The graph of the training step, once it was traced."""

    @property
    def timing(self) -> Timing:
        """Where the time of the run went up to now."""

    @property
    def stop_reason(self) -> str | None:
        """Why training ends before its targets, or None."""

    @property
    def stopping(self) -> bool:
        """True once somebody called `stop`."""

    def stop(self, reason: str, *, end_epoch: bool = False) -> None:
        """Ends training at this boundary; with `end_epoch` an epoch in progress is evaluated and recorded as complete."""

    def evaluate(self, feed: Feed, name: str, *, steps: int | None = None) -> dict[str, Any]:
        """Evaluates on `feed` now; the logs, prefixed with `name`, join those of the epoch in progress."""

    def save(self) -> None:
        """Saves the whole state of the run to its workdir when all hooks have acted."""

    def rollback(self, reason: str) -> None:
        """Goes back to the last good state when all hooks have acted."""

    def log(self, name: str, value: Any) -> None:
        """Adds to the logs of the epoch in progress."""

    def retrace(self, reason: str) -> None:
        """Traces the step again before the next call, and says why."""


class Hook:
    """Base class of all hooks. Override what you need; every method does nothing by default.

    At a boundary the loop passes once over its hooks, phase by phase: `on_window_end` if the hook's trigger is due, then
    `on_epoch_end` if the epoch ended. Of several worker processes, hooks of the phases RECORD and SAVE act on the chief only: what they
    log, and that they stop, save or roll back, reaches all workers; anything else that changes the training belongs into DECIDE.

    A snapshot of the run holds what `state_dict` and `state_arrays` return after all hooks have acted at a boundary. When a run is resumed,
    the loop calls `on_train_begin` (with `loop.progress` where the run stood), then, when all variables are restored, `load_state_dict` and
    `load_state_arrays`. Then the run goes on as if it had not been interrupted: in the middle of an epoch `on_epoch_begin` is not called.
    The hook will do again what it had done since the snapshot (write to files, for example); where that matters, `load_state_dict` has to
    undo it first.

    Attributes:
        every: when `on_window_end` is due: "100 steps", "1 epoch", "30 seconds", a `loops.triggers.Trigger`, or None.
        phase: the `Phase` in which the hook acts.
        observes: names of what the compiled program must carry out for this hook: "gradients" (the last step's, by variable path),
            "metrics" (running metric values at every step, in `window.trace`), "batch" (the last step's, in `window.batch`), or a name
            that the task gives to `Task.observe`. The union over all hooks is fixed when training begins.
        final_window: True to get `on_window_end` once more when training ends, for the steps since the last look.
        watches_evaluation: True to have `on_evaluate_batch` called, which costs a call for each batch.
        on_nonfinite: what the loop shall do at a non-finite loss or weight: "raise" or "stop"; None leaves that to the loop.
        rolls_back: True if the hook may call `loop.rollback`; the loop then keeps a good state in memory.
        on_all_workers: True if a hook of phase RECORD or SAVE is to act on all workers of a run, not on the chief only.
        evaluation: name of the evaluation that the hook runs, or None.
        evaluation_feed: what it evaluates on, or None if that is not known before training: with it, the evaluation step is traced before
            training begins, so that an error in it shows at once.
        progress_verbosity: how much of the progress the hook shows, as Keras counts `verbose`: 0, 1 or 2.
        weights_path: file that the hook writes weights to, or None; it may hold placeholders such as "{epoch}".
        name: unique name under which the hook's state is saved; the loop appends a number where two hooks have the same name.

    Example:
        >>> class PrintLoss(Hook):
        ...     every = "100 steps"
        ...     def on_window_end(self, loop, window):
        ...         print(f"{loop.progress.step}: {window.mean('loss'):.3f}")
    """

    every: Trigger | str | None = "1 epoch"
    phase: Phase = Phase.RECORD
    observes: frozenset[str] | set[str] = frozenset()
    final_window: bool = False
    watches_evaluation: bool = False
    on_nonfinite: Literal["raise", "stop"] | None = None
    rolls_back: bool = False
    on_all_workers: bool = False
    evaluation: str | None = None
    evaluation_feed: Feed | None = None
    progress_verbosity: int = 0
    weights_path: str | None = None

    def __repr__(self) -> str:
        return call_text(self)

    @property
    def name(self) -> str:
        return getattr(self, "_name", type(self).__name__)

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    @property
    def chief_only(self) -> bool:
        """Whether the hook acts on the chief only, of several workers."""
        return self.phase >= Phase.RECORD and not self.on_all_workers

    def on_train_begin(self, loop: Loop) -> None:
        """Before the first step of a `run`, before anything is traced."""

    def on_epoch_begin(self, loop: Loop) -> None:
        """Before the first step of an epoch."""

    def before_first_step(self, loop: Loop) -> None:
        """Before the first step of a `run`, when steps are traced and the metrics are there: refuse here what cannot work later."""

    def on_window_end(self, loop: Loop, window: Window) -> None:
        """When `every` is due; `window` covers all steps since this hook's last look."""

    def on_evaluate_begin(self, loop: Loop, name: str) -> None:
        """Before an evaluation that `loop.evaluate` makes."""

    def on_evaluate_batch(self, batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
        """Before evaluation batch `batch`, and once with `last` after all; `logs()` reads the (unprefixed) logs to date."""

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        """After an evaluation; `logs` has the prefixed names ("val_loss")."""

    def on_predict_begin(self, loop: Loop) -> None:
        """Before the first batch of `loops.predict`."""

    def on_predict_end(self, loop: Loop, outputs: Any) -> None:
        """After `loops.predict`, with what it returns."""

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        """After the last step of an epoch. `logs` is read-only; `loop.log(name, value)` adds to it for the hooks that follow."""

    def release_weights(self, loop: Loop) -> None:
        """When training has ended normally, before optimizers put averages into the model: undo what you did to the weights for a while."""

    def before_retrace(self, loop: Loop) -> None:
        """Before the step is traced again, because models, flags or what is observed has changed. Optimizers may get variables then: a hook
        that reads them in a thread waits for that thread here."""

    def on_train_end(self, loop: Loop) -> None:
        """Always called, whatever ended the run; `loop.outcome` says what did."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that the hook needs to go on after a restart, JSON-able. Called at every snapshot, so it should be quick."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, and forgets everything else that the hook has remembered."""

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays of the state, by name. They are written after the call returned: copy arrays that will change."""
        return {}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores what `state_arrays` returned; called after `load_state_dict`, if there are arrays."""
