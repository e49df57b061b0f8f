"""Keeps the states that a run can go back to: snapshots in its workdir and, if rollbacks are possible, the last good state in memory.

It decides nothing about training: the loop says when to keep a state and when to go back.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loops.choices import Resume, check_choice
from loops.cluster import Cluster
from loops.errors import MismatchError
from loops.messages import say
from loops.run import outcome_file, resume_rules, run_state
from loops.run.parts import RunParts
from loops.run.run_state import RunState
from loops.run.shared_state import SharedStates
from loops.run.write_failures import WriteFailures
from loops.snapshots.retention import Best
from loops.tasks.base import Task

if TYPE_CHECKING:
    from loops.run.workdir import RunFolder

__all__ = ["SavedStates"]


class SavedStates:
    """The states of a training run that were saved.

    Args:
        workdir: folder of the run, or None.
        resume: "auto", "never" or "must".
        cluster: the worker processes of the run; the chief alone uses the folder.

    Raises:
        ValueError: if the folder cannot be used, or `resume` does not fit.

    Attributes:
        workdir: the folder of the run, or None.
        keeps_good: whether a good state is kept in memory.
        keep_last, keep_best: which snapshots stay in the workdir; see `hooks.Snapshot`.
        grace: seconds that an interrupted run has to end and to save; None for a run without snapshots.
        failures: what could not be written.
    """

    def __init__(self, workdir: str | os.PathLike[str] | None, resume: Resume, cluster: Cluster):
        check_choice(resume, Resume, "resume")
        if resume == "must" and workdir is None:
            raise ValueError("resume='must' carries on the run in a workdir, but no `workdir` was given: give its folder.")
        self.workdir = pathlib.Path(workdir) if workdir is not None else None
        self._folder = _folder(workdir, resume) if workdir is not None and cluster.is_chief else None
        self._cluster, self._shared = cluster, SharedStates(cluster)
        self.failures = WriteFailures(tolerant=workdir is not None)
        self.keeps_good = False
        self.keep_last = 3
        self.keep_best: Best | None = None
        self.grace: float | None = None
        self._good: RunState | None = None
        self._at_start: dict[str, Any] = {}
        self._saved_moment: Any = None
        self._ends_are_written = False

    def open(self, at_start: Callable[[], dict[str, Any]]) -> tuple[RunState, pathlib.Path | None] | None:
        """Locks the folder; the first time, also finds the state to go on from.

        Args:
            at_start: returns the settings at the start, from `resume_rules.description`; called once. A mode that is None is replaced by
                that of the saved run.

        Returns:
            The state, and the folder with the feed's own position files or None; None if the run begins from nothing.

        Raises:
            ValueError: if the folder cannot be used.
            MismatchError: if the run in it cannot go on with these settings.
        """
        if self.workdir is None:
            return None
        self._at_start = self._at_start or at_start()  # of the first `run`: later, learning rates may have changed
        return self._shared.send(self._cluster.together(self._open_folder, on="opening the workdir"))

    def _open_folder(self) -> tuple[RunState, pathlib.Path | None] | None:
        assert self._folder is not None
        found = self._folder.open(keep_last=self.keep_last, keep_best=self.keep_best)
        if found is None:
            return None
        saved = RunState(found.step, found.arrays, found.state)
        self._at_start["mode"] = self._at_start["mode"] or saved.state["made"]["mode"]
        try:
            notes = resume_rules.allowed_differences(found.state["made"], self._at_start)
        except MismatchError as error:
            raise self._refusal(error) from None
        where = f"step {found.step:,} (epoch {found.info['epoch'] + 1})"
        say("\n  note: ".join([f"Resuming the run in {self._folder.path} at {where}.", *notes]))
        return saved, self._folder.feed_of(found)

    def begin(self, mode: str, config: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Writes `config.json` for a run that begins from nothing.

        Args:
            mode: how its steps are compiled.
            config: returns the content of `config.json` for the settings at the start.
        """
        if self._folder is not None:
            self._at_start["mode"] = mode
            self._folder.write_config(config(self._at_start))

    def forget(self) -> None:
        """Makes the next `open` look for a state again."""
        self._at_start = {}
        if self._folder is not None:
            self._folder.forget()

    def check_model(self, task: Task, saved: RunState) -> None:
        """Checks that the models of a task, if they are built, have the variables of a state.

        Raises:
            MismatchError: if they have others.
        """
        try:
            run_state.check_model(task, saved)
        except MismatchError as error:
            raise self._refusal(_with_advice(error, saved)) from None

    def restore(self, parts: RunParts, saved: RunState) -> None:
        """Restores a state that `open` found.

        Raises:
            MismatchError: if the variables differ.
        """
        for note in resume_rules.changes_of_hooks(saved.state["hooks"], [hook.name for hook in parts.hooks]):
            say(f"  note: {note}")
        try:
            run_state.restore(parts, saved)
        except MismatchError as error:
            raise self._refusal(_with_advice(error, saved)) from None
        self._good = saved if self.keeps_good else None
        self._saved_moment = self._moment(parts)

    def load_feed(self, parts: RunParts, saved: RunState, files: pathlib.Path | None) -> None:
        """Finds the feed of a state again, and sets the counters to the position in it; see `RunFeeds.load_state_dict`.

        Raises:
            MismatchError: if it cannot be found.
        """
        try:
            parts.feeds.load_state_dict(saved.state["feed"], files)
        except MismatchError as error:
            raise self._refusal(error) from None

    def keep(self, parts: RunParts, *, on_disk: bool) -> None:
        """Keeps the state as it is now. If it cannot be written, the run goes on; see `WriteFailures`."""
        parts.requests.save = False
        with parts.accounts.of("saving"), self.failures.tolerated():
            self.write(parts, on_disk=on_disk)

    def keep_final(self, parts: RunParts) -> None:
        """Saves the state that the run ends with, unless it was saved already."""
        if self.workdir is not None and self._cluster.any(self._saved_moment != self._moment(parts))[0]:
            self.keep(parts, on_disk=True)

    def write(self, parts: RunParts, *, on_disk: bool) -> None:
        """Keeps the state as it is now, in memory and on disk as wanted.

        Raises:
            OSError: if it cannot be written.
        """
        state = run_state.gather(parts)
        if self.keeps_good:
            self._good = state
        if on_disk and self.workdir is not None:
            save_feed: Callable[[pathlib.Path], bool] = parts.execution.save_feed
            if self._cluster.several:
                of_workers = self._shared.gather(state, save_feed)
                state, save_feed = self._shared.merged(state, of_workers), self._shared.save_feeds(save_feed, of_workers)
            if self._folder is not None:
                self._save(parts, state, save_feed)
            self._saved_moment = self._moment(parts)

    def _save(self, parts: RunParts, state: RunState, save_feed: Callable[[pathlib.Path], bool]) -> None:
        assert self._folder is not None
        progress = parts.progress
        saved = RunState(state.step, state.arrays, {**state.state, "feed": parts.feeds.state_dict(), "made": self._at_start})
        info = {"epoch": progress.epoch, "epoch_ended": progress.epoch_ended, "seconds": progress.seconds, "logs": _scalars(parts.logs)}
        self._folder.save(saved, info, save_feed)

    @property
    def good(self) -> RunState:
        """The state that `roll_back` goes back to."""
        assert self._good is not None
        return self._good

    def roll_back(self, parts: RunParts) -> int:
        """Restores the last good state; the task's own state and `trainable` flags have to be set already. The feed stays where it is.

        Returns:
            The step that the run went back to.
        """
        progress, counts = parts.progress, {kind: parts.decisions[kind] for kind in ("skip", "rollback")}
        position = progress.position
        run_state.restore(parts, self.good)
        progress.pass_index, progress.batch = position.pass_index, position.batch
        parts.decisions.update(counts)
        parts.execution.rewind()
        return self.good.step

    def training_begins(self) -> None:
        """Removes what the workdir says about the end of the run."""
        if self._folder is not None:
            self._ends_are_written = True
            with self.failures.tolerated():
                outcome_file.remove(self._folder.path)

    def close(self, parts: RunParts, error: BaseException | None) -> str | None:
        """Waits for what is being written, writes how the run ended, if it had begun, and unlocks the folder.

        Args:
            parts: the run.
            error: why it ends, or None.

        Returns:
            Why the last state could not be saved, or None.
        """
        return self._folder.close(lambda failure: self._write_outcome(parts, error, failure)) if self._folder is not None else None

    def _write_outcome(self, parts: RunParts, error: BaseException | None, failure: str | None) -> None:
        if not self._ends_are_written or self._folder is None:
            return
        progress, self._ends_are_written = parts.progress, False
        failed = failure is not None or (error is not None and not isinstance(error, KeyboardInterrupt))
        reason = failure or (str(error).strip().partition("\n")[0] or type(error).__name__ if failed else parts.stop_reason)
        with self.failures.tolerated():
            outcome_file.write(
                self._folder.path,
                "failed" if failed else parts.loop.outcome,
                reason=reason,
                step=progress.step,
                epochs=progress.epoch + progress.epoch_ended,
                seconds=progress.seconds,
            )

    def where(self) -> str:
        """A sentence that says which state is on disk; empty if there is none."""
        if self._folder is None or self._saved_moment is None or self._folder.last_step is None:
            return ""
        return f"The state of step {self._folder.last_step:,} is in {self._folder.path}; the same command goes on from there."

    def _refusal(self, error: MismatchError) -> MismatchError:
        run = f"The run in {str(self.workdir)!r} cannot go on with these settings"
        return MismatchError(f"{run}: {error}. Give what it was, or a new workdir.")

    def _moment(self, parts: RunParts) -> Any:
        return (parts.progress.step, parts.progress.epoch_ended, tuple(parts.decisions.values()))


def _folder(workdir: str | os.PathLike[str], resume: Resume) -> RunFolder:
    """The folder; what reads and writes it is loaded for runs that have one."""
    from loops.run.workdir import RunFolder

    return RunFolder(workdir, resume)


def _with_advice(error: MismatchError, saved: RunState) -> MismatchError:
    """The error, with what to do if hooks had put other models into the task."""
    advice = "a task that grew in training has to grow in its load_state_dict, or by a hook in on_train_begin (by loop.progress)"
    return MismatchError(f"{error}; {advice}") if saved.state["replaced"] else error


def _scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items() if np.ndim(value) == 0 and not isinstance(value, str)}
