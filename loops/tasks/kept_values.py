"""Values of variables that are put back later: how an evaluation leaves no trace."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.tasks.replicas import local_variables

__all__ = ["KeptValues"]


class KeptValues:
    """Values of plain variables, each as it was when it was kept first.

    Example:
        >>> import tensorflow as tf
        >>> v, kept = tf.Variable(1.0), KeptValues()
        >>> kept.keep([v])
        >>> _ = v.assign(2.0)
        >>> kept.put_back()
        >>> float(v)
        1.0
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[tf.Variable, tf.Tensor]] = {}
        self._used: dict[int, weakref.ref[tf.Variable]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def keep(self, variables: Iterable[Any]) -> None:
        """Keeps the values that Keras or TensorFlow variables have now; of those that were kept already, the first one stays."""
        for variable in local_variables(variables):
            if id(variable) not in self._values:
                # `tf.identity(variable)` and `variable.assign` do the same in several times the time.
                self._values[id(variable)] = variable, tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)

    @contextlib.contextmanager
    def of_all_used(self) -> Iterator[None]:
        """Within this context keeps the value of each variable right before it is used, and of those that such a context saw before."""
        self.keep([variable for ref in self._used.values() if (variable := ref()) is not None])
        with _private_api.uses_of_variables(self._used_now):
            yield

    @contextlib.contextmanager
    def changes_stay(self, but: Iterable[Any] = ()) -> Iterator[None]:
        """Within this context a user's code may assign: `put_back` gives these variables what they were assigned.

        Args:
            but: variables for which that does not hold.
        """
        apart = {id(variable) for variable in local_variables(but)}
        before: dict[int, tuple[tf.Variable, Any]] = {}

        def used(variable: tf.Variable) -> None:
            if id(variable) in self._values and id(variable) not in apart and id(variable) not in before:
                before[id(variable)] = variable, None  # reading it is a use, too
                before[id(variable)] = variable, variable.read_value()

        with _private_api.uses_of_variables(used):
            yield
        for key, (variable, value) in before.items():
            now = variable.read_value()
            if np.asarray(now).tobytes() != np.asarray(value).tobytes():
                self._values[key] = variable, now

    def put_back(self) -> None:
        """Gives all variables the values that were kept, and forgets these."""
        values, self._values = self._values, {}
        for variable, value in values.values():
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)

    def _used_now(self, variable: tf.Variable) -> None:
        if id(variable) in self._values:
            return
        self._used[id(variable)] = weakref.ref(variable)
        with tf.init_scope():  # it may be used first while a tf.function is traced
            self._values[id(variable)] = variable, tf.constant(0)  # reading it is a use, too
            if tf.executing_eagerly() and bool(variable.is_initialized()):
                self._values[id(variable)] = variable, variable.read_value()
            else:
                del self._values[id(variable)]  # it is being made
