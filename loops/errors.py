"""The errors of a training run that users may want to catch, in one place."""

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
    "WorkerFailed",
    "WorkerLost",
]

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: the program should be run again later


class DamagedSnapshot(RuntimeError):
    """A file of a snapshot is missing, or has other bytes than were written.

    Attributes:
        step: the step that the snapshot should be of, None if that is unknown.
        reason: what is wrong, in a few words.
    """

    def __init__(self, directory: pathlib.Path, step: int | None, reason: str):
        super().__init__(f"The snapshot {str(directory)!r} is damaged: {reason}.")
        self.directory, self.step, self.reason = directory, step, reason


class InjectedCrash(RuntimeError):
    """The error that an armed crash point raises; see `loops.testing.crash_at`."""


class MismatchError(ValueError):
    """A snapshot does not fit the run that should be restored from it."""


class NonFiniteError(RuntimeError):
    """A step made the loss or the state non-finite. The state is now that from before the step."""


class Preempted(SystemExit):
    """The run got SIGTERM, saved its state, and ends the process with exit code 75, so that a scheduler can queue it again."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


class SaveError(OSError):
    """The run has ended, but its last state, or a record of it, could not be saved."""


class WorkdirInUse(RuntimeError):
    """Another run uses the workdir."""


class WorkerFailed(RuntimeError):
    """Another worker process of the run has failed, for a reason of its own, so this one ends too."""


class WorkerLost(SystemExit):
    """Another worker process of the run is gone. This one ends with exit code 75: started again, all go on from the last snapshot.

    Attributes:
        reason: what TensorFlow, or the other worker, says about it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.reason = reason
