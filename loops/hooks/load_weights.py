"""Replaces the model's weights by given ones when a metric has reached a value or stopped improving; training goes on from them."""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from loops import _private_api
from loops.choices import At, Direction
from loops.hooks.base import Loop, Phase
from loops.hooks.condition import ConditionHook
from loops.messages import say

__all__ = ["LoadWeights"]


class LoadWeights(ConditionHook):
    """Loads another set of weights, once, when `monitor` reached `threshold`, or has not improved for `patience` epochs (or evaluations).

    It decides at the end of an epoch (or at an evaluation) and loads before the first step of the next epoch, so that hooks which save
    weights in between save the weights that were evaluated. Optimizers keep their slots and rates. The log "weights_loaded" says for each
    epoch how many such hooks had loaded their weights when it ended.

    Args:
        weights: a ".weights.h5" file, which has to exist when training begins and is read then; or arrays in the order of
            `model.weights`.
        monitor: name of the metric.
        threshold: value to reach.
        patience: epochs (or evaluations) without improvement. Exactly one of `threshold` and `patience` is given.
        mode: "auto", "min" or "max".
        min_delta: smallest change that counts as an improvement.
        at: "epoch", or "evaluation" to look at every evaluation, at any cadence.
        model: the model to load into; None takes the task's `model`.

    Attributes:
        loaded: whether the weights were loaded.

    Raises:
        ValueError: if an argument is not valid; when training begins, if the file is missing or does not fit the model.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.LoadWeights("pretrained.weights.h5", monitor="val_loss", patience=3)
    """

    phase = Phase.DECIDE

    def __init__(
        self,
        weights: str | os.PathLike[str] | Sequence[np.ndarray],
        monitor: str = "val_loss",
        *,
        threshold: float | None = None,
        patience: int | None = None,
        mode: Direction = "auto",
        min_delta: float = 0.0,
        at: At = "epoch",
        model: keras.Model | None = None,
    ):
        super().__init__(monitor, threshold=threshold, patience=patience, mode=mode, min_delta=min_delta, at=at)
        self.path = pathlib.Path(weights) if isinstance(weights, (str, os.PathLike)) else None
        if self.path is not None and not self.path.name.endswith(".weights.h5"):
            raise ValueError(
                f"LoadWeights reads files that end in '.weights.h5', as model.save_weights makes them; got {str(self.path)!r}."
            )
        self.model = model
        self.loaded = False
        self._given = None if self.path is not None else [np.asarray(array) for array in weights]  # type: ignore[union-attr]
        self._checked_values: list[np.ndarray] | None = None

    def on_train_begin(self, loop: Loop) -> None:
        super().on_train_begin(loop)
        if not _private_api.is_model(model := self._model(loop)):
            raise ValueError(
                f"LoadWeights found no Keras model: {type(loop.task).__name__} has no attribute `model` that is one; pass "
                "LoadWeights(..., model=...)."
            )
        self._check_not_written(loop)
        if loop.progress.step == 0:
            self.loaded = False
            self._checked_values = None
            if self.path is not None and not self.path.is_file():
                raise ValueError(f"LoadWeights found no file {self.path}; it has to be there when training begins.")
            # Read and checked now: a mistake must not show after hours of training. A model that is not built yet is checked when it acts.
            if model.built:
                self._checked_values = self._values(model)

    def on_epoch_begin(self, loop: Loop) -> None:
        if not self.met or self.loaded:
            return
        model = self._model(loop)
        checked = self._checked_values
        fits = checked is not None and [v.shape for v in checked] == [tuple(w.shape) for w in model.weights]
        values = checked if checked is not None and fits else self._values(model)  # a hook may have replaced the model
        for variable, value in zip(model.weights, values, strict=True):
            variable.assign(value)
        self.loaded, self._checked_values = True, None
        what = str(self.path) if self.path is not None else "the given arrays"
        say(f"\nStep {loop.progress.step:,}: epoch {loop.progress.epoch + 1} begins with the weights of {what}.")

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        loop.log("weights_loaded", sum(hook.loaded for hook in loop.hooks if isinstance(hook, LoadWeights)))
        super().on_epoch_end(loop, logs)

    def on_condition(self, loop: Loop, reason: str) -> None:
        say(f"\nStep {loop.progress.step:,}, epoch {loop.progress.epoch + 1}: LoadWeights will act ({reason}).")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loaded": self.loaded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.loaded = state["loaded"]

    def _model(self, loop: Loop) -> Any:
        return self.model if self.model is not None else getattr(loop.task, "model", None)

    def _check_not_written(self, loop: Loop) -> None:
        for hook in loop.hooks:
            if self.path is not None and hook.weights_path is not None and pathlib.Path(hook.weights_path).resolve() == self.path.resolve():
                raise ValueError(
                    f"LoadWeights reads {self.path}, which this run's {type(hook).__name__} writes: a copy would be read, or a later "
                    "state, depending on when. Copy the file; to end with the best weights use EarlyStopping(restore_best_weights=True)."
                )

    def _values(self, model: keras.Model) -> list[np.ndarray]:
        values = self._given if self._given is not None else self._from_file(model)
        shapes, wanted = [v.shape for v in values], [tuple(w.shape) for w in model.weights]
        if shapes != wanted:
            odd = next((i for i, (a, b) in enumerate(zip(shapes, wanted, strict=False)) if a != b), min(len(shapes), len(wanted)))
            raise ValueError(
                f"LoadWeights got {len(shapes)} arrays for the {len(wanted)} weights of {model.name!r}; they differ first at number {odd}: "
                f"{shapes[odd] if odd < len(shapes) else 'none'} for {wanted[odd] if odd < len(wanted) else 'none'}."
            )
        return values

    def _from_file(self, model: keras.Model) -> list[np.ndarray]:
        """The weights in the file. Keras reads them into the model only, so the values of model and optimizer are restored afterwards."""
        assert self.path is not None
        optimizer = getattr(model, "optimizer", None)
        touched = [*model.weights, *(optimizer.variables if optimizer is not None else [])]
        before = [np.asarray(v.numpy()) for v in touched]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
                model.load_weights(self.path)
            return [np.asarray(w.numpy()) for w in model.weights]
        except (OSError, ValueError, KeyError) as error:
            why = next((line for line in str(error).splitlines() if "shape" in line), str(error).splitlines()[0])
            raise ValueError(f"LoadWeights cannot load {self.path} into the model {model.name!r}: {why}") from error
        finally:
            for variable, value in zip(touched, before, strict=True):
                variable.assign(value)
