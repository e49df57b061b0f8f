"""When something is due: every N steps, every N epochs, every N seconds, at given steps, or any of these.

A trigger gets a `Progress` and the time as arguments and reads no clock itself, so tests need not sleep.
"""

from __future__ import annotations

import abc
import re
from typing import Any

from loops.engine.progress import Progress

__all__ = ["AnyOf", "At", "EveryEpochs", "EverySeconds", "EverySteps", "Never", "Trigger", "parse"]


class Trigger(abc.ABC):
    """Says when a hook wants to look. Combine two with `|`.

    Example:
        >>> from loops import triggers
        >>> triggers.parse("100 steps") | triggers.parse("1 epoch")
        AnyOf(EverySteps(100), EveryEpochs(1))
    """

    def start(self, now: float) -> None:
        """Training begins, at time `now` in seconds on a monotonic clock. Called once."""

    def next_step(self, step: int) -> int | None:
        """First step after `step` at which this trigger will be due, or None if it does not count in steps."""
        return None

    def may_fire_between_steps(self) -> bool:
        """True if the trigger depends on time, so that `due` has to be asked after every call."""
        return False

    def times_in(self, epochs: int | None, steps: int | None) -> int:
        """How often it is due in a run of so many epochs and steps, as far as that is known; None: that number is not."""
        return 0

    @abc.abstractmethod
    def due(self, progress: Progress, now: float) -> bool:
        """True if a look is due at `progress`. Has no side effect."""

    def fired(self, now: float) -> None:
        """Its hook has looked at time `now`."""

    def __or__(self, other: Trigger | str) -> AnyOf:
        return AnyOf(self, parse(other))


class Never(Trigger):
    """Is never due."""

    def due(self, progress: Progress, now: float) -> bool:
        return False

    def __repr__(self) -> str:
        return "Never()"


class EverySteps(Trigger):
    """Due when the completed steps are a multiple of `n`.

    Args:
        n: number of training steps, at least 1.
    """

    def __init__(self, n: int):
        self.n = _positive(n, "steps")

    def next_step(self, step: int) -> int:
        return (step // self.n + 1) * self.n

    def times_in(self, epochs: int | None, steps: int | None) -> int:
        return (steps or 0) // self.n

    def due(self, progress: Progress, now: float) -> bool:
        return progress.step > 0 and progress.step % self.n == 0

    def __repr__(self) -> str:
        return f"EverySteps({self.n})"


class EveryEpochs(Trigger):
    """Due at the end of every `n`-th epoch.

    Args:
        n: number of epochs, at least 1.
    """

    def __init__(self, n: int):
        self.n = _positive(n, "epochs")

    def times_in(self, epochs: int | None, steps: int | None) -> int:
        return (epochs or 0) // self.n

    def due(self, progress: Progress, now: float) -> bool:
        return progress.epoch_ended and (progress.epoch + 1) % self.n == 0

    def __repr__(self) -> str:
        return f"EveryEpochs({self.n})"


class EverySeconds(Trigger):
    """Due when `seconds` have passed since its hook looked last (or since the start).

    Args:
        seconds: interval in seconds of wall time, greater than 0.
    """

    def __init__(self, seconds: float):
        if not seconds > 0:
            raise ValueError(f"A time trigger needs a positive number of seconds, got {seconds!r}.")
        self.seconds = float(seconds)
        self._last = 0.0

    def start(self, now: float) -> None:
        self._last = now

    def may_fire_between_steps(self) -> bool:
        return True

    def due(self, progress: Progress, now: float) -> bool:
        return now - self._last >= self.seconds

    def fired(self, now: float) -> None:
        self._last = now

    def __repr__(self) -> str:
        return f"EverySeconds({self.seconds:g})"


class At(Trigger):
    """Due at the given completed steps, and at the end of the given epochs.

    Args:
        *steps: numbers of completed steps since the beginning of the run; step 1 is the first.
        epochs: numbers of epochs, from 1.
    """

    def __init__(self, *steps: int, epochs: tuple[int, ...] | list[int] = ()):
        self.steps = tuple(sorted(_positive(s, "steps") for s in steps))
        self.epochs = frozenset(_positive(e, "epochs") for e in epochs)

    def next_step(self, step: int) -> int | None:
        return next((s for s in self.steps if s > step), None)

    def times_in(self, epochs: int | None, steps: int | None) -> int:
        return sum(s <= (steps or 0) for s in self.steps) + sum(e <= (epochs or 0) for e in self.epochs)

    def due(self, progress: Progress, now: float) -> bool:
        return progress.step in self.steps or (progress.epoch_ended and progress.epoch + 1 in self.epochs)

    def __repr__(self) -> str:
        given = [*map(str, self.steps), *([f"epochs={sorted(self.epochs)}"] if self.epochs else [])]
        return f"At({', '.join(given)})"


class AnyOf(Trigger):
    """Due when any of its members is."""

    def __init__(self, *triggers: Trigger | str):
        self.triggers = tuple(parse(t) for t in triggers)

    def start(self, now: float) -> None:
        for trigger in self.triggers:
            trigger.start(now)

    def next_step(self, step: int) -> int | None:
        steps = [s for t in self.triggers if (s := t.next_step(step)) is not None]
        return min(steps, default=None)

    def times_in(self, epochs: int | None, steps: int | None) -> int:
        return max((t.times_in(epochs, steps) for t in self.triggers), default=0)  # several may be due at once

    def may_fire_between_steps(self) -> bool:
        return any(t.may_fire_between_steps() for t in self.triggers)

    def due(self, progress: Progress, now: float) -> bool:
        return any(t.due(progress, now) for t in self.triggers)

    def fired(self, now: float) -> None:
        for trigger in self.triggers:
            trigger.fired(now)

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.triggers))})"


_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def parse(spec: Any) -> Trigger:
    """Turns "100 steps", "1 epoch", "30 seconds", "1 epoch | 5 minutes", a `Trigger` or None (never) into a `Trigger`.

    Raises:
        ValueError: if `spec` is none of these.

    Example:
        >>> parse("30 seconds")
        EverySeconds(30)
    """
    if spec is None:
        return Never()
    if isinstance(spec, Trigger):
        return spec
    if isinstance(spec, str) and "|" in spec:
        return AnyOf(*spec.split("|"))
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(step|epoch|second|minute|hour)s?\s*", spec) if isinstance(spec, str) else None
    if match is None:
        raise ValueError(f"`every` must look like '100 steps', '1 epoch' or '30 seconds', or be a loops.triggers.Trigger; got {spec!r}.")
    number, unit = match.groups()
    if unit in _SECONDS:
        return EverySeconds(float(number) * _SECONDS[unit])
    return (EverySteps if unit == "step" else EveryEpochs)(_whole(number, spec))


def _whole(number: str, spec: str) -> int:
    if "." in number:
        raise ValueError(f"`every` counts whole steps or epochs; got {spec!r}.")
    return int(number)


def _positive(n: int, what: str) -> int:
    if isinstance(n, bool) or int(n) != n or n < 1:
        raise ValueError(f"A trigger needs a whole number of {what}, 1 or more; got {n!r}.")
    return int(n)
