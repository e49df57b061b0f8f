"""The errors of a training run that users may want to catch."""

from __future__ import annotations

import pathlib

__all__ = [
    "EXIT_PREEMPTED",
    "DamagedSnapshot",
    "InjectedCrash",
    "MismatchError",
    "NonFiniteError",
    "Preempted",
    "SaveError",
    "WorkdirInUse",
]

EXIT_PREEMPTED = 75  # sysexits' EX_TEMPFAIL: to be run again


class DamagedSnapshot(RuntimeError):
    """A snapshot that does not hold what was written.

    Attributes:
        step: the step whose snapshot it should be, None if that is unknown.
        reason: what is wrong, in a few words.
    """

    def __init__(self, directory: pathlib.Path, step: int | None, reason: str):
        super().__init__(f"The snapshot {str(directory)!r} is damaged: {reason}.")
        self.directory, self.step, self.reason = directory, step, reason


class InjectedCrash(RuntimeError):
    """The error that an armed crash point raises."""


class MismatchError(ValueError):
    """A snapshot does not fit the run that is to be restored from it."""


class NonFiniteError(FloatingPointError):
    """A step made the loss or the state non-finite. The state is that from before the step."""


class Preempted(SystemExit):
    """The run got SIGTERM, saved its state, and ends the process with exit code 75, so that a scheduler can queue it again."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


class SaveError(OSError):
    """The run has ended, but its last state, or a record of it, could not be saved."""


class WorkdirInUse(RuntimeError):
    """Another run has the workdir."""
