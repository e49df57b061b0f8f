"""The order of a shuffled pass: a permutation that depends on a seed and the number of the pass alone."""

from __future__ import annotations

import threading

import numpy as np

__all__ = ["Permutations"]

# Ten million numbers take a quarter of a second. Permutations shorter than this are drawn by the thread that cuts blocks, when needed.
_DRAWN_AHEAD = 1 << 20


class Permutations:
    """Permutations of `n` numbers, one for each pass, four bytes a number.

    Args:
        n: how many numbers.
        seed: with the number of the pass, decides the permutation.

    Example:
        >>> orders = Permutations(5, seed=0)
        >>> sorted(orders.of(3).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int):
        self._n, self._seed = n, seed
        self._ahead: _Drawing | None = None
        self._last: tuple[int, np.ndarray] | None = None

    def of(self, pass_index: int) -> np.ndarray:
        """The permutation of a pass, integers `[n]`."""
        last = self._last
        if last is None or last[0] != pass_index:
            self._last, ahead, self._ahead = None, self._ahead, None  # releases the last one: at most two are in memory
            is_ahead = ahead is not None and ahead.pass_index == pass_index
            order = ahead.result() if ahead is not None and is_ahead else _drawn(self._n, self._seed, pass_index)
            self._last = last = pass_index, order
        return last[1]

    def prepare(self, pass_index: int) -> None:
        """Draws a long permutation in the background, so that training does not wait for it when the pass begins."""
        if self._n >= _DRAWN_AHEAD and (self._ahead is None or self._ahead.pass_index != pass_index):
            self._ahead = _Drawing(self._n, self._seed, pass_index)


class _Drawing(threading.Thread):
    """A thread that draws one permutation; NumPy lets other threads run meanwhile."""

    def __init__(self, n: int, seed: int, pass_index: int):
        super().__init__(daemon=True, name="order")
        self.pass_index = pass_index
        self._n, self._seed = n, seed
        self._order: np.ndarray | None = None
        self.start()

    def run(self) -> None:
        self._order = _drawn(self._n, self._seed, self.pass_index)

    def result(self) -> np.ndarray:
        self.join()
        return self._order if self._order is not None else _drawn(self._n, self._seed, self.pass_index)


def _drawn(n: int, seed: int, pass_index: int) -> np.ndarray:
    order = np.arange(n, dtype=np.int32 if n <= np.iinfo(np.int32).max else np.int64)
    np.random.Generator(np.random.Philox(key=[seed & (2**64 - 1), pass_index])).shuffle(order)
    return order
