"""Seeds for the stateless random ops of a step: the same in eager mode, in a graph and under XLA, and after a restart.

A seed depends on the seed of the run, the step, the replica, the place of the call in the step, and the integers given with it. Calls
without integers are numbered in their order. A loop in TensorFlow traces its body once for all iterations, so there a call needs an
integer that differs from iteration to iteration.
"""

from __future__ import annotations

import operator
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from loops.graphs.loop_variables import same_in_some_loop
from loops.tasks.carried import graphs_within

__all__ = ["Seeds", "mix"]

_MASK = 2**64 - 1
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

_LIBRARIES = tuple(os.path.dirname(module.__file__ or "") + os.sep for module in (tf, keras)) + (
    os.path.dirname(os.path.dirname(__file__)) + os.sep,
)
_VECTORIZED = os.sep + "parallel_for" + os.sep  # `tf.vectorized_map` runs its function once, for all elements
_LOOPS = ("WhileBodyFuncGraph", "WhileCondFuncGraph")
_BRANCHES = ("CondBranchFuncGraph",)


def mix(*numbers: int) -> int:
    """Mixes integers into one signed 64-bit integer; different inputs give different, unrelated-looking outputs.

    References:
        SplitMix64: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.

    Example:
        >>> mix(0, 1) != mix(1, 0)
        True
    """
    state = 0
    for number in numbers:
        state = _mixed(state, int(number))
    return state - 2**64 if state >= 2**63 else state


def _mixed(state: int, number: int) -> int:
    state = (state ^ (number & _MASK)) + _GAMMA & _MASK
    state = (state ^ state >> 30) * _FIRST & _MASK
    state = (state ^ state >> 27) * _SECOND & _MASK
    return state ^ state >> 31


def _mixed_in_graph(state: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """`_mixed` for uint64 tensors, whose sums and products wrap around."""

    def xor_shifted(x: tf.Tensor, bits: int) -> tf.Tensor:
        return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(bits, tf.uint64)))

    state = tf.bitwise.bitwise_xor(state, number) + tf.constant(_GAMMA, tf.uint64)
    state = xor_shifted(state, 30) * tf.constant(_FIRST, tf.uint64)
    return xor_shifted(xor_shifted(state, 27) * tf.constant(_SECOND, tf.uint64), 31)


class Seeds:
    """Gives the seeds of one step on one replica, while the step is traced or runs eagerly.

    Args:
        run_seed: seed of the run.
        replica: number of the replica.
        step: int64 scalar tensor that differs from step to step.

    Attributes:
        drawn: how many were given.
    """

    def __init__(self, run_seed: int, replica: int, step: tf.Tensor):
        self._run_seed, self._replica, self._step = run_seed, replica, step
        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self._sites, self.drawn = 0, 0
        self._places: dict[Any, int] = {}
        self._used: set[Any] = set()
        self._given: list[Any] = []  # kept, as they are known by their ids
        self._in_loops: list[tuple[list[tf.Tensor], Any]] = []

    def seed(self, fold: tuple[Any, ...]) -> tf.Tensor:
        """A seed pair, int64 `[2]`; see `Task.seed`."""
        self.drawn += 1
        numbers = [_integer(value) for value in fold]
        self._given.append(fold)
        frames = list(_frames_of_user())
        if any("recompute_grad" in frame.f_code.co_qualname for frame in frames):
            raise ValueError(
                "self.seed() in a function of tf.recompute_grad (or keras.remat) would give the backward pass other numbers than the "
                "forward pass had, and so a wrong gradient: call self.seed() outside of it and use the seed inside."
            )
        place = tuple((frame.f_code, frame.f_lasti) for frame in frames if not frame.f_code.co_filename.startswith(_LIBRARIES))
        same = tuple(number if isinstance(number, int) else id(value) for number, value in zip(numbers, fold, strict=True))
        self._check(numbers, place, same, vectorized=any(_VECTORIZED in frame.f_code.co_filename for frame in frames))
        if not fold or place not in self._places:
            self._sites += 1
            self._places[place] = self._sites
        state: Any = mix(self._run_seed, self._places[place], self._replica) & _MASK
        for number in numbers:
            if isinstance(state, int) and isinstance(number, int):
                state = _mixed(state, number)
            else:
                state = tf.constant(state, tf.uint64) if isinstance(state, int) else state
                number = tf.constant(number & _MASK, tf.uint64) if isinstance(number, int) else tf.cast(number, tf.uint64)
                state = _mixed_in_graph(state, number)
        if isinstance(state, int):
            state = tf.constant(state - 2**64 if state >= 2**63 else state, tf.int64)
        return tf.stack([tf.cast(state, tf.int64), tf.cast(self._step, tf.int64)])

    def finish(self) -> None:
        """Refuses what only the whole step shows. Call it when the step is done.

        Raises:
            ValueError: if the integers that were given in a loop of TensorFlow are the same in all turns of it, or of a loop around it.
        """
        for numbers, graph in self._in_loops:
            if same_in_some_loop(numbers, graph, self._graph):
                raise ValueError(
                    "self.seed(...) in a loop of TensorFlow was given integers that are the same in every iteration of that loop, or of a "
                    "loop around it, so that numbers would be drawn again: give it the indices of all loops around it, as in "
                    "self.seed(i, j)."
                )

    def _check(self, numbers: list[Any], place: Any, same: tuple[int, ...], *, vectorized: bool) -> None:
        """Refuses a call that would give the same seed more than once."""
        around = graphs_within(self._graph)
        in_loop = vectorized or any(kind in _LOOPS for kind in around)
        fixed = all(isinstance(number, int) for number in numbers)
        if in_loop and fixed:
            given = f"self.seed({', '.join(map(str, numbers))})"
            raise ValueError(
                f"{given} in a loop of TensorFlow would give every iteration the same numbers, because the body is traced once: "
                "give it the loop's index, as in self.seed(i)."
            )
        in_function = [kind for kind in around if kind not in _LOOPS + _BRANCHES]
        if in_function and not vectorized and (fixed or self._graph is None):
            raise ValueError(
                "self.seed() in a tf.function that the step calls would give every call the same numbers, because that function is traced "
                "once: call self.seed() outside of it and hand the seed over as an argument."
            )
        if in_loop and not vectorized:
            tensors = [number for number in numbers if not isinstance(number, int)]
            self._in_loops.append((tensors, tf.compat.v1.get_default_graph()))
        if numbers and (fixed or not around) and (place, same) in self._used:
            given = ", ".join(str(number) if isinstance(number, int) else "a tensor" for number in numbers)
            raise ValueError(
                f"self.seed({given}) was called twice at one place of a step with the same numbers, which would "
                "give the same seed again: give each call another number, or none."
            )
        self._used.add((place, same))


def _frames_of_user() -> Iterator[types.FrameType]:
    """The frames of the call of `Task.seed`, up to that of the step."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_on_replica":
        yield frame
        frame = frame.f_back  # type: ignore[assignment]


def _integer(value: Any) -> Any:
    """A Python integer if the value is known, else an int64 scalar tensor."""
    if isinstance(value, (tf.Tensor, tf.Variable, keras.Variable)):
        tensor = tf.convert_to_tensor(value)
        if tensor.dtype.is_integer and tensor.shape.rank in (0, None):
            known = tf.get_static_value(tensor)
            return int(known) if known is not None else tf.cast(tensor, tf.int64)
        value = f"a tensor of {tensor.dtype.name} and shape {tensor.shape}"
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        return operator.index(value)
    raise TypeError(f"self.seed takes integers, as Python numbers or scalar tensors; got {value}.")
