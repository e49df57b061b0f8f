"""`Tracker`, the base class of hooks that follow a run in an experiment tracker: what is logged, when, and which tracker's run goes on.

Exactly once, wherever the process is killed: the run's id is on the disk before the tracker hears of it; all points are in a file of the
workdir (`_tracked_points.py`); a process that goes on asks the tracker what it has, and gives it the rest.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import pathlib
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loops import files, triggers
from loops.engine.rows import Window
from loops.hooks._scalars import numbers
from loops.hooks._tracked_points import Point, TrackedPoints
from loops.hooks._tracker_thread import Client, Ending, TrackerThread
from loops.hooks.base import Hook, Loop, Phase
from loops.hooks.model_checkpoint import ModelCheckpoint
from loops.summaries.event_records import png_files
from loops.triggers import Trigger

__all__ = ["Tracker"]

_FOLDER = "trackers"  # of a workdir
_POINTS, _RUN = "points.jsonl", "run.json"
_PLOTS = "plots"
_SECONDS_IN_A_HURRY = 10.0  # after a signal, or when the tracker fails


class Tracker(Hook):
    """Follows a run in an experiment tracker.

    Args:
        every: when values of training steps are logged, beside the end of epochs and evaluations: "100 steps", a `Trigger`, or None.
        weights: whether the best weights are kept with the tracker.
        timeout: seconds to wait for the tracker when training has ended.
    """

    phase = Phase.RECORD

    def __init__(self, *, every: Trigger | str | None, weights: bool, timeout: float):
        triggers.parse(every)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"{type(self).__name__}(timeout=...) takes seconds, more than 0; got {timeout!r}.")
        self.every, self.weights, self.timeout = every, weights, float(timeout)
        self.final_window = every is not None
        self._id: str | None = None
        self._points = TrackedPoints(None, keep=False)
        self._thread: TrackerThread | None = None
        self._running = self._warned = False
        self._ended: list[Any] | None = None
        self._pictures = pathlib.Path()
        self._evaluated: set[str] = set()
        self._files: list[pathlib.Path] = []
        self._ending: Ending | None = None

    @abc.abstractmethod
    def client(self, loop: Loop, identity: str, pictures: pathlib.Path) -> Client:
        """The tracker's run of this id, not opened yet; pictures of points are in the folder `pictures`."""

    def image(self, name: str, array: npt.ArrayLike, step: int) -> None:
        """Logs a picture of your own, from any hook that runs in the same loop.

        Args:
            name: name of the picture.
            array: shape [height, width] or [height, width, channels] with 1, 3 or 4 channels; uint8, or floats from 0 to 1.
            step: the training step that it belongs to.

        Raises:
            RuntimeError: outside of training.
            ValueError: if the shape is none of these.
        """
        if not self._running:
            raise RuntimeError(f"{self.name}.image logs pictures while a training loop runs; `add_files` takes files at any time.")
        pixels = np.asarray(array)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4):
            raise ValueError(
                f"A picture has shape [height, width] or [height, width, channels] with 1, 3 or 4 channels; {name!r} has shape "
                f"{list(np.shape(array))}."
            )
        file = f"{name.replace('/', '-')}-{step}.png"
        try:
            files.write_bytes(self._pictures / file, png_files(pixels[None])[0])
        except OSError as error:
            self._warn(f"could not write the picture {file} ({error})")
            return
        self._add(Point(step, time.time(), {}, {name: file}))

    def add_files(self, loop: Loop, *paths: str | os.PathLike[str]) -> None:
        """Keeps files with the tracker's run: in training when it ends, afterwards at once.

        Args:
            loop: the loop of the run.
            paths: files, such as pictures.
        """
        given = [pathlib.Path(path) for path in paths]
        if self._running:
            self._files += given
        else:
            self._reopen(loop, given, {})

    def on_train_begin(self, loop: Loop) -> None:
        self._loop, self._running, self._warned = loop, True, False
        self._files, self._ending = [], None
        if loop.progress.step == 0:
            self._id, self._evaluated, self._ended = None, set(), None
        if self._id is None:
            folder = self._folder(loop)
            # The folder may hold a run that was killed before its first snapshot: it begins anew, and the tracker's run goes on if it is
            # the same experiment. For a hook that is new in a resumed run there is nothing.
            known = self._known(folder)
            self._id = known["id"] if known.get("config") == _digest(loop.config) else uuid.uuid4().hex[:12]
            self._ended = known.get("ended")
            self._points = TrackedPoints(folder / _POINTS if folder is not None else None, keep=False)
            self._pictures = folder / "pictures" if folder is not None else pathlib.Path(tempfile.mkdtemp(prefix="tapeloops-"))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._evaluated = set(state["evaluated"])
        if self._thread is None:  # not a rollback
            folder = self._folder(self._loop)
            self._id = state["id"]
            self._points = TrackedPoints(folder / _POINTS if folder is not None else None, keep=True)
        try:
            missing = self._points.cut(state["length"])
        except OSError as error:
            self._warn(f"could not cut its file of points ({error})")
            return
        if missing:
            self._warn(f"lacks {missing} bytes of the points that this run had logged; what the tracker has not got of them is lost")

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._id, "length": self._points.length, "evaluated": sorted(self._evaluated)}

    def before_first_step(self, loop: Loop) -> None:
        self._start(loop)

    def on_window_end(self, loop: Loop, window: Window) -> None:
        trace = window.trace
        means = {name: window.mean(name) for name in trace if np.isfinite(trace[name]).any()}
        values = {**{name: value for name, value in window.logs.items() if name not in trace}, **means, **loop.learning_rate.logs()}
        self._log(window.last_step, {f"batch/{name}": value for name, value in values.items()})

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        if self._running:
            self._evaluated |= set(logs)
            self._log(loop.progress.step, logs)
        elif self._ending is not None:
            self._reopen(loop, [], _flat(logs))

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        # Evaluations were logged at the steps at which they were made.
        values = {name: value for name, value in logs.items() if name not in self._evaluated}
        self._log(loop.progress.step, {**values, **loop.learning_rate.logs(), "epoch": loop.progress.epoch})
        self._evaluated = set()

    def on_train_end(self, loop: Loop) -> None:
        if not self._running:
            return
        outcome, failing = str(loop.outcome), sys.exc_info()[1]
        kept = outcome != "interrupted"  # else the run goes on, and has little time
        reason = f"{type(failing).__name__}: {failing}" if failing is not None else loop.stop_reason
        weights = [path for hook in loop.hooks if (path := _best_of(hook)) is not None] if self.weights and kept else []
        plots = sorted((loop.workdir / _PLOTS).glob("*.png")) if loop.workdir is not None and kept else []
        self._ending = Ending(outcome, reason, loop.progress.step, time.time(), weights=weights, files=[*plots, *self._files])
        if self._thread is None:
            # This process has trained nothing. It may find a run that is complete, whose end the tracker knows, or not if the process was
            # killed right then.
            complete = outcome in ("finished", "stopped") and self._points.length > 0
            if complete and self._ended != [outcome, self._points.length]:
                self._start(loop)
        if self._thread is not None:
            self._end(loop, self._ending)
        self._running = False

    def _start(self, loop: Loop) -> None:
        self._remember(loop, None)
        assert self._id is not None
        self._thread = TrackerThread(self.client(loop, self._id, self._pictures), self._points)

    def _end(self, loop: Loop, ending: Ending) -> None:
        thread, self._thread = self._thread, None
        assert thread is not None
        hurry = ending.outcome == "interrupted" or thread.failure is not None
        if thread.end(ending, min(_SECONDS_IN_A_HURRY, self.timeout) if hurry else self.timeout):
            self._remember(loop, [ending.outcome, self._points.length])
        else:
            self._warn(f"could not give everything to its tracker ({_text(thread.failure)})")
        self._points = self._points.reopened()

    def _reopen(self, loop: Loop, given: list[pathlib.Path], results: dict[str, float]) -> None:
        """Opens the run again when training has ended, for what is known only then."""
        if self._ending is None or self._id is None:
            raise RuntimeError(f"{self.name} has no run yet: it begins when a training loop runs.")
        self._thread = TrackerThread(self.client(loop, self._id, self._pictures), self._points)
        ending = self._ending
        self._end(loop, Ending(ending.outcome, ending.reason, loop.progress.step, time.time(), results=results, files=given))

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        if flat := _flat(values):
            self._add(Point(step, time.time(), flat))

    def _add(self, point: Point) -> None:
        try:
            self._points.add(point)
        except OSError as error:
            self._warn(f"could not keep its points ({error})")
        if self._thread is not None and self._thread.failure is not None:
            self._warn(f"could not log ({_text(self._thread.failure)})")

    def _folder(self, loop: Loop) -> pathlib.Path | None:
        return loop.workdir / _FOLDER / self.name if loop.workdir is not None else None

    def _known(self, folder: pathlib.Path | None) -> dict[str, Any]:
        """What `_remember` kept; empty if there is nothing."""
        try:
            known = json.loads((folder / _RUN).read_text(encoding="utf-8")) if folder is not None else None
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) and isinstance(known.get("id"), str) else {}

    def _remember(self, loop: Loop, ended: list[Any] | None) -> None:
        """Keeps the run's id, and how it ended with how many bytes of points, on the disk."""
        self._ended = ended
        if (folder := self._folder(loop)) is None:
            return
        content = {"id": self._id, "config": _digest(loop.config), "ended": ended}
        try:
            files.write_text(folder / _RUN, json.dumps(content) + "\n", sync=True)
        except OSError as error:
            self._warn(f"could not write {folder / _RUN} ({error})")

    def _warn(self, what: str) -> None:
        if not self._warned:
            warnings.warn(f"{self.name} {what}.{' Training goes on.' if self._running else ''}", stacklevel=2)
        self._warned = True


def _flat(values: Mapping[str, Any]) -> dict[str, float]:
    return {tag: number for name, value in values.items() for tag, number in numbers(name, value)}


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _best_of(hook: Hook) -> pathlib.Path | None:
    return hook.newest_file() if isinstance(hook, ModelCheckpoint) and hook.save_best_only else None


def _text(failure: Exception | None) -> str:
    if failure is None:
        return "it took too long"
    said = str(failure).strip().partition("\n")[0]
    return f"{type(failure).__name__}: {said}" if said else type(failure).__name__
