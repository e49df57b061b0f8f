"""What a hook is: something that looks at a training loop from outside, at moments that it names beforehand."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from loops.logs import Window
    from loops.train_loop import TrainLoop
    from loops.triggers import Trigger

__all__ = ["Hook", "Phase"]


class Phase(enum.IntEnum):
    """Order in which hooks act at a boundary: all of one phase before any of the next, whatever their list order."""

    EVALUATE = 0
    DECIDE = 1
    RECORD = 2
    SAVE = 3


class Hook:
    """Base class of all hooks. Override what you need; every method does nothing by default.

    At a boundary the loop passes once over its hooks, phase by phase: `on_window_end` if the hook's trigger is due, then
    `on_epoch_end` if the epoch ended. Hooks of the phases RECORD and SAVE act on the chief only.

    A snapshot of the run holds what `state_dict` and `state_arrays` give after all hooks have acted at a boundary. When a run is resumed, a
    hook gets `on_train_begin` (with `loop.progress` where the run stood), then, when all variables are restored, `load_state_dict` and
    `load_state_arrays`. Then it goes on as if nothing had been in between: in the middle of an epoch no `on_epoch_begin` comes. What it had
    done since the snapshot (files, say) will be done again, so `load_state_dict` takes it back if that matters.

    Attributes:
        every: when `on_window_end` is due: "100 steps", "1 epoch", "30 seconds", a `loops.triggers.Trigger`, or None.
        phase: the `Phase` in which the hook acts.
        observes: names of what the compiled program must carry out for this hook: "gradients" (the last step's, by variable path),
            "metrics" (running metric values at every step, in `window.trace`), "batch" (the last step's, in `window.batch`), or a name
            that the task gives to `Task.observe`. The union over all hooks is fixed when training begins.
        final_window: True to get `on_window_end` once more when training ends, for the steps since the last look.
        watches_evaluation: True to have `on_evaluate_batch` called, which costs a call for each batch.
        on_nonfinite: what the hook asks of the loop at a non-finite loss or weight ("raise" or "stop"), or None.
        rolls_back: True if the hook may call `loop.rollback`; the loop then keeps a good state in memory.
        name: unique name under which the hook's state is saved; the loop numbers doubles.

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
    on_nonfinite: str | None = None
    rolls_back: bool = False

    @property
    def name(self) -> str:
        return getattr(self, "_name", type(self).__name__)

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    def on_train_begin(self, loop: TrainLoop) -> None:
        """Before the first step of a `run`, before anything is traced."""

    def on_epoch_begin(self, loop: TrainLoop) -> None:
        """Before the first step of an epoch."""

    def on_window_end(self, loop: TrainLoop, window: Window) -> None:
        """When `every` is due; `window` covers all steps since this hook's last look."""

    def on_evaluate_begin(self, loop: TrainLoop, name: str) -> None:
        """Before an evaluation that `loop.evaluate` makes."""

    def on_evaluate_batch(self, batch: int, logs: Callable[[], dict[str, Any]], last: bool) -> None:
        """Before evaluation batch `batch`, and once with `last` after all; `logs()` reads the (unprefixed) logs to date."""

    def on_evaluate_end(self, loop: TrainLoop, name: str, logs: Mapping[str, Any]) -> None:
        """After an evaluation; `logs` has the prefixed names ("val_loss")."""

    def on_epoch_end(self, loop: TrainLoop, logs: Mapping[str, Any]) -> None:
        """After the last step of an epoch. `logs` is read-only; `loop.log(name, value)` adds to it for the hooks that follow."""

    def on_train_end(self, loop: TrainLoop) -> None:
        """Always called, whatever ended the run; `loop.outcome` says what did."""

    def state_dict(self) -> dict[str, Any]:
        """What decides the hook's future, JSON-able. Called at every snapshot, so it should be quick."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; nothing that the hook knew before stays."""

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Arrays that belong to the state, by name. They are written after the call: give copies of what will change."""
        return {}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores what `state_arrays` gave; called after `load_state_dict`, if there are any."""
