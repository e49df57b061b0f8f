"""Times the matrix products of one training step of an MLP, one by one, in one of XLA, a TensorFlow graph, NumPy and PyTorch.

    for who in xla graph numpy torch; do python -m research.benchmarks.single_products $who; done

Each in a process of its own: threads of OpenBLAS and of OpenMP go on spinning when a product is done, and take a core from whoever
computes next in the same process.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

__all__ = ["CONTENDERS", "products", "timer_of"]

CONTENDERS = ("xla", "graph", "numpy", "torch")
_WIDTHS = (784, 300, 100, 10)
_ROUNDS, _ROUND_SECONDS = 7, 0.02

#: A product `[m, k] x [k, n]`, and which of the two factors is stored transposed.
Product = tuple[int, int, int, bool, bool]


def products(batch_size: int) -> list[Product]:
    """Those of a step: forward, for the kernels, and, but for the first layer, for the inputs."""
    found: list[Product] = []
    for i, (wide, units) in enumerate(zip(_WIDTHS, _WIDTHS[1:], strict=False)):
        found += [(batch_size, wide, units, False, False), (wide, batch_size, units, True, False)]
        found += [(batch_size, units, wide, False, True)] if i else []
    return found


def timer_of(who: str, product: Product) -> Callable[[int], np.ndarray]:
    """Returns a function that does a product so many times, in one loop, and gives the last result."""
    m, k, n, transpose_a, transpose_b = product
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m) if transpose_a else (m, k), dtype="float32")
    b = rng.standard_normal((n, k) if transpose_b else (k, n), dtype="float32")
    if who in ("xla", "graph"):
        return _in_tensorflow(a, b, transpose_a, transpose_b, xla=who == "xla")
    multiply: Callable[..., object]
    if who == "torch":
        import torch

        x, y, out = torch.from_numpy(a), torch.from_numpy(b), torch.empty(m, n)
        multiply = torch.mm
    else:
        x, y, out = a, b, np.empty((m, n), "float32")
        multiply = np.dot
    x, y = x.T if transpose_a else x, y.T if transpose_b else y

    def repeat(times: int) -> np.ndarray:
        for _ in range(times):
            multiply(x, y, out=out)
        return np.asarray(out)

    return repeat


def _in_tensorflow(a: np.ndarray, b: np.ndarray, transpose_a: bool, transpose_b: bool, *, xla: bool) -> Callable[[int], np.ndarray]:
    import tensorflow as tf

    @tf.function(jit_compile=xla or None, autograph=False)
    def loop(a: tf.Tensor, b: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
        def body(i: tf.Tensor, a: tf.Tensor, c: tf.Tensor) -> tuple[tf.Tensor, ...]:
            # A number of the last result, too small to be seen, goes into a factor: else XLA would do the product once, before the loop.
            # In place: to copy the factor costs as much as half of a product.
            a = tf.raw_ops.TensorStridedSliceUpdate(input=a, begin=[0], end=[1], strides=[1], value=a[:1] + 1e-30 * c[0, 0])
            return i + 1, a, tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)

        begin = (0, a, tf.zeros_like(tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)))
        return tf.while_loop(lambda i, *_: i < times, body, begin)[2]

    given = tf.constant(a), tf.constant(b)
    return lambda times: loop(*given, tf.constant(times)).numpy()


def main(who: str) -> None:
    if who not in CONTENDERS:
        raise SystemExit(f"Say which one of {', '.join(CONTENDERS)} is to be timed; got {who!r}.")
    for batch_size in (32, 128, 512):
        total = 0.0
        for product in products(batch_size):
            repeat = timer_of(who, product)
            repeat(1)
            begun = time.perf_counter()
            repeat(10)
            times = max(10, int(_ROUND_SECONDS / (time.perf_counter() - begun) * 10))
            seconds = []
            for _ in range(_ROUNDS):
                begun = time.perf_counter()
                repeat(times)
                seconds.append((time.perf_counter() - begun) / times)
            total += statistics.median(seconds)
            m, k, n, *_ = product
            print(f"{who:<6} {m:>4} x {k:>3} x {n:>3}  {1e6 * statistics.median(seconds):>8.1f} us")
        print(f"{who:<6} all of a step with a batch of {batch_size}: {1e6 * total:,.0f} us")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
