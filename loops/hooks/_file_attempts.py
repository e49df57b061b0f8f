"""What `ModelCheckpoint` remembers of files that may fail to come into their place: what holds if one does, and what is saved instead."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from loops.hooks._weights_writer import WeightsCopy

__all__ = ["Attempt", "Wanted"]


class Attempt:
    """The state of the hook if a file comes into its place.

    Args:
        best: the best value then.
        files: the files that are kept then.
        path: the file, None if there was none yet.
        in_place: whether the file is in its place.
        before: the attempt before, if it may not have come into its place.
    """

    def __init__(self, best: float | None, files: list[str], *, path: str | None, in_place: bool = False, before: Attempt | None = None):
        self.best, self.files, self.path, self.in_place, self._before = best, files, path, in_place, before

    @property
    def last_in_place(self) -> Attempt:
        """The last attempt whose file came into its place."""
        found = self
        while not found.in_place and found._before is not None:
            found = found._before
        return found

    def succeeded(self, obsolete: list[str]) -> None:
        """Called when the file is in its place; deletes those that are not wanted any more."""
        self.in_place, self._before = True, None
        for file in obsolete:
            pathlib.Path(file).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A file that is to be saved, now or if another one fails.

    Attributes:
        value: the value that makes it the best; None if no value decides.
        where: step, and the words with which a line about it begins.
        model: what is saved.
        path: where.
        copy: the weights of the moment; None if the live model is written at once.
    """

    value: float | None
    where: tuple[int, str]
    model: Any
    path: pathlib.Path
    copy: WeightsCopy | None
