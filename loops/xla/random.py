"""Random ops in a form that XLA compiles well for a CPU, in place of TensorFlow's.

XLA turns TensorFlow's stateless random ops into loops that multiply some 3,600 times for four numbers, and computes the key anew for
every element: a dense network with dropout ran at a tenth of its speed. Here they take the arithmetic of `philox.py`, which has the
numbers of TensorFlow's kernels. When they take its place is the business of `xla_ops.py`.
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


def _key_counter(stock: Function, choose: Function, *, seed: Any) -> Any:
    # TensorFlow has a named tuple for the two, and all branches have to return the same type.
    return choose(lambda: tuple(stock(seed)), lambda: philox.key_and_counter(seed))


def _filled(numbers: Function, *, of_words: bool = False) -> Function:
    """An op that fills a shape with `numbers` of a stream.

    Args:
        numbers: from element numbers, key and counter to numbers; or, with `of_words`, from a word each, for 64 bits from two.
    """

    def draw(stock: Function, choose: Function, *, shape: Any, key: Any, counter: Any, alg: Any, **rest: Any) -> Any:
        if not isinstance(alg, int) or alg not in _PHILOX_ON_CPU:
            return stock(shape, key, counter, alg, **rest)
        i = _element_numbers(tf.convert_to_tensor(shape, dtype_hint=tf.int32))
        key, counter = tf.convert_to_tensor(key), tf.convert_to_tensor(counter)
        dtype = tf.as_dtype(rest["dtype"]) if "dtype" in rest else tf.convert_to_tensor(rest["minval"]).dtype
        # A block is computed for two of its words at a time, which is less arithmetic than for each.
        pair = i if dtype.size == 8 else _element_numbers(tf.reshape((tf.size(i, i.dtype) + 1) // 2, [1]))

        def fast() -> Any:
            if not of_words:
                return _once(functools.partial(numbers, i, key, counter, **rest), counter, i, dtype)
            words = _once(functools.partial(philox.word_pairs, pair, key, counter), counter, pair, tf.uint64)
            if dtype.size < 8:
                words = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint32), [-1])[: tf.size(i, i.dtype)], tf.shape(i))
            return tf.stop_gradient(numbers(words, **rest))

        return choose(lambda: stock(tf.shape(i), key, counter, alg, **rest), fast)

    return draw


def _multinomial(stock: Function, choose: Function, *, logits: Any, num_samples: Any, seed: Any, output_dtype: Any) -> Any:
    logits = tf.convert_to_tensor(logits)
    i = _element_numbers(tf.stack([tf.shape(logits)[0], tf.cast(num_samples, tf.int32)]))

    def fast() -> Any:
        key, counter = philox.key_and_counter(seed)
        return _once(lambda: philox.categorical(i, key, counter, logits, output_dtype), counter, i, output_dtype)

    return choose(lambda: stock(logits, num_samples, seed, output_dtype), fast)


_STREAM = ("shape", "key", "counter", "alg")
_V1, _V2 = _private_api.STATELESS_RANDOM_OPS, _private_api.STATELESS_RANDOM_OPS_V2
# module and function -> names of its parameters, replacement. XLA compiles no other stateless random ops.
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
    """0, 1, 2, ... in that shape."""
    known = tf.get_static_value(shape)
    large = known is not None and math.prod(int(d) for d in known) > tf.int32.max
    dtype = tf.int64 if large else tf.int32
    return tf.reshape(tf.range(tf.reduce_prod(tf.cast(shape, dtype))), shape)


def _once(numbers: Function, counter: tf.Tensor, i: tf.Tensor, dtype: Any) -> tf.Tensor:
    return tf.stop_gradient(computed_once(numbers, witness=counter, dtype=dtype, shape=tf.shape(i)))
