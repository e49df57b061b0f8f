"""What no library can beat on a machine: the matrix products of a step alone, as fast as NumPy's BLAS does them."""

from __future__ import annotations

import pathlib
import time

import keras
import numpy as np

from research.benchmarks.contender import Contender, Timed
from research.benchmarks.workloads import Workload

__all__ = ["Products", "sizes"]


def sizes(model: keras.Model, batch_size: int) -> list[tuple[int, int, int]]:
    """Rows, inner dimension and columns of the product that each dense or convolutional layer does in its forward pass.

    A convolution counts as the product of its patches with its kernel; making the patches is not counted.

    Example:
        >>> sizes(keras.Sequential([keras.Input([28, 28, 1]), keras.layers.Conv2D(16, 3), keras.layers.Dense(5)]), 32)
        [(21632, 9, 16), (21632, 16, 5)]
    """
    found = []
    for layer in model.layers:
        if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D)):
            *inner, columns = layer.kernel.shape
            found.append((batch_size * int(np.prod(layer.output.shape[1:-1])), int(np.prod(inner)), columns))
    return found


class Products(Contender):
    """The products of all layers, forward and backward, on arrays that are there already. Nothing else: no loss, no update, no data."""

    def unsuitable(self, workload: Workload) -> str | None:
        others = {"MultiHeadAttention", "LSTM"} & {type(layer).__name__ for layer in workload.model().layers}
        return f"the products of {', '.join(sorted(others))} are not counted" if others else None

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        rng = np.random.default_rng(0)
        self._workload = workload
        self._layers = []
        for rows, inner, columns in sizes(workload.model(), workload.batch_size):
            shapes = (rows, inner), (inner, columns), (rows, columns)
            self._layers.append([rng.standard_normal(shape, dtype="float32") for shape in shapes])
        self._results = [[np.empty_like(a) for a in layer] for layer in self._layers]
        self.run(1)

    def run(self, epochs: int) -> Timed:
        begun = time.perf_counter()
        for _ in range(epochs * self._workload.steps):
            for (x, w, dy), (dx, dw, y) in zip(self._layers, self._results, strict=True):
                np.matmul(x, w, out=y)
                np.matmul(x.T, dy, out=dw)
                if dx is not self._results[0][0]:  # nobody asks for the gradient of the data
                    np.matmul(dy, w.T, out=dx)
        return Timed(epochs * self._workload.steps, time.perf_counter() - begun)
