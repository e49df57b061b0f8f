"""TensorFlow's profiler over a range of training steps, for TensorBoard's profile page."""

from __future__ import annotations

import warnings
from typing import Any

import tensorflow as tf

__all__ = ["ProfiledRange"]


class ProfiledRange:
    """Profiles the training steps `first` to `last`, both included and counted from 1 over the whole run.

    Args:
        spec: a step, a pair (first, last) of steps, the same pair as a string "first,last", or 0 for no profile.
        name: name of the argument in error messages.

    Raises:
        ValueError: if `spec` is none of these.
    """

    def __init__(self, spec: int | str | tuple[int, int], name: str = "`profile_batch`"):
        parts: Any = spec.split(",") if isinstance(spec, str) else spec if isinstance(spec, (tuple, list)) else (spec, spec)
        try:
            self.first, self.last = (int(part) for part in parts)
        except (TypeError, ValueError):
            self.first, self.last = -1, -1
        if not (0 < self.first <= self.last or self.first == self.last == 0):
            raise ValueError(f"{name} takes a step or a pair (first, last) of steps, counted from 1; got {spec!r}.")
        self._running = False

    def looks(self) -> list[int]:
        """The numbers of completed steps at which `at` has to be called, so that the profile begins and ends exactly."""
        return [step for step in (self.first - 1, self.last) if step > 0]

    def at(self, step: int, directory: str) -> None:
        """To be called at every look: begins the profile if the next step is the first, ends it if `step` was the last.

        Args:
            step: completed steps.
            directory: directory of the TensorBoard run.
        """
        if self._running and step >= self.last:
            self.stop()
        elif self.first and step == self.first - 1:
            try:
                tf.profiler.experimental.start(directory)
                self._running = True
            except tf.errors.OpError as error:  # another profiler is running
                warnings.warn(f"The profiler could not be started: {error.message}", stacklevel=2)

    def stop(self) -> None:
        """Ends the profile and writes it; does nothing if there is none."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
