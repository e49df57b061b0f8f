"""Predictions of what was fitted: in batches of one size, so that one compiled program serves any number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from loops.feeds import ArrayFeed
from loops.run.eval_loop import PredictLoop
from loops.tasks.base import Task

__all__ = ["Predictor"]


class Predictor:
    """Predicts rows with a task. The last batch is filled up with copies of the last row, so what a row gets does not depend on others.

    Args:
        task: a task with a `predict_step` that returns one array, `[B, ...]`.
        batch_size: rows in a batch.
        compile: as the task was trained; prediction itself is a graph, or eager.

    Attributes:
        task: that task.
    """

    def __init__(self, task: Task, batch_size: int, compile: str):
        self.task, self._batch_size = task, batch_size
        self._loop = PredictLoop(task, compile="eager" if compile == "eager" else "graph")

    def __call__(self, x: Any) -> np.ndarray:
        """Returns the outputs for rows `[N, ...]`, dense or sparse.

        Raises:
            ValueError: if they are not one array of numbers with a row for each row, or not all are finite.
        """
        n = x.shape[0]
        whole = n // self._batch_size * self._batch_size
        parts = [self._run(x[:whole])] if whole else []
        if n > whole:
            rows = np.minimum(np.arange(whole, whole + self._batch_size), n - 1)
            parts.append(self._run(x[rows])[: n - whole])
        outputs = np.concatenate(parts)
        if outputs.dtype.kind == "f" and not np.isfinite(outputs).all():
            raise ValueError(
                "The fitted model gives outputs that are not finite (NaN or infinity): training has diverged. Try a smaller learning rate, "
                'or on_nonfinite="raise", which ends training at the step where that happens.'
            )
        return outputs

    def _run(self, x: Any) -> np.ndarray:
        outputs = self._loop.run(ArrayFeed(x, self._batch_size))
        if not isinstance(outputs, np.ndarray) or outputs.shape[:1] != (x.shape[0],):
            raise ValueError(
                f"scikit-learn's estimators predict one array, a row for each example; the model gives {_kind(outputs)} for {x.shape[0]}."
            )
        return outputs


def _kind(outputs: Any) -> str:
    return f"an array {list(outputs.shape)}" if hasattr(outputs, "shape") else f"a {type(outputs).__name__} of {len(outputs)} outputs"
