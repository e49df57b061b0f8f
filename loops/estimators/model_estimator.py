"""What the estimators around Keras models share: their parameters, the model of a fit, and its training by `loops.fit`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import tensorflow as tf

from loops import api, hooks
from loops.estimators.arguments import OF_MODELS, OWN, Arguments
from loops.estimators.base import LoopsEstimator, Rows
from loops.estimators.parameters import keywords_of
from loops.feeds import ArrayFeed
from loops.tasks.keras import PredictionTask

__all__ = ["ModelEstimator"]


class ModelEstimator(LoopsEstimator):
    """Base class of `LoopsClassifier` and `LoopsRegressor`, which say what the parameters mean."""

    nested = ("model_kwargs", "fit_kwargs")
    fitted = "model_"
    held = ("model",)

    def __init__(
        self,
        model: keras.Model | Callable[..., keras.Model],
        warm_start: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        fit_kwargs: Mapping[str, Any] | None = None,
        *,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = 0,
        shuffle: bool = True,
        callbacks: Any = None,
        hooks: Any = None,
        compile: str = "auto",
        clip: Any = None,
        on_nonfinite: Any = "ignore",
        early_stopping: bool | str = "auto",
        validation_fraction: float | None = None,
        n_iter_no_change: int = 10,
        tol: float = 0.0,
        random_state: Any = None,
    ):
        self.model = model
        self.warm_start = warm_start
        self.model_kwargs = model_kwargs
        self.fit_kwargs = fit_kwargs
        self.batch_size = batch_size
        self.epochs = epochs
        self.verbose = verbose
        self.shuffle = shuffle
        self.callbacks = callbacks
        self.hooks = hooks
        self.compile = compile
        self.clip = clip
        self.on_nonfinite = on_nonfinite
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.random_state = random_state

    def _entries_of(self, holder: str) -> Collection[str] | None:
        if holder == "fit_kwargs":
            return OF_MODELS
        if isinstance(self.model, keras.Model):
            return ()
        return keywords_of(self.model, without=("X", "y"))

    def _arguments(self, given: dict[str, Any]) -> Arguments:
        defaults = {name: parameter.default for name, parameter in inspect.signature(ModelEstimator).parameters.items()}
        return Arguments({name: getattr(self, name) for name in OWN}, defaults, self.fit_kwargs, given, OF_MODELS)

    def _new(self, rows: Rows) -> keras.Model:
        kwargs = self.model_kwargs or {}
        if not isinstance(kwargs, Mapping):
            raise TypeError(f"`model_kwargs` is a dict of arguments of the function, or None; got {kwargs!r}.")
        if isinstance(self.model, keras.Model):
            if kwargs:
                raise ValueError(f"`model_kwargs` {sorted(kwargs)} are for a function that makes a model, but `model` is a keras.Model.")
            _check_compiled(self.model)
            made = _like(self.model, weights=bool(self.warm_start))
            self._units = _units_of(made, rows.x)
            return made
        if not callable(self.model):
            raise TypeError(f"`model` is a compiled keras.Model, or a function (X, y, **model_kwargs) that makes one; got {self.model!r}.")
        made = self.model(X=rows.x, y=self._shown_target(rows.y), **kwargs)
        if not isinstance(made, keras.Model):
            raise TypeError(f"The function `model` has to return a compiled keras.Model; it returned a {type(made).__name__}.")
        _check_compiled(made)
        self._units = _units_of(made, rows.x)
        return made

    def _shown_target(self, y: Any) -> Any:
        """Targets `[N, outputs]` as a function that makes a model gets them, as with `keras.wrappers`."""
        raise NotImplementedError

    def _target(self, y: Any, model: keras.Model) -> Any:
        """Targets as the model, which gives `self._units` outputs for each row, is trained on them."""
        raise NotImplementedError

    def _train(self, made: Any, rows: Rows, validation: Any, arguments: dict[str, Any], seed: int) -> hooks.History:
        rows = dataclasses.replace(rows, y=self._target(rows.y, made))
        if isinstance(validation, Rows):
            validation = dataclasses.replace(validation, y=self._target(validation.y, made))
        elif validation is not None:
            validation = self._given_validation(validation, made)
        dense = not hasattr(rows.x, "tocsr")
        data: dict[str, Any] = {"x": rows.x, "y": rows.y, "sample_weight": rows.weights}
        if not dense:
            size, shuffle = arguments["batch_size"] or 32, arguments["shuffle"]
            data = {"x": ArrayFeed(rows.parts(), size, shuffle=bool(shuffle), seed=seed)}
        if validation is not None:
            dense = not hasattr(validation.x, "tocsr")
            size = arguments.get("validation_batch_size") or arguments["batch_size"] or 32
            arguments = {**arguments, "validation_data": validation.parts() if dense else ArrayFeed(validation.parts(), size)}
        return api.fit(made, **data, **arguments, seed=seed)

    def _given_validation(self, validation: Any, model: keras.Model) -> Rows:
        if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
            raise ValueError("`validation_data` is (X, y) or (X, y, sample_weight), as `fit` takes them.")
        weights = validation[2] if len(validation) == 3 else None
        rows = self._with_weights(*self._checked(validation[0], validation[1], reset=False), weights)
        return dataclasses.replace(rows, y=self._target(self._learn_target(rows.y, None, reset=False), model))

    def _prediction_task(self) -> PredictionTask:
        before = self.__dict__.get("_predictor")
        if before is not None and before.task.model is self.model_:  # `partial_fit`: the task keeps its program
            task: PredictionTask = before.task
            return task
        return PredictionTask(self.model_)


def _units_of(model: keras.Model, x: Any) -> int:
    """How many outputs a model gives for each row; only then can targets be given their shape, before they are broadcast.

    Args:
        model: the model; it is built if it was not.
        x: rows, dense or sparse.

    Raises:
        ValueError: if it gives something else than one tensor, `[B]` or `[B, units]`.
    """
    shape: Any = getattr(model, "output_shape", None)
    if not _is_shape(shape):  # a subclass of Model, or not built
        outputs = model(x[:1].toarray() if hasattr(x, "tocsr") else x[:1])
        shape = tuple(outputs.shape) if tf.is_tensor(outputs) else None
    if not _is_shape(shape) or len(shape) > 2:
        raise ValueError(
            f"scikit-learn's estimators predict one number, or some, for each row; the model {model.name!r} has several outputs, or gives "
            "more than a vector: use loops.fit, or loops.estimators.TaskEstimator without a `kind`."
        )
    return shape[1] if len(shape) == 2 else 1


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, tuple) and bool(shape) and all(size is None or isinstance(size, int) for size in shape)


def _check_compiled(model: keras.Model) -> None:
    if not model.compiled:
        raise ValueError(f"The model {model.name!r} is not compiled: call model.compile(optimizer=..., loss=...) first.")


def _like(model: keras.Model, *, weights: bool) -> keras.Model:
    """Another model like the given one, compiled in the same way, with new weights or a copy of its own."""
    made = keras.models.clone_model(model)
    made.compile_from_config(model.get_compile_config())
    if not made.compiled:
        raise ValueError(f"The model {model.name!r} cannot be compiled again from its config; give a function that makes and compiles it.")
    if weights:
        if not model.built:
            return made
        if not made.built:
            raise ValueError(f"The weights of the model {model.name!r} cannot be copied before its copy is built; give it a keras.Input.")
        made.set_weights(model.get_weights())
    return made
