"""Saves the model or its weights for later use, every epoch or only the best. A run cannot be resumed from these files; see `Snapshot`."""

from __future__ import annotations

import os
import pathlib
import string
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

from loops import _private_api, triggers
from loops.choices import At, Direction
from loops.engine.rows import Window
from loops.hooks._file_attempts import Attempt, Wanted
from loops.hooks._weights_writer import WeightsWriter, atomically
from loops.hooks.base import Loop, Phase
from loops.hooks.monitor import MonitorHook
from loops.messages import say
from loops.tasks.variable_reads import VariableReads

__all__ = ["ModelCheckpoint"]

_CHANGED = "a hook has changed the model since then; let it do so in on_epoch_begin"


class ModelCheckpoint(MonitorHook):
    """Saves the model at the end of every epoch, after every `save_freq` steps, or whenever `monitor` is better than before.

    Differences from Keras's callback of that name: a new file replaces the old one only when it is complete; nothing is saved after a loss
    or a weight became NaN or infinite; an epoch without a new value of `monitor` leaves the best file as it is (Keras overwrites it); the
    number of files can be limited; `save_best_only` also works with a number of steps; a resumed run keeps the best value. A file that was
    being written when a snapshot was taken is written again when the run is resumed from that snapshot.

    A thread writes files of weights while training goes on, from copies of the weights; while a whole model is written, training waits.
    That takes a fiftieth of the time at most, so files of quick epochs come half a second to five seconds apart: weights for a file that
    waits take the place of those that wait, and the last are written before training ends.

    Args:
        filepath: where to save, ending in ".weights.h5" if only weights are saved, else in ".keras" (or ".h5"). It may name "{epoch:02d}"
            and "{batch}" (1-based, the batch within the epoch), "{step}" (completed steps of the run), and any log, as in "{val_loss:.2f}".
        monitor: name of the metric that decides what is best.
        verbose: 1 prints a line at each decision.
        save_best_only: whether to save only when `monitor` is better than ever before.
        save_weights_only: whether to save only the weights (with the optimizer's state, if the model was compiled).
        mode: "auto", "min" or "max".
        save_freq: "epoch", or a number of steps: saves whenever the completed steps of the run are a multiple of it.
        initial_value_threshold: value to beat from the beginning.
        keep_last: how many of the saved files to keep; older ones are deleted once a new one is in place. None keeps all.
        at: "epoch", or "evaluation" to decide, and save, whenever an evaluation gave `monitor`.
        model: the model to save; None saves the task's `model`.

    Raises:
        ValueError: if `filepath`, `save_freq` or `keep_last` is not valid.

    Example:
        >>> from loops import hooks
        >>> best = hooks.ModelCheckpoint("best.weights.h5", save_weights_only=True, save_best_only=True)
        >>> last = hooks.ModelCheckpoint("{epoch:03d}.keras", keep_last=3)
    """

    phase = Phase.SAVE

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: Direction = "auto",
        save_freq: int | Literal["epoch"] = "epoch",
        initial_value_threshold: float | None = None,
        *,
        keep_last: int | None = None,
        at: At = "epoch",
        model: keras.Model | None = None,
    ):
        super().__init__(monitor, mode=mode, best=initial_value_threshold, at=at)
        self.filepath = self.weights_path = os.fspath(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        self.keep_last = keep_last
        self.model = model
        self._files: list[str] = []
        self._writer, self._weights = WeightsWriter(), VariableReads([])
        self._vector_reported = False
        self._loop: Loop | None = None
        self._in_flight: tuple[int, str, list[str]] = (0, "", [])  # step, path, files to delete once the new one is in its place
        self._model_in_flight: Any = None
        self._last: Attempt | None = None
        self._held: Wanted | None = None  # the next best, saved only if the files that are being written fail
        self._failures: list[BaseException] = []  # of files that were to be in their place before, to be raised at the next save
        self._evaluated: Any = None  # the model that gave `monitor` in this epoch

        if save_weights_only and not self.filepath.endswith(".weights.h5"):
            raise ValueError(f"ModelCheckpoint saves weights to files that end in '.weights.h5', got filepath={self.filepath!r}.")
        if not save_weights_only and not self.filepath.endswith((".keras", ".h5")):
            raise ValueError(
                f"ModelCheckpoint saves models to files that end in '.keras', got filepath={self.filepath!r}. For the weights alone, pass "
                "save_weights_only=True and a filepath that ends in '.weights.h5'."
            )
        if isinstance(save_freq, bool) or not (save_freq == "epoch" or (isinstance(save_freq, int) and save_freq > 0)):
            raise ValueError(f"save_freq of ModelCheckpoint is 'epoch' or a number of steps, 1 or more; got {save_freq!r}.")
        if save_freq != "epoch" and at != "epoch":
            raise ValueError(
                "ModelCheckpoint saves either every save_freq steps or at every evaluation; leave save_freq at 'epoch' for the latter."
            )
        if keep_last is not None and (isinstance(keep_last, bool) or not isinstance(keep_last, int) or keep_last < 1):
            raise ValueError(f"keep_last of ModelCheckpoint is a number of files, 1 or more, or None; got {keep_last!r}.")
        if isinstance(save_freq, int):
            self.every = triggers.EverySteps(save_freq)

    def on_train_begin(self, loop: Loop) -> None:
        if not _private_api.is_model(self.model or loop.task.model):
            raise TypeError(
                f"ModelCheckpoint found no Keras model to save: {type(loop.task).__name__} has no attribute `model` that is one; pass "
                "ModelCheckpoint(..., model=...)."
            )
        self._loop = loop

    def newest_file(self) -> pathlib.Path | None:
        """The file that was saved last, with `save_best_only` the best; None if there is none. Waits for one that is being written."""
        self._settle()
        newest = self._last.last_in_place.path if self._last is not None else None
        return pathlib.Path(newest) if newest is not None and pathlib.Path(newest).exists() else None

    @property
    def needs_direction(self) -> bool:
        return self.save_best_only

    def on_window_end(self, loop: Loop, window: Window) -> None:
        self._save(loop, window.logs, self._trained(loop))

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        if self.monitor in logs:
            self._evaluated = loop.task.model
            if self.at == "evaluation":
                self._save(loop, logs, self.model or loop.task.model)

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        if self.at == "epoch" and self.save_freq == "epoch":
            self._save(loop, logs, self._trained(loop))
        self._evaluated = None

    def before_retrace(self, loop: Loop) -> None:
        self._settle()

    def on_train_end(self, loop: Loop) -> None:
        self._settle()
        self._writer.close()
        self._raise_failures()
        if self.save_best_only:
            super().on_train_end(loop)

    def _trained(self, loop: Loop) -> Any:
        """The model to save: that which the logs are about, even if a hook has just put another one into the task. None if it is gone."""
        trained = loop.trained
        if self.model is not None:
            return self.model
        if self.save_best_only and self._evaluated is not None and self._evaluated is not trained.model:
            return self._evaluated
        return trained.model if trained.intact else None

    def _save(self, loop: Loop, logs: Mapping[str, Any], model: Any) -> None:
        self._failures += self._writer.failures()
        if not self._writer.busy:
            self._go_on_from_what_is_in_place()
        self._save_if_wanted(loop, logs, model)
        self._raise_failures()

    def _save_if_wanted(self, loop: Loop, logs: Mapping[str, Any], model: Any) -> None:
        if bad := _not_finite(self.monitor, logs) if model is not None else _CHANGED:
            self._warn(loop, bad)
            return
        self._last = self._last or Attempt(self.best, list(self._files), path=None, in_place=True)
        where = f"\nEpoch {loop.progress.epoch + 1}:"
        best, value = self._judged(loop, logs) if self.save_best_only else (True, None)
        doubtful = not best and value is not None and self._would_be_best_after_a_failure(value)
        if best or doubtful:
            path = self._path(loop, logs)
            copy = self._writer.copy(model) if self.save_weights_only else None
            if bad := self._not_finite(model) if copy is None else copy.not_finite:
                self._warn(loop, f"the weight {bad} is not finite")
                return
            wanted = Wanted(value, (loop.progress.step, where), model, path, copy)
            if doubtful and copy is not None and self._last.path == str(path):
                self._held, doubtful = wanted, False
            elif doubtful or copy is None:
                self._settle()
                best = value is None or self.is_improvement(value, self.best)
            if best:
                self._carry_out(wanted)
                return
        if value is not None and self.verbose > 0:
            say(f"{where} {self.monitor} did not improve from {self.best:.5f}")

    def _carry_out(self, wanted: Wanted) -> None:
        value, where = wanted.value, wanted.where[1]
        if value is not None:
            if self.verbose > 0:
                say(f"{where} {self.monitor} improved from {'None' if self.best is None else f'{self.best:.5f}'} to {value:.5f}")
            self.best = value
        obsolete = self._obsolete_after(str(wanted.path))
        if self.verbose > 0:
            say(f"{where} saving to {wanted.path}")
        self._write(wanted, obsolete)

    def _write(self, wanted: Wanted, obsolete: list[str]) -> None:
        model, path = wanted.model, wanted.path
        attempt = self._last = Attempt(self.best, list(self._files), path=str(path), before=self._last)
        try:
            if self.save_weights_only:
                self._in_flight = (wanted.where[0], str(path), obsolete)
                self._model_in_flight = model
                self._writer.save(model, path, lambda: attempt.succeeded(obsolete), copy=wanted.copy)
            else:
                atomically(path, lambda name: model.save(name, overwrite=True))
                attempt.succeeded(obsolete)
        except BaseException:
            self._go_back_if_failed()
            raise

    def _settle(self) -> None:
        """Waits for the files that are being written. If one fails, what it would have held does not count as saved."""
        while True:
            try:
                self._writer.wait()
            except Exception as error:
                self._failures.append(error)
            if not self._go_on_from_what_is_in_place():
                return

    def _go_on_from_what_is_in_place(self) -> bool:
        """Once no file is being written: saves what is held if it is better than what is in its place. Returns whether it does so."""
        self._go_back_if_failed()
        held, self._held = self._held, None
        if held is None or held.value is None or not self.is_improvement(held.value, self.best):
            return False
        self._carry_out(held)
        return True

    def _raise_failures(self) -> None:
        failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    def _go_back_if_failed(self) -> None:
        if self._last is not None and not self._last.in_place:
            self._last = self._last.last_in_place
            self.best, self._files = self._last.best, list(self._last.files)

    def _judged(self, loop: Loop, logs: Mapping[str, Any]) -> tuple[bool, float | None]:
        """Whether the metric is better than ever before, and its value, None if no value decides."""
        if np.ndim(logs.get(self.monitor, 0.0)) > 0:
            if not self._vector_reported:
                shape = np.shape(logs[self.monitor])
                warnings.warn(
                    f"ModelCheckpoint cannot tell the best of {self.monitor!r}, which has the shape {shape}; it saves always.", stacklevel=5
                )
            self._vector_reported = self._seen = True
            return True, None
        value = self.fresh_value(loop, logs)
        if value is None:
            # As in Keras, the model is saved if the metric does not exist at all.
            return self._reported and not self._seen, None
        return self.is_improvement(value, self.best), value

    def _would_be_best_after_a_failure(self, value: float) -> bool:
        last, held = self._last, self._held
        if last is None or last.in_place or not self.is_improvement(value, last.last_in_place.best):
            return False
        return held is None or self.is_improvement(value, held.value)

    def _not_finite(self, model: Any) -> str:
        """The path of a weight that is not finite, empty if all are."""
        weights = model.trainable_variables
        if not self._weights.of(weights):
            self._weights = VariableReads(weights)
        return next((weight.path for weight, finite in zip(weights, self._weights.finite(), strict=True) if not finite), "")

    @staticmethod
    def _warn(loop: Loop, why: str) -> None:
        warnings.warn(f"ModelCheckpoint did not save after step {loop.progress.step}: {why}.", stacklevel=6)

    def _path(self, loop: Loop, logs: Mapping[str, Any]) -> pathlib.Path:
        progress = loop.progress
        names = {"batch": progress.step_in_epoch, "step": progress.step, **logs, "epoch": progress.epoch + 1}
        try:
            return pathlib.Path(self.filepath.format(**names))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            asked = [field for _, field, _, _ in string.Formatter().parse(self.filepath) if field is not None]
            raise ValueError(
                f"ModelCheckpoint cannot fill in filepath={self.filepath!r} ({type(error).__name__}: {error}): it asks for {asked}, "
                f"and there are {sorted(names)}."
            ) from error

    def _obsolete_after(self, path: str) -> list[str]:
        # The caller deletes them only when the new file is in its place, so that `keep_last` files exist at any time.
        if self.keep_last is None:
            return []
        files = [*(f for f in self._files if f != path), path]
        self._files = files[-self.keep_last :]
        return files[: -self.keep_last]

    def state_dict(self) -> dict[str, Any]:
        # A file of this step can be written again from the weights that are restored with this state; for any other we have to wait.
        step, path, obsolete = self._in_flight
        loop = self._loop
        again = self._writer.pending == 1 and self.model is None and loop is not None and loop.progress.step == step
        again = again and loop is not None and loop.task.model is self._model_in_flight
        if not again:
            self._settle()
            self._raise_failures()
        kept = self._last.last_in_place if self._last is not None else Attempt(self.best, list(self._files), path=None, in_place=True)
        return {
            **super().state_dict(),
            "vector_reported": self._vector_reported,
            "files": list(self._files),
            "in_flight": {"path": path, "obsolete": obsolete} if again else None,
            "kept": {"best": kept.best, "files": kept.files, "path": kept.path},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._vector_reported, self._files = state["vector_reported"], list(state["files"])
        kept = state["kept"]
        self._held, self._last = None, Attempt(kept["best"], list(kept["files"]), path=kept["path"], in_place=True)
        if (lost := state["in_flight"]) is not None:
            if self._loop is None:
                raise RuntimeError(
                    "ModelCheckpoint has a file to write again, and no loop to take the model from; call on_train_begin first."
                )
            where = self._loop.progress.step, ""
            self._write(Wanted(None, where, self._loop.task.model, pathlib.Path(lost["path"]), copy=None), list(lost["obsolete"]))


def _not_finite(monitor: str, logs: Mapping[str, Any]) -> str:
    for name, value in logs.items():
        if (name == monitor or "loss" in name) and not np.all(np.isfinite(value)):
            return f"{name} is {value}"
    return ""
