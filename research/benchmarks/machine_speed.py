"""Waits until the machine has its full speed. Neighbours on shared hardware take a third of it, for ten seconds at a time.

No time is missing then: both cores are ours, and do less. So a fixed computation is timed before and after each turn. It has to be one
that uses the cores as training does: a loop in Python takes as long in such a phase as ever.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

__all__ = ["MachineSpeed", "Turns"]

T = TypeVar("T")

_SIDE, _PRODUCTS = 400, 8  # of the matrices, and of them in a probe: 5 ms on two cores
_JUST_NOW = 0.1  # seconds for which a look holds
_SPIN = 0.05  # seconds: OpenBLAS's threads look for work for half of that


class MachineSpeed:
    """Times products of matrices on all cores, again and again.

    Args:
        tolerance: the machine has its full speed as long as the products take at most so many times what they took at their fastest.
        probe: returns the seconds of a fixed computation.
    """

    def __init__(self, tolerance: float = 1.15, probe: Callable[[], float] | None = None):
        self._tolerance, self._probe = tolerance, probe or _products()
        self._fastest = min(self._probe() for _ in range(20))

    def is_full(self) -> bool:
        for _ in range(2):  # what took longer once may have been interrupted
            self._fastest = min(self._fastest, seconds := self._probe())
            if seconds <= self._tolerance * self._fastest:
                return True
        return False


class Turns:
    """Turns that count only if the machine had its full speed before and after them.

    Args:
        speed: None if every turn counts.
        patience: seconds that may be spent in all on waiting and on turns that do not count. After that every turn counts.
        pause: seconds between two looks at a machine that is slow.

    Attributes:
        repeated: number of turns that did not count.
        disturbed: number of turns that counted though the machine was slow.
    """

    def __init__(self, speed: MachineSpeed | None, patience: float = 90.0, pause: float = 0.25):
        self._speed, self._patience, self._pause = speed, patience, pause
        self._full_at = -math.inf
        self.repeated = self.disturbed = 0

    def take(self, turn: Callable[[], T | None]) -> T | None:
        """What a turn returns that counts; None as soon as one returns that, which is nothing to repeat."""
        if self._speed is None:
            return turn()
        while True:
            begun, impatient = time.monotonic(), self._patience <= 0
            full = begun - self._full_at < _JUST_NOW or self._speed.is_full()
            if full or impatient:
                result = turn()
                full = full and self._speed.is_full()
                self._full_at = time.monotonic() if full else -math.inf
                if full or impatient or result is None:
                    self.disturbed += not full
                    return result
                self.repeated += 1
            else:
                time.sleep(self._pause)
            self._patience -= time.monotonic() - begun


def _products() -> Callable[[], float]:
    a = np.random.default_rng(0).random((_SIDE, _SIDE), np.float32)
    out = np.empty_like(a)

    def probe() -> float:
        begun = time.perf_counter()
        for _ in range(_PRODUCTS):
            np.matmul(a, a, out=out)
        seconds = time.perf_counter() - begun
        time.sleep(_SPIN)
        return seconds

    return probe
