"""`model.fit` as a contender in `scripts/benchmark.py`, on the backend that Keras has in the process. Must not import `loops`."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import keras

from research.benchmarks.contender import Contender, Terminal, Timed
from research.benchmarks.workloads import Workload

__all__ = ["Fit"]


class _Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ended = time.perf_counter()


@dataclasses.dataclass
class Fit(Contender):
    """`model.fit`.

    Attributes:
        steps_per_execution, jit_compile: as in `keras.Model.compile`.
        callbacks: whether to train with the callbacks that do what the hooks of `Ours` do.
    """

    steps_per_execution: int = 1
    jit_compile: bool | str = "auto"
    callbacks: bool = False

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        self._workload, self._directory = workload, directory
        self._model = self.new_model(workload)
        if workload.source == "arrays":
            x, y = workload.data()
            self._data: dict[str, Any] = {"x": x, "y": y, "batch_size": workload.batch_size}
        else:
            self._data = {"x": workload.dataset(), "shuffle": False}
        self.run(1)

    def run(self, epochs: int) -> Timed:
        clock = _Clock()
        given = [*self._callbacks(), clock] if self.callbacks else [clock]
        with contextlib.redirect_stdout(Terminal()):
            self._model.fit(**self._data, epochs=epochs, verbose=int(self.callbacks), callbacks=given)
        return Timed(epochs * self._workload.steps, clock.ended - clock.begun)

    def evaluate(self, x: Any, y: Any) -> None:
        self._model.evaluate(x, y, batch_size=self._workload.batch_size, verbose=0)

    def predict(self, x: Any) -> None:
        self._model.predict(x, batch_size=self._workload.batch_size, verbose=0)

    def new_model(self, workload: Workload) -> keras.Model:
        return workload.model(steps_per_execution=self.steps_per_execution, jit_compile=self.jit_compile)

    def fit(self, model: keras.Model, x: Any, y: Any, **arguments: Any) -> None:
        model.fit(x, y, **arguments)

    def _callbacks(self) -> list[keras.callbacks.Callback]:
        kc, folder = keras.callbacks, self._directory
        return [
            kc.EarlyStopping("loss", patience=1_000_000),
            kc.ModelCheckpoint(folder / "best.weights.h5", "loss", save_best_only=True, save_weights_only=True),
            kc.TensorBoard(folder, update_freq="batch", write_steps_per_second=True),
            kc.CSVLogger(folder / "history.csv"),
        ]
