"""Fitted models and tasks as bytes, for pickling and copying: models through Keras's own files, read in safe mode.

Pickling itself is not safe: who unpickles runs what the file says. But a Keras model in such a file is read as `keras.saving.load_model`
reads one: code in it is refused unless `keras.config.enable_unsafe_deserialization()` was called.
"""

from __future__ import annotations

import io
import pathlib
import pickle
import tempfile
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np

from loops.tasks.base import Task
from loops.tasks.optimizer_slots import build_as, built_for

__all__ = ["SavedModel", "SavedTask", "restored", "saved"]

_KERAS = (keras.optimizers.Optimizer, keras.losses.Loss, keras.metrics.Metric, keras.random.SeedGenerator)


class SavedModel(NamedTuple):
    """A Keras model as bytes.

    Attributes:
        file: the content of a `.keras` file: architecture, weights, optimizer with its state, losses and metrics.
        others: values of variables that such a file leaves out, such as the states of random layers.
    """

    file: bytes
    others: list[np.ndarray]

    @classmethod
    def of(cls, model: keras.Model) -> SavedModel:
        """Saves a model."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.keras")
            keras.saving.save_model(model, path)
            return cls(path.read_bytes(), [np.asarray(v) for v in _left_out(model)])

    def load(self) -> keras.Model:
        """The model again.

        Raises:
            ValueError, TypeError: if it holds code (a `Lambda` layer), or a class or function that is not registered with Keras.
        """
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # Keras says so of an optimizer that has not been used, which has no state to load.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            path = pathlib.Path(folder, "model.keras")
            path.write_bytes(self.file)
            model = keras.saving.load_model(path, safe_mode=True)
        _assign(_left_out(model), self.others, model.name)
        return model


class SavedTask(NamedTuple):
    """A task as bytes.

    Attributes:
        pickled: the object, with its models as `SavedModel`s and its other Keras objects as their configs.
        built: for which variables its optimizers were built.
        values: the values of all variables.
    """

    pickled: bytes
    built: dict[str, list[int]]
    values: list[np.ndarray]

    @classmethod
    def of(cls, task: Task) -> SavedTask:
        """Saves a task.

        Raises:
            TypeError: if an attribute of the task cannot be pickled.
        """
        tracked = task.tracked
        buffer = io.BytesIO()
        progress = vars(task).pop("_progress", None)  # of the loop that trained it
        try:
            _Pickler(buffer).dump(task)
        except Exception as error:
            raise TypeError(f"The task {type(task).__name__} cannot be pickled or copied: {error}") from error
        finally:
            task.follow(progress)
        built = built_for(tracked.optimizers, tracked.model_variables())
        return cls(buffer.getvalue(), built, [np.asarray(v) for v in tracked.all_variables()])

    def load(self) -> Task:
        """The task again, with everything that it had learnt."""
        task: Task = pickle.loads(self.pickled)
        task.follow(None)
        tracked = task.tracked
        build_as(tracked.optimizers, tracked.model_variables(), self.built)
        _assign(task.tracked.all_variables(), self.values, type(task).__name__)
        return task


def saved(value: Any) -> Any:
    """A model or task as what can be pickled; anything else as it is."""
    if isinstance(value, keras.Model):
        return SavedModel.of(value)
    return SavedTask.of(value) if isinstance(value, Task) else value


def restored(value: Any) -> Any:
    """What `saved` was given."""
    return value.load() if isinstance(value, (SavedModel, SavedTask)) else value


class _Pickler(pickle.Pickler):
    """A pickler for tasks, which takes Keras objects as Keras saves them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, keras.Model):
            return _loaded, (SavedModel.of(value),)
        if isinstance(value, _KERAS):
            return _from_config, (keras.saving.serialize_keras_object(value),)
        return NotImplemented


def _loaded(model: SavedModel) -> keras.Model:
    return model.load()


def _from_config(config: Any) -> Any:
    return keras.saving.deserialize_keras_object(config, safe_mode=True)


def _left_out(model: keras.Model) -> list[Any]:
    kept = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in kept]


def _assign(variables: list[Any], values: list[np.ndarray], name: str) -> None:
    if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
        raise ValueError(f"{name} was saved with {len(values)} variables, but made again it has {len(variables)}, or of other shapes.")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
