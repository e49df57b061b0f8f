"""Memory for blocks: rows are written where TensorFlow reads them, and the memory is used again for the next block.

`tf.convert_to_tensor` copies an array twice, into memory that is new each time, which the system has to map and clear: of a batch of 1.6 MB
that took 0.8 ms, where gathering its rows takes 0.06 ms.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["Buffers", "on_the_host"]

_ALIGNED_TO = 64  # bytes, as XLA and TensorFlow's kernels need it
_MOST_KEPT = 2  # of one size: one block is trained on, and the next one is made
_MOST_BYTES = 16 << 20  # larger ones are given back to the system: a block has a few megabytes, unless its batches are larger


class Buffers:
    """Arrays that become tensors without a copy. Memory of which the tensor is gone is used again.

    Example:
        >>> buffers = Buffers()
        >>> array = buffers.array([2, 3], np.dtype("float32"))
        >>> array[:] = 1
        >>> buffers.tensor(array).shape
        TensorShape([2, 3])
    """

    def __init__(self) -> None:
        # No lock: memory may be given back by the garbage collector, in the midst of anything. What a deque does is atomic.
        self._free: dict[int, collections.deque[np.ndarray]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Buffers, ()

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """An array to be filled, with whatever is in its memory; not for text."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        free = self._free.setdefault(size, collections.deque(maxlen=_MOST_KEPT))
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size + _ALIGNED_TO, np.uint8)
        begin = -memory.ctypes.data % _ALIGNED_TO
        array = memory[begin : begin + size].view(dtype).reshape(shape)
        if size <= _MOST_BYTES:
            weakref.finalize(array, free.append, memory).atexit = False
        return array

    @staticmethod
    def tensor(array: np.ndarray) -> tf.Tensor:
        """The tensor of a filled array, which must not be written to any more."""
        if on_the_host():
            with contextlib.suppress(BufferError, TypeError, RuntimeError, tf.errors.OpError):  # DLPack does not know bfloat16
                return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        return tf.convert_to_tensor(array)


@functools.cache
def on_the_host() -> bool:
    """Whether tensors stay in the memory of the host. Else the thread that makes them copies them to the device."""
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())
