"""Decides when the whole state of a run is saved to its workdir; `loops/run/` and `loops/snapshots/` save it."""

from __future__ import annotations

from typing import Literal

from loops.engine.rows import Window
from loops.hooks.base import Hook, Loop, Phase
from loops.snapshots.retention import Best
from loops.triggers import Trigger

__all__ = ["Snapshot"]


class Snapshot(Hook):
    """Saves the run state, from which a killed run goes on with the same bits as an undisturbed one.

    A loop with a `workdir` has one such hook by default. The state is copied to the host after all hooks have acted, and a thread writes it
    while training goes on. In addition, the loop saves the state when a run ends and when it is interrupted.

    Args:
        every: when to save: by steps, epochs or time.
        keep_last: how many of the newest snapshots stay.
        keep_best: metric, such as "val_loss", by which further snapshots are kept; None: only the newest.
        mode: whether small ("min") or large ("max") values of `keep_best` are good.
        best: how many of the best to keep.
        grace: seconds that an interrupted run (SIGTERM, Ctrl-C) has to reach the end of its call, or of an evaluation, and to save. After
            them the process ends without saving, and the last snapshot remains.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.Snapshot("500 steps", keep_last=2, keep_best="val_loss")
    """

    phase = Phase.SAVE

    def __init__(
        self,
        every: Trigger | str = "1 epoch | 3 minutes",
        *,
        keep_last: int = 3,
        keep_best: str | None = None,
        mode: Literal["min", "max"] = "min",
        best: int = 1,
        grace: float = 25.0,
    ):
        if not grace > 0:
            raise ValueError(f"`grace` of Snapshot is a number of seconds, more than 0; got {grace!r}.")
        self.every = every
        self.keep_last = keep_last
        self.keep_best = Best(keep_best, mode, best) if keep_best is not None else None
        self.grace = float(grace)

    def on_train_begin(self, loop: Loop) -> None:
        if loop.workdir is None:
            raise ValueError("hooks.Snapshot has nowhere to save to: give TrainLoop or fit a `workdir`.")

    def on_window_end(self, loop: Loop, window: Window) -> None:
        loop.save()
