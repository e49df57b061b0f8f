"""What is said about an error in a step: where it happened, for which batch, and, if the step is this library's code, what to do."""

from __future__ import annotations

import re
from typing import Any

import keras
import tensorflow as tf

from loops.tasks.base import Task
from loops.user_errors.reasons import described, in_short, reason_of

__all__ = ["StepErrors"]


class StepErrors:
    """A context for tracing or running a step.

    An error in the user's own code stays what it is and gets a note. Of an error in a Keras model the reason is kept, in a sentence that
    says which batches the model was given.

    Args:
        task: whose step it is.
        method: name of the step.
        batch: a batch, or type specs of one.
    """

    def __init__(self, task: Task, method: str, batch: Any):
        self._task, self._method, self._batch = task, method, batch

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, tb: Any) -> None:
        if not isinstance(error, (ValueError, TypeError, tf.errors.OpError)):
            return
        batches, filtered = described(self._batch), keras.config.is_traceback_filtering_enabled()
        if not self._task.owns(self._method):
            short = in_short(error) if filtered and isinstance(error, tf.errors.OpError) else error
            short.add_note(f"(in {type(self._task).__name__}.{self._method}, for batches of {batches})")
            if short is not error:
                raise short from None
            return
        reason, name = reason_of(error), self._task.model.name
        sentence = f"The model {name!r} cannot be built on or applied to batches of {batches}: {reason}. "
        sentence += "Give data that fits the model, or a model that fits the data."
        if re.search(r"\bcompile\(", reason):  # Keras's reason says what to do, and it is not about the data
            sentence = f"The model {name!r} cannot be used as it was compiled: {reason}."
        if not filtered:
            raise ValueError(sentence) from error
        raise ValueError(sentence).with_traceback(tb) from None
