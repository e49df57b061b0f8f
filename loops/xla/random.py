"""Stateless random ops in a form that XLA compiles to fast programs for a CPU.

XLA turns TensorFlow's stateless random ops into loops that multiply some 3,600 times for four numbers, and computes the key again for every
element: a dense network with dropout ran at a tenth of its speed. The replacements use the arithmetic of `philox.py`, which gives the
numbers of TensorFlow's kernels. `replaced_ops.py` decides when they are used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.xla import philox
from loops.xla.barrier import computed_once

__all__ = ["REPLACEMENTS"]

Function = Callable[..., Any]

_PHILOX_ON_CPU = (tf.random.Algorithm.PHILOX.value, tf.random.Algorithm.AUTO_SELECT.value)


def _key_counter(original: Function, choose: Function, *, seed: Any) -> Any:
    # TensorFlow returns a named tuple, but all branches have to return the same type.
    return choose(lambda: tuple(original(seed)), lambda: philox.key_and_counter(seed))


def _filled(numbers: Function, *, of_words: bool = False) -> Function:
    """Makes the replacement of an op that fills a shape with random numbers.

    Args:
        numbers: (element numbers, key, counter, ...) -> numbers; with `of_words`, (words, ...) -> numbers.
        of_words: whether each number takes one word of the stream, or for 64 bits a pair of words.
    """

    def draw(original: Function, choose: Function, *, shape: Any, key: Any, counter: Any, alg: Any, **rest: Any) -> Any:
        if not isinstance(alg, int) or alg not in _PHILOX_ON_CPU:
            return original(shape, key, counter, alg, **rest)
        i = _element_numbers(tf.convert_to_tensor(shape, dtype_hint=tf.int32))
        key, counter = tf.convert_to_tensor(key), tf.convert_to_tensor(counter)
        dtype = tf.as_dtype(rest["dtype"]) if "dtype" in rest else tf.convert_to_tensor(rest["minval"]).dtype
        # Each block gives two of its words at a time, which takes less arithmetic than one.
        pair = i if dtype.size == 8 else _element_numbers(tf.reshape((tf.size(i, i.dtype) + 1) // 2, [1]))

        def fast() -> Any:
            if not of_words:
                return _once(functools.partial(numbers, i, key, counter, **rest), counter, i, dtype)
            words = _once(functools.partial(philox.word_pairs, pair, key, counter), counter, pair, tf.uint64)
            if dtype.size < 8:
                words = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint32), [-1])[: tf.size(i, i.dtype)], tf.shape(i))
            return tf.stop_gradient(numbers(words, **rest))

        return choose(lambda: original(tf.shape(i), key, counter, alg, **rest), fast)

    return draw


def _multinomial(original: Function, choose: Function, *, logits: Any, num_samples: Any, seed: Any, output_dtype: Any) -> Any:
    logits = tf.convert_to_tensor(logits)
    i = _element_numbers(tf.stack([tf.shape(logits)[0], tf.cast(num_samples, tf.int32)]))

    def fast() -> Any:
        key, counter = philox.key_and_counter(seed)
        return _once(lambda: philox.categorical(i, key, counter, logits, output_dtype), counter, i, output_dtype)

    return choose(lambda: original(logits, num_samples, seed, output_dtype), fast)


_STREAM = ("shape", "key", "counter", "alg")
_V1, _V2 = _private_api.STATELESS_RANDOM_OPS, _private_api.STATELESS_RANDOM_OPS_V2
# (module, function) -> (names of its parameters, replacement). XLA compiles no other stateless random ops.
REPLACEMENTS: dict[tuple[str, str], tuple[tuple[str, ...], Function]] = {
    (_V2, "stateless_random_get_key_counter"): (("seed", "name"), _key_counter),
    (_V2, "stateless_random_uniform_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.uniform, of_words=True)),
    (_V2, "stateless_random_normal_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.normal)),
    (_V2, "stateless_truncated_normal_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.truncated_normal)),
    (_V2, "stateless_random_uniform_full_int_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.integers, of_words=True)),
    (_V2, "stateless_random_uniform_int_v2"): ((*_STREAM, "minval", "maxval", "name"), _filled(philox.integers_between, of_words=True)),
    (_V1, "stateless_multinomial"): (("logits", "num_samples", "seed", "output_dtype", "name"), _multinomial),
}


def _element_numbers(shape: tf.Tensor) -> tf.Tensor:
    """0, 1, 2, ... in the given shape; int64 if the shape is known to need it."""
    known = tf.get_static_value(shape)
    large = known is not None and math.prod(int(d) for d in known) > tf.int32.max
    dtype = tf.int64 if large else tf.int32
    return tf.reshape(tf.range(tf.reduce_prod(tf.cast(shape, dtype))), shape)


def _once(numbers: Function, counter: tf.Tensor, i: tf.Tensor, dtype: Any) -> tf.Tensor:
    return tf.stop_gradient(computed_once(numbers, unknown=counter, dtype=dtype, shape=tf.shape(i)))
