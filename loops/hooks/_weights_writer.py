"""Writes `.weights.h5` files while training goes on, with Keras's own writer, from copies of the weights.

Keras's writer spends nearly all of its time in Python that walks over the model; copying the weights of a small model to the host is quick.
Not for whole models (`.keras`), whose configuration has to be read from the live model.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api, files
from loops.tasks.variable_reads import VariableReads

__all__ = ["WeightsWriter", "atomically"]


def atomically(path: pathlib.Path, write: Callable[[str], Any]) -> None:
    """`files.write_atomically`, with a sentence for whoever gave the path.

    Raises:
        OSError: if that is not possible.
    """
    try:
        files.write_atomically(path, write)
    except OSError as error:
        raise OSError(f"Cannot write {path} ({error}); give the path of a file in a folder that you may write to.") from error


_SECONDS_BETWEEN_FILES = 0.5


@dataclasses.dataclass(frozen=True)
class _Job:
    model: keras.Model
    path: pathlib.Path
    copies: list[tuple[Any, Any]]
    then: list[Callable[[], Any]]


class WeightsWriter:
    """Saves a model's weights in a thread, at most one file at a time, and one path at most twice a second.

    The first save of a model is waited for and tells which variables Keras writes; those are copied at each later save, and the thread
    shows the copies to Keras's writer in place of the live variables (`keras.StatelessScope`). The file is the one that
    `model.save_weights` would have written at the time of the call, byte for byte. A file that the next one would replace at once is not
    written: of saves to one path that come faster, the newest is.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "best.weights.h5"
        >>> writer = WeightsWriter()
        >>> writer.save(model, path)
        >>> writer.close()
        >>> model.load_weights(path)
    """

    def __init__(self) -> None:
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._writing: concurrent.futures.Future[None] | None = None
        self._structure: tuple[int, ...] = ()
        self._written: list[Any] = []
        self._reads = VariableReads([])
        self._in_thread = True
        self._lock = threading.Lock()
        self._job: _Job | None = None
        self._hurry = threading.Event()
        self._not_before = 0.0

    def save(self, model: keras.Model, path: pathlib.Path, then: Callable[[], Any] = lambda: None) -> None:
        """Takes the weights as they are now and writes them, in time, to `path`.

        Args:
            model: a built model.
            path: where the file goes, ending in ".weights.h5".
            then: called, from whatever thread, when the file is in its place.

        Raises:
            OSError: if this file, or the one before it, could not be written.
        """
        structure = _structure(model)
        if structure == self._structure and self._in_thread:
            copies = list(zip(self._written, self._reads.arrays(), strict=True))
            if not self._replaces(job := _Job(model, path, copies, [then])):
                self.wait()
                self._job = job
                self._writing = self._thread().submit(self._write)
            return
        self.wait()
        if structure != self._structure:
            self._structure = structure
            self._in_thread = self._learn(model, path)
            self._reads = VariableReads(self._written)
        if not self._in_thread:
            atomically(path, lambda name: model.save_weights(name, overwrite=True))
        then()

    @property
    def busy(self) -> bool:
        """Whether a file is being written."""
        return self._writing is not None and not self._writing.done()

    def wait(self) -> None:
        """Returns when no file is being written; raises the error of the last one."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._hurry.set()
            try:
                writing.result()
            finally:
                self._hurry.clear()

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = None

    def _replaces(self, job: _Job) -> bool:
        """Puts `job` in the place of one for the same path that was not begun; False if there is none."""
        with self._lock:
            waiting = self._job
            if waiting is None or waiting.path != job.path:
                return False
            self._job = dataclasses.replace(job, then=[*waiting.then, *job.then])
            return True

    def _write(self) -> None:
        self._hurry.wait(max(0.0, self._not_before - time.monotonic()))
        with self._lock:
            job, self._job = self._job, None
        assert job is not None
        self._not_before = time.monotonic() + _SECONDS_BETWEEN_FILES
        _write_copies(job.model, job.path, job.copies, lambda: [then() for then in job.then])

    def _thread(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(1, "weights", _remember_skipped_attributes)
        return self._pool

    def _learn(self, model: keras.Model, path: pathlib.Path) -> bool:
        # While this thread waits, the live variables are as good as copies.
        try:
            self._written = self._thread().submit(_write_live, model, path).result()
        except Exception:
            # Either this model cannot be walked over in a thread, or the file cannot be written; saving in the plain way tells which.
            self._pool = None
            return False
        return True


class _Copies(keras.StatelessScope):
    """In this scope variables have the given values; those that were asked for and not given are listed in `missed`."""

    def __init__(self, values: list[tuple[Any, Any]]):
        # Copies stay on the host, whatever the default device is.
        with tf.device("CPU:0"):
            super().__init__(values)
        self.missed: dict[int, Any] = {}

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        if value is None:
            self.missed[id(variable)] = variable
        return value


def _write_live(model: keras.Model, path: pathlib.Path) -> list[Any]:
    with _Copies([]) as scope:
        atomically(path, lambda name: model.save_weights(name, overwrite=True))
    return list(scope.missed.values())


def _write_copies(model: keras.Model, path: pathlib.Path, copies: list[tuple[Any, Any]], then: Callable[[], Any]) -> None:
    def write(name: str) -> None:
        with _Copies(copies) as scope:
            model.save_weights(name, overwrite=True)
        if scope.missed:
            names = ", ".join(v.path for v in scope.missed.values())
            raise RuntimeError(f"The model got variables while its weights were being saved ({names}); {path} was not written.")

    atomically(path, write)
    then()


def _remember_skipped_attributes() -> None:
    # Otherwise Keras's writer would make an object of each kind: an optimizer among them, which cannot be made inside a StatelessScope.
    # What is remembered is the writing thread's alone. If Keras has changed, the first save fails and the writer stays with the plain way.
    _private_api.remember_what_is_not_saved(
        ("Operation", "Layer", "Functional", "Sequential", "Metric", "Optimizer", "Loss", "Cross", "Feature")
    )


def _structure(model: keras.Model) -> tuple[int, ...]:
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else [])]
    return (id(model), *map(id, variables))
