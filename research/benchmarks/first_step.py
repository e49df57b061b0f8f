"""The time from `fit` to its first step, of the first and of the second fit of a model: what many short fits are made of.

Each round makes a new model for each contender and fits it twice, for 20 steps with a validation. The step ends, as for its user, when
`on_train_batch_end` is called.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

import loops
from research.benchmarks.workloads import Workload

__all__ = ["CONTENDERS", "STEPS", "Fitted", "measure"]

STEPS = 20

Fit = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Seconds of one fit.

    Attributes:
        first_step: to the end of the first step.
        whole: to the end of the fit.
    """

    first_step: float
    whole: float


class _FirstStep(keras.callbacks.Callback):
    ended: float | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.ended is None:
            self.ended = time.perf_counter()


def _keras_fit(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
    return model.fit(*args, **kwargs)


def _ours(compile: Any) -> Fit:
    def fit(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        return loops.fit(model, *args, compile=compile, **kwargs)

    return fit


#: Name -> function that fits, and what the model is compiled with.
CONTENDERS: Mapping[str, tuple[Fit, dict[str, Any]]] = {
    "fit": (_keras_fit, {"jit_compile": False}),
    "fit_xla": (_keras_fit, {"jit_compile": True}),
    "loops": (_ours("graph"), {}),
    "loops_xla": (_ours("xla"), {}),
}


def measure(workload: Workload, rounds: int, fits: int = 2) -> dict[str, list[list[Fitted]]]:
    """Has the contenders take turns.

    Args:
        workload: what to train.
        rounds: number of turns of each, each with a new model.
        fits: how often a model is fitted.

    Returns:
        contender -> for each round the fits, first to last.
    """
    workload = workload.resized(rows=STEPS * workload.batch_size)
    x, y = workload.data()
    found: dict[str, list[list[Fitted]]] = {name: [] for name in CONTENDERS if not (workload.convolutions and "xla" in name)}
    for _ in range(rounds):
        for name, fitted in found.items():
            fit, compiled = CONTENDERS[name]
            model = workload.model(**compiled)
            gc.collect()
            fitted.append([_timed(fit, model, x, y, workload.batch_size) for _ in range(fits)])
    return found


def _timed(fit: Fit, model: keras.Model, x: Any, y: Any, batch_size: int) -> Fitted:
    first, begun = _FirstStep(), time.perf_counter()
    fit(model, x, y, batch_size=batch_size, epochs=1, validation_data=(x, y), verbose=0, callbacks=[first])
    ended = time.perf_counter()
    assert first.ended is not None
    return Fitted(first.ended - begun, ended - begun)
