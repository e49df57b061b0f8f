"""A full disk does not end a run: what could not be written is said once while the run goes on, and again by an error at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from loops.errors import SaveError
from loops.hooks.base import Hook, Phase
from loops.messages import say

__all__ = ["WriteFailures"]

SNAPSHOT = "The snapshot"


class WriteFailures:
    """Collects what a run could not write.

    Args:
        tolerant: whether the run goes on when a record cannot be written; only a run with a workdir does.
    """

    def __init__(self, *, tolerant: bool):
        self._tolerant = tolerant
        self._sentences: dict[str, str] = {}

    def clear(self) -> None:
        """A run begins."""
        self._sentences.clear()

    @contextlib.contextmanager
    def tolerated(self, hook: Hook | None = None) -> Iterator[None]:
        """Within this context an `OSError` of a hook that records or saves, or of a snapshot (None), is noted and said once."""
        try:
            yield
        except OSError as error:
            if not self._tolerant or (hook is not None and hook.phase < Phase.RECORD):
                raise
            name = hook.name if hook is not None else SNAPSHOT
            if name not in self._sentences:
                self._sentences[name] = f"{name} could not be written ({error})."
                say(f"{self._sentences[name]} Training goes on.")

    def add_snapshot(self, sentence: str) -> None:
        """Notes why the last state could not be saved."""
        self._sentences[SNAPSHOT] = sentence

    def error(self) -> SaveError | None:
        """The error that the run ends with, or None if everything was written."""
        return SaveError(" ".join(self._sentences.values())) if self._sentences else None
