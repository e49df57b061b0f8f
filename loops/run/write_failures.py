"""Collects write errors, because a full disk must not end a run: each is reported once while the run goes on, and raised at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from loops.errors import SaveError
from loops.hooks.base import Hook, Phase
from loops.messages import say

__all__ = ["WriteFailures"]

SNAPSHOT = "The snapshot"


class WriteFailures:
    """The write errors of a run.

    Args:
        tolerant: whether the run goes on when something cannot be written; true for runs with a workdir.
    """

    def __init__(self, *, tolerant: bool):
        self._tolerant = tolerant
        self._sentences: dict[str, str] = {}

    def clear(self) -> None:
        """Forgets all errors, when a run begins."""
        self._sentences.clear()

    @contextlib.contextmanager
    def tolerated(self, hook: Hook | None = None) -> Iterator[None]:
        """A context that catches an `OSError` of a RECORD or SAVE hook, or of a snapshot (None), and reports it once."""
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
        """Adds the reason why the last state could not be saved."""
        self._sentences[SNAPSHOT] = sentence

    def error(self) -> SaveError | None:
        """The error to raise at the end of the run; None if everything was written."""
        return SaveError(" ".join(self._sentences.values())) if self._sentences else None
