"""Random ops that XLA compiles well for a CPU, in place of TensorFlow's, while the step of such a program is traced.

XLA turns TensorFlow's stateless random ops into loops that multiply some 3,600 times for four numbers, and computes the key anew for
every element: a dense network with dropout ran at a tenth of its speed. Layers of Keras and steps of users call those ops through
Python functions of TensorFlow, which are replaced here for the time of a trace. Under XLA the replacements take the arithmetic of
`philox.py`; if what was traced is called from a graph, they take TensorFlow's kernel. So both draw the same numbers.

Only functions that look as they did in TensorFlow 2.21 are replaced. The others stay as they are: slow, but right.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from loops import philox

__all__ = ["FastRandomOps", "replaceable"]

Function = Callable[..., Any]

_PHILOX_ON_CPU = (tf.random.Algorithm.PHILOX.value, tf.random.Algorithm.AUTO_SELECT.value)

_here = threading.local()
_lock = threading.Lock()
_entered = 0
_replaced: list[tuple[Any, str, Function]] = []


class FastRandomOps:
    """While it is entered, this thread traces stateless random ops into a form that is fast under XLA on a CPU.

    It may be entered in several threads at once, and within itself. Where there is a GPU or TPU nothing is replaced.

    Example:
        >>> import tensorflow as tf
        >>> def noise():
        ...     with FastRandomOps():
        ...         return tf.random.stateless_uniform([5], seed=[1, 2])
        >>> bool(tf.reduce_all(tf.function(noise, jit_compile=True)() == tf.random.stateless_uniform([5], seed=[1, 2])))
        True
    """

    def __enter__(self) -> FastRandomOps:
        global _entered
        with _lock:
            if _entered == 0 and not any(tf.config.list_logical_devices(kind) for kind in ("GPU", "TPU")):
                _replace()
            _entered += 1
        _here.depth = getattr(_here, "depth", 0) + 1
        return self

    def __exit__(self, *exception: object) -> None:
        global _entered
        _here.depth -= 1
        with _lock:
            _entered -= 1
            if _entered == 0:
                _put_back()


def replaceable() -> dict[str, bool]:
    """For each function that has a replacement, whether TensorFlow still has it, with the parameters that it had."""
    return {name: _found(module, name) is not None for module, name in _KNOWN}


def _key_counter(stock: Function, name: str, *, seed: Any) -> Any:
    # TensorFlow has a named tuple for the two, and all branches have to return the same type.
    return _by_compiler(name, lambda: tuple(stock(seed)), lambda: philox.key_and_counter(seed))


def _filled(numbers: Function) -> Function:
    """An op that fills a shape with `numbers` of a stream."""

    def draw(stock: Function, name: str, *, shape: Any, key: Any, counter: Any, alg: Any, **rest: Any) -> Any:
        if not isinstance(alg, int) or alg not in _PHILOX_ON_CPU:
            return stock(shape, key, counter, alg, **rest, name=name)
        i = _element_numbers(tf.convert_to_tensor(shape, dtype_hint=tf.int32))
        key, counter = tf.convert_to_tensor(key), tf.convert_to_tensor(counter)
        dtype = rest["dtype"] if "dtype" in rest else tf.convert_to_tensor(rest["minval"]).dtype
        fast = functools.partial(numbers, i, key, counter, **rest)
        return _by_compiler(name, lambda: stock(tf.shape(i), key, counter, alg, **rest), lambda: _kept(fast, counter, i, dtype))

    return draw


def _multinomial(stock: Function, name: str, *, logits: Any, num_samples: Any, seed: Any, output_dtype: Any) -> Any:
    logits = tf.convert_to_tensor(logits)
    i = _element_numbers(tf.stack([tf.shape(logits)[0], tf.cast(num_samples, tf.int32)]))

    def fast() -> Any:
        key, counter = philox.key_and_counter(seed)
        return _kept(lambda: philox.categorical(i, key, counter, logits, output_dtype), counter, i, output_dtype)

    return _by_compiler(name, lambda: stock(logits, num_samples, seed, output_dtype), fast)


_STREAM = ("shape", "key", "counter", "alg")
_V1, _V2 = "tensorflow.python.ops.gen_stateless_random_ops", "tensorflow.python.ops.gen_stateless_random_ops_v2"
# module and function -> names of its parameters, replacement. XLA compiles no other stateless random ops.
_KNOWN: dict[tuple[str, str], tuple[tuple[str, ...], Function]] = {
    (_V2, "stateless_random_get_key_counter"): (("seed", "name"), _key_counter),
    (_V2, "stateless_random_uniform_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.uniform)),
    (_V2, "stateless_random_normal_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.normal)),
    (_V2, "stateless_truncated_normal_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.truncated_normal)),
    (_V2, "stateless_random_uniform_full_int_v2"): ((*_STREAM, "dtype", "name"), _filled(philox.integers)),
    (_V2, "stateless_random_uniform_int_v2"): ((*_STREAM, "minval", "maxval", "name"), _filled(philox.integers_between)),
    (_V1, "stateless_multinomial"): (("logits", "num_samples", "seed", "output_dtype", "name"), _multinomial),
}


def _found(module: str, name: str) -> tuple[Any, Function] | None:
    """The module and the function in it, or None if it is not what is expected."""
    try:
        home = importlib.import_module(module)
        function = getattr(home, name)
        parameters = tuple(inspect.signature(function).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return (home, function) if parameters == _KNOWN[module, name][0] else None


def _replace() -> None:
    for (module, name), (_, replacement) in _KNOWN.items():
        found = _found(module, name)
        if found is not None:
            home, stock = found
            _replaced.append((home, name, stock))
            setattr(home, name, _switch(stock, replacement))


def _put_back() -> None:
    while _replaced:
        setattr(*_replaced.pop())


def _switch(stock: Function, replacement: Function) -> Function:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def op(*args: Any, **kwargs: Any) -> Any:
        if not _wanted():
            return stock(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        name = given.arguments.pop("name") or stock.__name__
        return replacement(stock, name, **given.arguments)

    return op


def _wanted() -> bool:
    """Whether this thread traces what will be in a program; initial values of variables are drawn eagerly."""
    if getattr(_here, "depth", 0) == 0 or tf.executing_eagerly():
        return False
    # `tf.vectorized_map` rewrites what was traced, and has no rule for `DeviceIndex`.
    return not any(part.startswith("loop_body") for part in tf.get_current_name_scope().split("/"))


def _by_compiler(name: str, stock: Function, fast: Function) -> Any:
    """What `fast` returns where XLA compiles it, what `stock` returns elsewhere.

    A `tf.function` within the step keeps its trace, and may be called from a graph later.
    """
    with tf.name_scope(name):
        # To XLA devices have no names: it takes the default, and drops the rest.
        return tf.switch_case(tf.raw_ops.DeviceIndex(device_names=["CPU"]), {0: stock}, default=fast)


def _element_numbers(shape: tf.Tensor) -> tf.Tensor:
    """0, 1, 2, ... in that shape."""
    known = tf.get_static_value(shape)
    large = known is not None and math.prod(int(d) for d in known) > tf.int32.max
    dtype = tf.int64 if large else tf.int32
    return tf.reshape(tf.range(tf.reduce_prod(tf.cast(shape, dtype))), shape)


def _kept(numbers: Function, counter: tf.Tensor, i: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Numbers that XLA computes once, not anew in each loop that reads them, forward and backward.

    It fuses nothing across the borders of a conditional, and does not see that this condition always holds. But it makes a selection, which
    is no border, of one that has only elementwise ops in its branches; hence the sort in the branch that is never taken.
    """
    holds = tf.bitwise.bitwise_and(counter[0], tf.constant(1, tf.uint64)) < tf.constant(2, tf.uint64)
    return tf.stop_gradient(tf.cond(holds, numbers, lambda: tf.fill(tf.shape(i), tf.cast(tf.sort(counter)[0], dtype))))
