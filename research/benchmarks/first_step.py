"""The time from `fit` to its first step, of the first and of the second fit of a model: what many short fits are made of.

Each turn makes a new model and fits it twice, for 20 steps with a validation. The step ends, as for its user, when `on_train_batch_end` is
called.
"""

from __future__ import annotations

import time
from typing import Any

import keras

from research.benchmarks.contender import Contender
from research.benchmarks.workloads import Workload

__all__ = ["STEPS", "timed_fits"]

STEPS = 20


class _FirstStep(keras.callbacks.Callback):
    ended: float | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.ended is None:
            self.ended = time.perf_counter()


def timed_fits(contender: Contender, workload: Workload, fits: int = 2) -> list[tuple[float, float]]:
    """Fits a new model several times.

    Args:
        contender: how to fit; it need not be set up.
        workload: what to train.
        fits: how often the model is fitted.

    Returns:
        For each fit, first to last, the seconds to the end of the first step, and to the end of the fit.
    """
    workload = workload.resized(rows=STEPS * workload.batch_size, source="arrays")
    (x, y), model = workload.data(), contender.new_model(workload)
    found = []
    for _ in range(fits):
        first, begun = _FirstStep(), time.perf_counter()
        contender.fit(model, x, y, batch_size=workload.batch_size, epochs=1, validation_data=(x, y), verbose=0, callbacks=[first])
        ended = time.perf_counter()
        assert first.ended is not None
        found.append((first.ended - begun, ended - begun))
    return found
