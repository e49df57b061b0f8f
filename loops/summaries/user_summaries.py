"""Where `tf.summary` calls in layers and steps write to while a run is on. What is written is up to the user."""

from __future__ import annotations

import contextlib
import os

from loops import _private_api

__all__ = ["UserSummaries"]

_SUFFIX = ".summaries"


class UserSummaries:
    """The default writers of `tf.summary` during a run: that of training, and that of an evaluation while there is one.

    A traced step writes to the writer that was the default one when it was traced. So the writers stay from run to run.

    Example:
        >>> import tempfile, tensorflow as tf
        >>> from loops import testing
        >>> summaries, directory = UserSummaries(), tempfile.mkdtemp()
        >>> summaries.begin(directory + "/train")
        >>> bool(tf.summary.scalar("mine", 2.0, step=1))
        True
        >>> summaries.end()
        >>> testing.read_events(directory)["train"]["mine"]
        [(1, 2.0)]
    """

    def __init__(self) -> None:
        self._writers: dict[str, _private_api.WriterOnDemand] = {}
        self._entered: list[contextlib.ExitStack] = []

    def begin(self, directory: str | os.PathLike[str]) -> None:
        """From now on, until `end`, `tf.summary` writes below `directory`."""
        writer = self._writers.setdefault(os.fspath(directory), _private_api.WriterOnDemand(directory, _SUFFIX))
        self._entered.append(contextlib.ExitStack())
        self._entered[-1].enter_context(writer.as_default())

    def end(self) -> None:
        """Goes back to what was before the last `begin`."""
        if self._entered:
            self._entered.pop().close()
            self.flush()

    def end_all(self) -> None:
        """Goes back to what was before the first `begin`."""
        while self._entered:
            self.end()

    def flush(self) -> None:
        """Writes what is waiting to be written."""
        for writer in self._writers.values():
            writer.flush()
