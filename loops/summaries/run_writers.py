"""The event files of a training run: a writer for each TensorBoard run, and the state to cut all files back to an earlier moment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from typing import Any

from loops.summaries.event_files import cut_back
from loops.summaries.writer import SummaryWriter

__all__ = ["RunWriters"]

_NEVER = 1 << 62


class RunWriters:
    """A `SummaryWriter` for each TensorBoard run below a directory, made at its first use.

    The names of all files contain a mark, which stays the same when the training run is started again and differs from that of any other
    training run.

    Attributes:
        directory: directory above the TensorBoard runs, None before `begin`.

    Example:
        >>> import tempfile
        >>> from loops import testing
        >>> runs = RunWriters()
        >>> runs.begin(tempfile.mkdtemp(), "my run", from_step_0=True)
        >>> runs["train"].scalars([1], {"loss": [0.5]})
        >>> state = runs.state_dict()
        >>> runs["train"].scalars([2], {"loss": [99.0]})
        >>> runs.load_state_dict(state)
        []
        >>> runs["train"].scalars([2], {"loss": [0.25]})
        >>> runs.close()
        >>> testing.read_events(runs.directory)
        {'train': {'loss': [(1, 0.5), (2, 0.25)]}}
    """

    def __init__(self) -> None:
        self.directory: str | None = None
        self._writers: dict[str, SummaryWriter] = {}
        self._mark = ""
        self._reset()

    def _reset(self) -> None:
        self._not_before = 0  # new files have a time in their names that is not earlier
        self._files: dict[str, dict[str, int]] = {}  # run -> closed files and their lengths
        self._last_steps: dict[str, int] = {}
        self._restarts: dict[str, int] = {}

    def begin(self, directory: str, identity: str | None, *, from_step_0: bool) -> None:
        """To be called when training begins or goes on.

        Args:
            directory: directory above the TensorBoard runs.
            identity: text by which the training run is recognized when it is started again; None if it cannot be.
            from_step_0: whether training begins at step 0. Then files of the same identity are deleted: they come from an attempt that
                ended before its first snapshot.
        """
        self.close()
        self.directory = directory
        if from_step_0 or not self._mark:
            self._reset()
            self._mark = hashlib.sha256((identity or uuid.uuid4().hex).encode()).hexdigest()[:8]
        if from_step_0 and identity is not None:
            cut_back(directory, {}, self._mark)

    def __getitem__(self, run: str) -> SummaryWriter:
        if run not in self._writers:
            # TensorBoard takes the first START event of a run for its beginning, and drops points only at later ones. So the first file of
            # a run begins with one at a step that is never reached.
            first = None if run in self._files else _NEVER
            restarts_at = self._restarts.pop(run, first)
            self._writers[run] = SummaryWriter(self.path(run), mark=self._mark, not_before=self._not_before, restarts_at=restarts_at)
        return self._writers[run]

    def path(self, run: str) -> str:
        """The directory of a TensorBoard run."""
        return os.path.join(self.directory or "", run)

    def close(self) -> None:
        """Closes all files; later writes go into new ones. Raises the first error of a writer."""
        with contextlib.ExitStack() as stack:  # closes all of them, even if one fails
            for run, writer in self._writers.items():
                stack.callback(self._remember, run, writer)
                stack.callback(writer.close)
            self._writers = {}

    def state_dict(self) -> dict[str, Any]:
        """Flushes all files and returns their names and lengths, JSON-able. It reads no file."""
        for run, writer in self._writers.items():
            writer.flush()
            self._remember(run, writer)
        return {
            "mark": self._mark,
            "time": max(int(time.time()), self._not_before),
            "files": {run: dict(files) for run, files in self._files.items()},
            "last_steps": dict(self._last_steps),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Cuts all files back to their lengths when `state_dict` returned `state`, and deletes files that were begun since.

        Returns:
            The paths of files that are missing or shorter than they were.
        """
        if self.directory is None:
            raise RuntimeError(
                "TensorBoard.load_state_dict needs a training loop that has begun: before, it is unknown where the files are."
            )
        self.close()
        self._reset()
        self._mark, self._last_steps = state["mark"], dict(state["last_steps"])
        self._not_before = state["time"] + 1  # within one second process ids would decide the order of the files
        places = {os.path.join(run, name): (run, name) for run, files in state["files"].items() for name in files}
        kept, lost = cut_back(self.directory, {path: state["files"][run][name] for path, (run, name) in places.items()}, self._mark)
        for path, length in kept.items():
            run, name = places[path]
            self._files.setdefault(run, {})[name] = length
        # TensorBoard drops all points from this step on, whether their axis counts epochs or steps. A step after the largest that was kept
        # makes sure that it drops no point that was kept.
        self._restarts = {run: step + 1 for run, step in self._last_steps.items()}
        return [os.path.join(self.directory, path) for path in lost]

    def _remember(self, run: str, writer: SummaryWriter) -> None:
        self._files.setdefault(run, {}).update(writer.files)
        self._last_steps[run] = max(self._last_steps.get(run, -1), writer.last_step)
