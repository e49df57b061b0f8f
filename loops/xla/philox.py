"""Philox random numbers as plain tensor arithmetic: the numbers of TensorFlow's CPU kernels, in a form that XLA compiles to fast programs.

    block number b of a stream = ten rounds of multiplying and mixing (counter + b) with the key = four words of 32 bits
    element i: float32 takes one word, float64 and int64 take two, two normal numbers take the words of two (Box-Muller)

Each element, or pair of words, computes a block of its own and takes the words that it needs. That is more arithmetic, but one loop without
memory accesses, which the compiler turns into vector instructions. `random.py` uses it. Outside of XLA the kernels are faster.

References:
    Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3. Box & Muller 1958, A note on the generation of random normal deviates.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

__all__ = ["categorical", "integers", "integers_between", "key_and_counter", "normal", "truncated_normal", "uniform", "word_pairs"]

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_SCRAMBLING_KEY = 0x02461E293EC8F720  # key of the stream whose first block turns a seed into key and counter
_SMALLEST = 1e-7  # lower bound for the argument of the logarithm
_BOUND = 2.0  # bound for the absolute value of truncated normal numbers
_BLOCKS_PER_TRUNCATED = 64  # reserved for each element, so that groups of elements do not depend on each other

# dtype -> unsigned integer of its size, mask of the mantissa, bits of 1.0
_FORMATS = {
    tf.float16: (tf.uint16, 0x3FF, 0x3C00),
    tf.bfloat16: (tf.uint16, 0x7F, 0x3F80),
    tf.float32: (tf.uint32, 0x7FFFFF, 0x3F800000),
    tf.float64: (tf.uint64, 0xFFFFFFFFFFFFF, 0x3FF0000000000000),
}

Words = tuple[tf.Tensor, ...]


def key_and_counter(seed: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """The stream of a seed.

    Args:
        seed: int32 or int64 `[2]`.

    Returns:
        key uint64 `[1]` and counter uint64 `[2]`.

    Example:
        >>> word_pairs(tf.range(3), *key_and_counter([1, 2])).shape
        TensorShape([3])
    """
    start = tf.bitcast(tf.cast(seed, tf.int64), tf.uint64)
    # For a single block XLA's own op is fast, and has the order of the kernel.
    words = tf.raw_ops.StatelessRandomUniformFullIntV2(shape=[4], key=[_SCRAMBLING_KEY], counter=start, alg=1, dtype=tf.uint32)
    mixed = _joined(words[::2], words[1::2])
    return mixed[:1], mixed * tf.constant([0, 1], tf.uint64)


def word_pairs(i: Any, key: Any, counter: Any) -> tf.Tensor:
    """Words number `2 i` and `2 i + 1` of the stream as uint64, the first as the lower half.

    Args:
        i: int32 or int64; any shape.
        key: uint64 `[1]`.
        counter: uint64 `[2]`.
    """
    return _joined(*_Stream(key, counter).two_words(i))


def uniform(bits: Any, dtype: Any = tf.float32) -> tf.Tensor:
    """Floating-point numbers in [0, 1), equal to those of the kernel.

    Args:
        bits: a word for each number; for float64 a pair of words, as of `word_pairs`.
        dtype: a floating-point type.
    """
    unsigned, mantissa, one = _FORMATS[tf.as_dtype(dtype)]
    bits = tf.cast(bits, unsigned)
    if dtype == tf.float64:  # the kernel's first word is the upper half here, and the lower half for integers
        bits = _joined(_upper(bits), _lower(bits))
    return tf.bitcast(bits & tf.constant(mantissa, unsigned) | tf.constant(one, unsigned), dtype) - tf.constant(1, dtype)


def integers(bits: Any, dtype: Any = tf.uint64) -> tf.Tensor:
    """Integers of the whole range of int32, uint32, int64 or uint64, equal to those of the kernel.

    Args:
        bits: a word for each number; for 64 bits a pair of words.
        dtype: an integer type.
    """
    return tf.bitcast(bits, dtype)


def integers_between(bits: Any, minval: Any, maxval: Any) -> tf.Tensor:
    """Integers in [minval, maxval), equal to those of the kernel.

    Args:
        bits: a word for each number; for 64 bits a pair of words.
        minval, maxval: scalars of one 32- or 64-bit type, `minval < maxval`.
    """
    low, high = tf.convert_to_tensor(minval), tf.convert_to_tensor(maxval)
    start = tf.bitcast(low, bits.dtype)  # modulo 2^32 or 2^64, as the range between two signed numbers may be too wide for their type
    return tf.bitcast(start + bits % (tf.bitcast(high, bits.dtype) - start), low.dtype)


def normal(i: Any, key: Any, counter: Any, dtype: Any = tf.float32) -> tf.Tensor:
    """Standard normal numbers, equal to those of the kernel up to the rounding of logarithm, sine and cosine.

    Args:
        i, key, counter: as for `word_pairs`; `i` counts the numbers.
        dtype: a floating-point type.
    """
    dtype = tf.as_dtype(dtype)
    sine, cosine = _two_normals(_Stream(key, counter), tf.bitwise.right_shift(i, 1), dtype)
    return tf.cast(tf.where(_is_odd(i), cosine, sine), dtype)


def truncated_normal(i: Any, key: Any, counter: Any, dtype: Any = tf.float32) -> tf.Tensor:
    """Normal numbers of absolute values below 2, equal to those of the kernel up to rounding.

    The kernel fills groups of four (float64: two) elements with the first normal numbers of the group's blocks that are small enough: the
    accepted numbers. Here element r of a group searches the blocks of the group for accepted number r.

    Args: as for `normal`.
    """
    dtype = tf.as_dtype(dtype)
    stream, size = _Stream(key, counter), 2 if dtype == tf.float64 else 4
    number = tf.cast(i, tf.int64)  # the numbers of pairs may be too large for int32
    first, rank = number // size * (_BLOCKS_PER_TRUNCATED * size * size // 2), number % size

    def search(pair: tf.Tensor, passed: tf.Tensor, value: tf.Tensor) -> Any:
        for candidate in _two_normals(stream, first + pair, dtype):
            accepted = tf.abs(candidate) < _BOUND
            value = tf.where(accepted & (passed == rank), candidate, value)
            passed += tf.cast(accepted, passed.dtype)
        return pair + 1, passed, value

    begin = (tf.zeros([], tf.int64), tf.zeros_like(rank), tf.zeros_like(rank, _computed_in(dtype)))
    return tf.cast(tf.while_loop(lambda _, passed, value: tf.reduce_any(passed <= rank), search, begin)[2], dtype)


def categorical(i: Any, key: Any, counter: Any, logits: Any, output_dtype: Any = tf.int64) -> tf.Tensor:
    """Class numbers, each class with the probability of its logit, found where a uniform number falls among the cumulated probabilities.

    They equal those of the kernel if one thread of the kernel does the whole batch: which uniform number a row gets depends on how the
    kernel splits the batch over threads.

    Args:
        i: int32 or int64 `[batch, samples]`, element numbers.
        key: uint64 `[1]`.
        counter: uint64 `[2]`.
        logits: `[batch, classes]`; one that is not finite has probability 0.
        output_dtype: int32 or int64.

    Returns:
        `[batch, samples]`.
    """
    logits = tf.cast(logits, tf.float64)
    possible = tf.math.is_finite(logits)
    largest = tf.reduce_max(tf.where(possible, logits, tf.constant(logits.dtype.min, logits.dtype)), 1, keepdims=True)
    cumulated = tf.cumsum(tf.where(possible, tf.exp(logits - largest), tf.zeros_like(logits)), 1)
    found = uniform(word_pairs(i, key, counter), tf.float64) * cumulated[:, -1:]
    return tf.reduce_sum(tf.cast(cumulated[:, None] <= found[..., None], output_dtype), 2)


class _Stream:
    """The blocks of a key and a counter.

    Args:
        key: uint64 `[1]`.
        counter: uint64 `[2]`, the lower half first.
    """

    def __init__(self, key: Any, counter: Any):
        self._key, self._counter = tf.convert_to_tensor(key)[0], tf.convert_to_tensor(counter)

    def block(self, number: tf.Tensor) -> Words:
        """The four words of the blocks with these numbers."""
        number = tf.cast(number, tf.uint64)
        low = self._counter[0] + number
        high = self._counter[1] + tf.cast(low < number, tf.uint64)
        words = _lower(low), _upper(low), _lower(high), _upper(high)
        keys = _lower(self._key), _upper(self._key)
        for _ in range(_ROUNDS):
            first, second = (tf.cast(w, tf.uint64) * tf.constant(m, tf.uint64) for w, m in zip(words[::2], _MULTIPLIERS, strict=True))
            words = _upper(second) ^ words[1] ^ keys[0], _lower(second), _upper(first) ^ words[3] ^ keys[1], _lower(first)
            keys = keys[0] + tf.constant(_KEY_STEPS[0], tf.uint32), keys[1] + tf.constant(_KEY_STEPS[1], tf.uint32)
        return words

    def two_words(self, i: tf.Tensor) -> Words:
        """Words number `2 i` and `2 i + 1` of the stream."""
        words, odd = self.block(tf.bitwise.right_shift(i, 1)), _is_odd(i)
        return tf.where(odd, words[2], words[0]), tf.where(odd, words[3], words[1])


def _two_normals(stream: _Stream, pair: tf.Tensor, dtype: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Two independent normal numbers for each pair number, in the type that the kernel computes them in."""
    if dtype == tf.float64:
        words = stream.block(pair)
        u, v = _joined(words[0], words[1]), _joined(words[2], words[3])
    else:
        u, v = stream.two_words(pair)
    computed_in = _computed_in(dtype)
    radius = tf.sqrt(-2.0 * tf.math.log(tf.maximum(uniform(u, computed_in), _SMALLEST)))
    angle = tf.cast(tf.cast(uniform(v, computed_in), tf.float64) * (2 * math.pi), computed_in)  # rounded once, as in the kernel
    return tf.sin(angle) * radius, tf.cos(angle) * radius


def _computed_in(dtype: Any) -> Any:
    return tf.float64 if dtype == tf.float64 else tf.float32


def _is_odd(i: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(i, tf.constant(1, i.dtype)) == 1


def _lower(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.uint32)


def _upper(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.bitwise.right_shift(x, tf.constant(32, tf.uint64)), tf.uint32)


def _joined(lower: tf.Tensor, upper: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.left_shift(tf.cast(upper, tf.uint64), tf.constant(32, tf.uint64)) | tf.cast(lower, tf.uint64)
