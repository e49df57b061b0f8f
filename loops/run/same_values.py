"""Finds out whether all workers of a run hold the same weights; they do as long as nobody assigns on one of them only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops.cluster import Cluster
from loops.errors import MismatchError
from loops.tasks.replicas import is_kept_alike, local_variables
from loops.tasks.run_variables import name_of

__all__ = ["SameValues"]

_TOLERANCE = 1e-4  # kernels of GPUs that add in any order drift apart, by far less


class SameValues:
    """Compares weights between workers by their sums.

    Args:
        cluster: the workers.
    """

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._sums: tuple[tuple[int, ...], Any] | None = None

    def check(self, variables: Sequence[Any], advice: str) -> None:
        """Checks that the values of variables are the same on all workers. One collective.

        Args:
            variables: those that are trained of these are compared; a worker may have others for itself.
            advice: what to do, for the error.

        Raises:
            MismatchError: on all workers, if they differ; it names the first variable.
        """
        if not self._cluster.several:
            return
        compared = [local_variables([v])[0] for v in variables if is_kept_alike(v)]
        compared = [variable for variable in compared if variable.dtype.is_floating]
        if not compared:
            return
        key = tuple(map(id, compared))
        if self._sums is None or self._sums[0] != key:
            function = tf.function(lambda: _sums(compared), autograph=False).get_concrete_function()
            self._sums = key, function
        table = self._cluster.table(self._sums[1]().numpy().reshape(-1)).reshape(self._cluster.count, -1, 2)
        bound = _TOLERANCE * table[0, :, 1] + np.finfo(np.float32).tiny
        differs = (np.abs(table - table[0]).max(-1) > bound) & np.isfinite(table).all(-1)
        if differs.any():
            worker, place = (int(i) for i in np.argwhere(differs)[0])
            raise self._cluster.agreed(
                MismatchError(
                    f"The workers do not hold the same weights: the sum of {name_of(compared[place])} is {table[0, place, 0]:.6g} on "
                    f"worker 0 and {table[worker, place, 0]:.6g} on worker {worker}. {advice}"
                )
            )


def _sums(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """The sum of each variable and of its absolute values, float64 `[variables, 2]`."""
    values = [tf.cast(variable.read_value(), tf.float64) for variable in variables]
    return tf.stack([tf.stack([tf.reduce_sum(value), tf.reduce_sum(tf.abs(value))]) for value in values])
