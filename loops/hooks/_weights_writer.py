"""Writes `.weights.h5` files in a thread while training goes on, with Keras's own writer, from copies of the weights.

Keras's writer spends nearly all of its time in Python that walks over the model; copying the weights of a small model to the host is quick.
Whole models (`.keras`) cannot be written in this way: their configuration has to be read from the live model.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api, files
from loops.tasks.variable_reads import VariableReads

__all__ = ["WeightsCopy", "WeightsWriter", "atomically", "attributes_lock"]

_SECONDS_TO_REST = 60.0
_locks: weakref.WeakKeyDictionary[Any, threading.Lock] = weakref.WeakKeyDictionary()


def attributes_lock(model: keras.Model) -> threading.Lock:
    """The lock that is held by whoever gives a model an attribute for a moment, or reads its attributes in another thread."""
    return _locks.setdefault(model, threading.Lock())


def atomically(path: pathlib.Path, write: Callable[[str], Any]) -> None:
    """As `files.write_atomically`, with an error message that tells the user what to change.

    Raises:
        OSError: if the file cannot be written.
    """
    try:
        files.write_atomically(path, write)
    except OSError as error:
        raise OSError(f"Cannot write {path} ({error}); give the path of a file in a folder that you may write to.") from error


_LEAST_BETWEEN_FILES, _MOST_BETWEEN_FILES, _REST = 0.5, 5.0, 50  # seconds, seconds, and how many times as long as writing takes


@dataclasses.dataclass(frozen=True)
class WeightsCopy:
    """The values of all variables that a file holds, at one moment.

    Attributes:
        structure: identities of the model and its variables.
        values: pairs of variable and value.
        not_finite: the path of a trainable weight that is not finite, empty if all are.
    """

    structure: tuple[int, ...]
    values: list[tuple[Any, Any]]
    not_finite: str


@dataclasses.dataclass(frozen=True)
class _Job:
    model: keras.Model
    path: pathlib.Path
    copy: WeightsCopy
    then: list[Callable[[], Any]]


class WeightsWriter:
    """Saves a model's weights in a thread, at most one file at a time, and a fiftieth of the time unless somebody waits.

    The first save of a model waits until the file is written, and finds which variables Keras's writer reads. Each later save copies these
    variables, and the thread gives Keras's writer the copies in place of the live variables (`keras.StatelessScope`). The file is the one
    that `model.save_weights` would have written at the time of the call, byte for byte. A save replaces one to the same path whose writing
    has not begun, so of saves in quick succession the newest is written. It waits only for one to another path.

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
        self._pending: list[concurrent.futures.Future[None]] = []
        self._structure: tuple[int, ...] = ()
        self._written: list[Any] = []
        self._reads = VariableReads([])
        self._in_thread = True
        self._lock = threading.Lock()
        self._job: _Job | None = None
        self._write_now = threading.Event()
        self._not_before = 0.0

    def copy(self, model: keras.Model) -> WeightsCopy | None:
        """Copies the weights as they are now; None before the first save of this model, or if its files have to be written by `save`."""
        structure = _structure(model)
        if structure != self._structure or not self._in_thread:
            return None
        weights = model.trainable_variables
        if not self._reads.of(self._written, weights):
            self._reads = VariableReads(self._written, weights)
        arrays, finite = self._reads.arrays_and_finite()
        not_finite = next((weight.path for weight, good in zip(weights, finite, strict=True) if not good), "")
        return WeightsCopy(structure, list(zip(self._written, arrays, strict=True)), not_finite)

    def save(
        self, model: keras.Model, path: pathlib.Path, then: Callable[[], Any] = lambda: None, *, copy: WeightsCopy | None = None
    ) -> None:
        """Writes the weights as they are now, or as they were when `copy` was made, to `path`: later, if they can be copied.

        Args:
            model: a built model.
            path: where the file goes, ending in ".weights.h5".
            then: called when the file is in its place, in the writing thread or in this one.
            copy: what `copy` returned for this model.

        Raises:
            OSError: if this file, or one before it, could not be written; `failures` and `wait` say so of one that is written later.
        """
        if (copy := copy or self.copy(model)) is not None:
            self._queue(_Job(model, path, copy, [then]))
            return
        self.wait()
        if (structure := _structure(model)) != self._structure:
            self._structure = structure
            self._in_thread = self._find_written(model, path)
            self._reads = VariableReads([])
        if not self._in_thread:
            atomically(path, lambda name: model.save_weights(name, overwrite=True))
        then()

    @property
    def pending(self) -> int:
        """How many files are being written, or wait for it: two at most."""
        return sum(not writing.done() for writing in self._pending)

    @property
    def busy(self) -> bool:
        """Whether a file is being written."""
        return self.pending > 0

    def failures(self) -> list[BaseException]:
        """The errors of the files that could not be written, each once. It does not wait for those that are being written."""
        done = [writing for writing in self._pending if writing.done()]
        self._pending = [writing for writing in self._pending if writing not in done]
        return [error for writing in done if (error := writing.exception()) is not None]

    def wait(self) -> None:
        """Waits until no file is being written; raises the first error."""
        self._write_pending()
        if failures := self.failures():
            raise failures[0]

    def close(self) -> None:
        """As `wait`, and ends the thread."""
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
            self._pool = None

    def _queue(self, job: _Job) -> None:
        while True:
            with self._lock:
                waiting = self._job
                if waiting is None:
                    self._pending.append(self._thread().submit(self._write))
                    self._job = job
                    return
                if waiting.path == job.path:
                    self._job = dataclasses.replace(job, then=[*waiting.then, *job.then])
                    return
            self._write_pending()

    def _write_pending(self) -> None:
        self._write_now.set()
        try:
            concurrent.futures.wait(self._pending)
        finally:
            self._write_now.clear()

    def _write(self) -> None:
        self._write_now.wait(max(0.0, self._not_before - time.monotonic()))
        with self._lock:
            job, self._job = self._job, None
        assert job is not None
        begun = time.monotonic()
        lock = attributes_lock(job.model)
        if not lock.acquire(timeout=_SECONDS_TO_REST):  # a callback that waits for this very file would wait for ever
            raise OSError(f"{job.path} was not written: a callback has used its model for {_SECONDS_TO_REST:.0f} seconds.")
        try:
            _check_structure(job)
            _write_copies(job.model, job.path, job.copy.values, lambda: [then() for then in job.then])
        finally:
            lock.release()
            self._not_before = begun + _seconds_between_files(time.monotonic() - begun)

    def _thread(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(1, "weights", _remember_skipped_attributes)
        return self._pool

    def _find_written(self, model: keras.Model, path: pathlib.Path) -> bool:
        # This thread waits meanwhile, so nobody changes the live variables: the writing thread needs no copies of them.
        try:
            self._written = self._thread().submit(_write_live, model, path).result()
        except Exception:
            # Either Keras cannot walk over this model in a thread, or the file cannot be written; `save` then writes in the calling thread,
            # where the second case raises its error.
            self._pool = None
            return False
        return True


def _seconds_between_files(writing: float) -> float:
    """From the begin of a file, whose writing took so many seconds of a core that steps need, to that of the next."""
    return min(_MOST_BETWEEN_FILES, max(_LEAST_BETWEEN_FILES, _REST * writing))


class _Copies(keras.StatelessScope):
    """In this scope variables have the given values; `missed` lists the variables that were read and have none."""

    def __init__(self, values: list[tuple[Any, Any]]):
        # The copies stay on the host; without this they would go to the default device, a GPU for example.
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


def _check_structure(job: _Job) -> None:
    if _structure(job.model) != job.copy.structure:
        raise OSError(f"{job.path} was not written: before the file was, a hook had changed the model {job.model.name!r} itself.")


def _write_copies(model: keras.Model, path: pathlib.Path, copies: list[tuple[Any, Any]], then: Callable[[], Any]) -> None:
    def write(name: str) -> None:
        with _Copies(copies) as scope:
            model.save_weights(name, overwrite=True)
        if scope.missed:
            names = ", ".join(v.path for v in scope.missed.values())
            raise OSError(f"The model got variables while its weights were being saved ({names}); {path} was not written.")

    atomically(path, write)
    then()


def _remember_skipped_attributes() -> None:
    # To find the attributes to skip, Keras's writer makes an object of each kind, unless they are known already. One of these is an
    # optimizer, which cannot be made inside a StatelessScope. Keras keeps the attributes by thread, so only the writing thread changes. If
    # Keras works differently in a later version, the first save fails, and all files are written in the calling thread.
    _private_api.remember_what_is_not_saved(
        ("Operation", "Layer", "Functional", "Sequential", "Metric", "Optimizer", "Loss", "Cross", "Feature")
    )


def _structure(model: keras.Model) -> tuple[int, ...]:
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else [])]
    return (id(model), *map(id, variables))
