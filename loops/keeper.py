"""Keeps the states that a run can go back to: snapshots in its workdir, and the last good one in memory where a rollback may want it.

It decides nothing about training: the loop says when to keep a state and when to go back.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loops import resume, runstate
from loops.feeds import Feed, Position
from loops.hooks.snapshot import Snapshot
from loops.nonfinite import NonFiniteError, OnNonFinite
from loops.run_folder import FEED, RunFolder
from loops.runstate import MismatchError, Parts, RunState
from loops.task import Task

__all__ = ["Keeper"]


class Keeper:
    """The memory of a training run.

    Args:
        workdir: folder of the run, or None.
        resume: "auto", "never" or "must".

    Attributes:
        decisions: what the run decided for good, JSON-able, part of the run state: why it stops, and how often it recovered.
        keeps_good: whether a good state is kept in memory.
    """

    def __init__(self, workdir: str | os.PathLike[str] | None, resume: str):
        self._folder = RunFolder(workdir, resume) if workdir is not None else None
        self.decisions: dict[str, Any] = {"stop_reason": None, "skip": 0, "rollback": 0}
        self.keeps_good = False
        self._good: RunState | None = None
        self._made: dict[str, Any] = {}
        self._kept: Any = None

    @property
    def workdir(self) -> pathlib.Path | None:
        return self._folder.path if self._folder is not None else None

    def open(
        self,
        task: Task,
        hook: Snapshot | None,
        made: Callable[[], dict[str, Any]],
    ) -> tuple[RunState, pathlib.Path | None] | None:
        """Takes the folder; the first time, finds the state to go on from.

        Args:
            task: what is trained.
            hook: says which snapshots stay.
            made: what the run is made with, from `resume.description`; asked once. A mode that is None is taken from the run that is found.

        Returns:
            The state and the folder in which its feed wrote its position, if it did; None if the run begins here.

        Raises:
            ValueError: if the folder cannot be used.
            MismatchError: if its run cannot be carried on with these settings.
        """
        if self._folder is None:
            return None
        self._made = self._made or made()  # what was given at first: by the second run, learning rates may have moved
        rules = (hook.keep_last, hook.keep_best) if hook is not None else (3, None)
        found = self._folder.open(keep_last=rules[0], keep_best=rules[1])
        if found is None:
            return None
        saved = RunState(found.step, found.arrays, found.state)
        self._made["mode"] = self._made["mode"] or saved.state["made"]["mode"]
        try:
            notes = resume.check(found.state["made"], self._made)
            runstate.check_model(task, saved)
        except MismatchError as error:
            raise self._refusal(error) from None
        where = f"step {found.step:,} (epoch {found.info['epoch'] + 1})"
        print(f"Resuming the run in {self._folder.path} at {where}.", *notes, sep="\n  note: ", flush=True)
        feed = found.files / FEED if found.state["feed_files"] and found.files is not None else None
        return saved, feed

    def begin(self, mode: str, config: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Notes down how a run that begins here is made.

        Args:
            mode: how its steps are compiled.
            config: what `config.json` says of a run that was made so.
        """
        if self._folder is not None:
            self._made["mode"] = mode
            self._folder.write_config(config(self._made))

    def forget(self) -> None:
        """Has the next `open` look for a state again."""
        self._made = {}
        if self._folder is not None:
            self._folder.forget()

    def restore(self, parts: Parts, saved: RunState) -> None:
        """Puts a state that was found back.

        Raises:
            MismatchError: if the variables differ.
        """
        for note in resume.changes_of_hooks(saved.state["hooks"], [hook.name for hook in parts.looks]):
            print(f"  note: {note}", flush=True)
        try:
            runstate.restore(parts, saved)
        except MismatchError as error:
            raise self._refusal(error) from None
        self._good = saved if self.keeps_good else None
        self._kept = self._key(parts)

    def position(self, saved: RunState, feed: Feed) -> Position:
        """The position in `feed` that was saved.

        Raises:
            MismatchError: if it was saved of another feed.
        """
        try:
            resume.check({"data": saved.state["feed"]["data"]}, {"data": feed.describe()})
        except MismatchError as error:
            raise self._refusal(
                MismatchError(f"{error}; a hook that assigns loop.feed has to do so in on_train_begin when the run goes on")
            ) from None
        return feed.load_state_dict(saved.state["feed"]["position"])

    def keep(self, parts: Parts, feed: Feed, *, on_disk: bool) -> None:
        """Takes the state as it is now."""
        state = runstate.gather(parts)
        if self.keeps_good:
            self._good = state
        if on_disk and self._folder is not None:
            progress = parts.progress
            position = {"position": feed.state_dict(progress.position), "data": feed.describe()}
            saved = RunState(state.step, state.arrays, {**state.state, "feed": position, "made": self._made})
            info = {"epoch": progress.epoch, "epoch_ended": progress.epoch_ended, "seconds": progress.seconds, "logs": _scalars(parts.logs)}
            self._folder.save(saved, info, parts.execution.save_feed)
            self._kept = self._key(parts)

    def keep_last(self, parts: Parts, feed: Feed) -> None:
        """Saves the state that the run ends with, unless that is what was saved last."""
        if self._folder is not None and self._kept != self._key(parts):
            self.keep(parts, feed, on_disk=True)

    def spend(self, policy: OnNonFinite, message: str) -> None:
        """Counts a recovery.

        Raises:
            NonFiniteError: if the budget is used up.
        """
        if self.decisions[policy.action] >= policy.budget:
            raise NonFiniteError(f"{message} The budget of {policy.budget} for {policy.action!r} is used up.")
        self.decisions[policy.action] += 1

    @property
    def good(self) -> RunState:
        """The state that `roll_back` goes back to."""
        assert self._good is not None
        return self._good

    def roll_back(self, parts: Parts) -> int:
        """Goes back to the last good state, whose `trainable` flags are set already; the feed stays where it is.

        Returns:
            The step that the run went back to.
        """
        progress, counts = parts.progress, {kind: self.decisions[kind] for kind in ("skip", "rollback")}
        position = progress.position
        runstate.restore(parts, self.good)
        progress.pass_index, progress.batch = position.pass_index, position.batch
        self.decisions.update(counts)
        parts.execution.rewind()
        return self.good.step

    def close(self) -> str | None:
        """Waits for what is being written and lets go of the folder; why the last state could not be saved, or None."""
        return self._folder.close() if self._folder is not None else None

    def where(self) -> str:
        """A sentence on what is on disk, or nothing."""
        if self._folder is None or self._kept is None or self._folder.last_step is None:
            return ""
        return f"The state of step {self._folder.last_step:,} is in {self._folder.path}; the same command goes on from there."

    def _refusal(self, error: MismatchError) -> MismatchError:
        run = f"The run in {str(self.workdir)!r} cannot go on with these settings"
        return MismatchError(f"{run}: {error}. Give what it was, or a new workdir.")

    def _key(self, parts: Parts) -> Any:
        return (parts.progress.step, parts.progress.epoch_ended, tuple(self.decisions.values()))


def _scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items() if np.ndim(value) == 0 and not isinstance(value, str)}
