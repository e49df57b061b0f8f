"""Finds changes that a traced step cannot see: other models, layers or optimizers, `trainable` flags, Python numbers and strings.

At a boundary of a run it looks at what hooks change there; before a run that would use an earlier trace, at all that the trace may have
read.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.tasks.base import Task
from loops.tasks.keras import KerasTask
from loops.tasks.plain_values import changed_while_traced, plain_values
from loops.tasks.python_inputs import PythonInputs
from loops.tasks.tracking import Tracked, layers_of
from loops.tasks.trained import Trained

__all__ = ["TraceChanges", "inputs_of"]


_MOST_SHOWN = 60
# What a task keeps for the loops that run it, and no step reads.
_FOR_LOOPS = ("_progress", "_tapeloops_programs", "_tapeloops_walk", "_reports", "_metric_calls", "_trained")


# What traces of a task have counted up to now; see `PythonInputs.counted`.
_counted: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


class TraceChanges:
    """Remembers what a trace took for constant, and compares it with what is there now.

    Args:
        task: the task, right after it was traced.
        transforms: the gradient transforms that were traced with it.
        before: what `inputs_of` gave right before it was traced.

    Attributes:
        trained: the objects that the traced step trains. They are kept alive, so no other object can get the identity of one of them.
    """

    def __init__(self, task: Task, transforms: Sequence[Any] = (), before: PythonInputs | None = None):
        self._task = task
        self.trained = Trained.of(task)
        tracked = self.trained.tracked
        self._objects = _objects(tracked)
        self._variables = tracked.model_variables()
        self._metrics = list(tracked.metrics)
        self._watched = [*self._variables, *self.trained.layers]
        self._flags = self._current_flags()
        self._constants = plain_values(task)
        self._inputs = inputs_of(task, transforms)
        self._note(before, self._inputs)
        # What there was when `changed_inputs` found no difference last, and what it compared that with.
        self._passed: tuple[PythonInputs, dict[str, Any], dict[str, Any] | None] | None = None

    def changed_objects(self, tracked: Tracked | None = None) -> str | None:
        """What has come to the task and what has gone from it since the trace, by identity; None if all is the same.

        A variable or a metric that is only new, such as one that an evaluation has built, is none that the step would use.

        Args:
            tracked: what the task holds now, if that is known already.
        """
        tracked = tracked if tracked is not None else self._task.tracked
        now = _objects(tracked)
        new = _without(now, self._objects) + _new_metrics(tracked, self._metrics)
        gone = _without(self._objects, now) + _without(self._metrics, tracked.metrics)
        gone += _without(self._variables, tracked.model_variables())
        if self._task.model is not self.trained.model and not (new or gone):
            new = [self._task.model]
        changes = [f"{_names(new)} {'is' if len(new) == 1 else 'are'} new"] if new else []
        changes += [f"{_names(gone)} {'is' if len(gone) == 1 else 'are'} gone"] if gone else []
        return ", ".join(changes) or None

    def is_outdated(self) -> bool:
        """Whether the task holds other objects, or `trainable` flags have changed."""
        return self.changed_objects() is not None or self.changed_flags() is not None

    def changed_flags(self) -> str | None:
        """The variables whose `trainable` changed, else the layers (whose `call` may read it); None if nothing changed."""
        changed = [item for item, old, new in zip(self._watched, self._flags, self._current_flags(), strict=True) if old != new]
        changed = [item for item in changed if not isinstance(item, keras.layers.Layer)] or changed
        return _names(changed) if changed else None

    def changed_constants(self) -> list[str]:
        """A sentence for each attribute whose value differs from that in the trace; each change is reported once."""
        told, by_traces = [], changed_while_traced(self._task)
        for name, value in plain_values(self._task).items():
            if name in self._constants and self._constants[name] != value and by_traces.get(name) != value:
                told.append(
                    f"{type(self._task).__name__}.{name} changed from {self._constants[name]!r} to {value!r}, but the traced step keeps "
                    "the old value. Make it a tf.Variable and assign it, or call loop.retrace(reason)."
                )
                self._constants[name] = value
        return told

    def run_begins(self) -> None:
        """From now on `changed_constants` reports what differs from now."""
        self._constants = plain_values(self._task)

    @property
    def complete(self) -> bool:
        """Whether all that the trace may have read could be looked at; if not, `changed_inputs` may miss something."""
        return self._inputs.complete

    def traced_again(self, transforms: Sequence[Any], before: PythonInputs) -> bool:
        """To be called after a further trace of the step; returns whether it took the same for constant as the first."""
        self._note(before, inputs_of(self._task, transforms))
        return self.changed_inputs(transforms) is None

    def _note(self, before: PythonInputs | None, after: PythonInputs) -> None:
        if before is not None:
            owner = _owner(self._task)
            _counted[owner] = before.counted(after, _counted.get(owner, ()))

    def changed_inputs(self, transforms: Sequence[Any] = ()) -> str | None:
        """What has changed of all that the trace may have read in Python, apart from what traces themselves change; None if nothing has.

        Args:
            transforms: the gradient transforms that a step would be traced with now.
        """
        by_traces, counted = changed_while_traced(self._task), _counted.get(_owner(self._task))
        roots = _roots(self._task, transforms)
        if self._passed is not None and self._passed[1:] == (by_traces, counted) and self._passed[0].stand(roots):
            return None
        now = PythonInputs(roots, _FOR_LOOPS, again=True)
        found = self._inputs.difference(now, by_traces, counted)
        if found is None:
            self._passed = now, by_traces, counted
            return None
        path, before, after = found
        where = path if path.startswith(("clip", "settings")) else f"{type(self._task).__name__}.{path}"
        return f"{where} changed from {_short(before)} to {_short(after)}"

    def _current_flags(self) -> list[bool]:
        return [bool(item.trainable) for item in self._watched]


def _owner(task: Task) -> Any:
    """Whose traces count together: those of a model's own steps are of the model, which several tasks may stand for."""
    return task.model if isinstance(task, KerasTask) else task


def inputs_of(task: Task, transforms: Sequence[Any] = ()) -> PythonInputs:
    """What a trace of the task may read in Python now."""
    return PythonInputs(_roots(task, transforms), _FOR_LOOPS)


def _roots(task: Task, transforms: Sequence[Any]) -> dict[str, Any]:
    return {"": task, "clip": tuple(transforms), "settings of Keras and TensorFlow": _settings()}


def _settings() -> tuple[Any, ...]:
    """What a trace takes from Keras's and TensorFlow's settings."""
    keras_own = keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format(), keras.config.dtype_policy().name
    tensorflow_own = tf.config.functions_run_eagerly(), tf.config.experimental.tensor_float_32_execution_enabled()
    return *keras_own, *tensorflow_own, *_private_api.surroundings(), _private_api.global_seed_generator()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def _objects(tracked: Tracked) -> list[Any]:
    """The models and optimizers first, as a sentence names the first ones."""
    return [*tracked.layers, *tracked.optimizers.values(), *layers_of(tracked.layers), *tracked.loose]


def _new_metrics(tracked: Tracked, known: list[Any]) -> list[Any]:
    new = _without(tracked.metrics, known)
    if new:  # a model makes the metrics of `compile` when they are first used, which may be in an evaluation
        models = [layer for layer in layers_of(tracked.layers) if _private_api.is_model(layer)]
        new = _without(new, [metric for model in models for metric in model.metrics])
    return new


def _without(items: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    known = {id(other) for other in others}
    return [item for item in items if id(item) not in known]


def _names(items: list[Any]) -> str:
    found = (str(getattr(item, "path", None) or getattr(item, "name", type(item).__name__)) for item in items)
    names = dict.fromkeys(name.removesuffix(":0") for name in found)
    return ", ".join(list(names)[:3]) + (" and others" if len(names) > 3 else "")
