"""Which variables a step uses. An eager step has no graph to ask; values of a resumed run are given to them right before their first use.

Only variables that no attribute leads to need this: the others are known without it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.errors import MismatchError
from loops.tasks.run_variables import ADVICE, Identity, described, identities, unnumbered

__all__ = ["UsedVariables", "alike"]


class UsedVariables:
    """A context for each eager step that notes which plain variables the steps use, in the order of their first use.

    Variables are not kept alive: one that a step makes for itself is forgotten with it.

    Args:
        known: returns the plain variables that are known without this, by attribute.

    Attributes:
        refusal: what a step is refused with that draws random numbers from hidden state; None lets it draw. The first step may draw: it may
            make variables.

    Example:
        >>> import tensorflow as tf
        >>> a, b = tf.Variable(1.0), tf.Variable(2.0)
        >>> used = UsedVariables(lambda: [])
        >>> with used:
        ...     _ = b.assign_add(a * 0.0)
        >>> [float(v) for v in used]
        [1.0, 2.0]
    """

    def __init__(self, known: Callable[[], Iterable[tf.Variable]]) -> None:
        self.refusal: str | None = None
        self._known, self._known_ids = known, set[int]()
        self._seen: dict[int, weakref.ref[tf.Variable]] = {}
        self._first_values: dict[int, Any] = {}
        self._waiting: tuple[list[Identity], list[Any]] = ([], [])
        self._steps = 0
        self._contexts = contextlib.ExitStack()

    def __len__(self) -> int:
        """How many variables were seen, those that are gone included; looked at after every call."""
        return len(self._seen)

    def __iter__(self) -> Iterator[tf.Variable]:
        return iter([variable for ref in list(self._seen.values()) if (variable := ref()) is not None])

    def continues(self, before: UsedVariables) -> None:
        """Takes over what `before` noted and holds, because another step goes on with the run."""
        self._seen = {**before._seen, **self._seen}
        self.refusal, self._waiting, self._steps = before.refusal, before._waiting, before._steps
        self._first_values, self._known_ids = before._first_values, before._known_ids

    def while_traced(self) -> contextlib.AbstractContextManager[None]:
        """A context for tracing a step: the graph does not list all variables that it uses."""
        return _private_api.uses_of_variables(self._is_new, traces=True)

    def __enter__(self) -> UsedVariables:
        if not self._steps:
            self._known_ids = {id(v) for v in self._known()}
        self._contexts.enter_context(_private_api.uses_of_variables(self._used_eagerly))
        self._contexts.enter_context(_private_api.hidden_draws(self._drew))
        return self

    def __exit__(self, *exception: object) -> None:
        self._contexts.close()
        self._steps += 1
        if self._first_values.keys() - self._known_ids:
            self._known_ids = {id(v) for v in self._known()}
            self._first_values = {key: value for key, value in self._first_values.items() if key not in self._known_ids}

    def _is_new(self, variable: tf.Variable) -> bool:
        seen = self._seen.get(id(variable))
        if seen is not None and seen() is variable:
            return False
        self._seen.pop(id(variable), None)  # that of a variable that is gone
        self._seen[id(variable)] = weakref.ref(variable)
        return True

    def _used_eagerly(self, variable: tf.Variable) -> None:
        if not self._is_new(variable) or id(variable) in self._known_ids:
            return
        with tf.init_scope():  # it may be used first while a tf.function is traced
            self._give_saved_value(variable)
            if tf.executing_eagerly() and bool(variable.is_initialized()):
                self._first_values[id(variable)] = variable.read_value()

    def _drew(self) -> None:
        if self.refusal is not None and self._steps:
            raise ValueError(self.refusal)

    # Saved values.

    def restore(self, saved: Sequence[Identity], values: Sequence[Any]) -> None:
        """Gives saved values to captured variables: to those seen already now, to others right before their first use.

        A variable that was seen, but not yet when the state was saved, gets the value that it had before its first use.

        Args:
            saved: name, shape and type of each.
            values: their values.

        Raises:
            MismatchError: if it is not clear which is which.
        """
        self._known_ids = {id(v) for v in self._known()}
        captured = [v for v in self if id(v) not in self._known_ids]
        self._waiting = list(saved), list(values)
        if identities(captured[: len(saved)]) == list(saved):  # the process that saved them
            self._waiting, rest = ([], []), captured[len(saved) :]
            for variable, value in zip(captured, values, strict=False):
                variable.assign(value)
            for variable in rest:
                variable.assign(self._first_values.get(id(variable), variable))
            return
        if (sentence := alike(saved)) is not None:
            raise MismatchError(sentence)
        for variable in captured:
            self._give_saved_value(variable)

    @property
    def waiting(self) -> tuple[list[Identity], list[Any]]:
        """Identities and values of those that were saved and not used since."""
        return self._waiting

    def _give_saved_value(self, variable: tf.Variable) -> None:
        saved, values = self._waiting
        if not saved:
            return
        self._known_ids = {id(v) for v in self._known()}  # the step may just have made it
        if id(variable) not in self._known_ids and (place := _place_in(saved, variable)) is not None:
            del saved[place]
            variable.assign(values.pop(place))


def _place_in(saved: Sequence[Identity], variable: tf.Variable) -> int | None:
    """The index of the one in `saved` that a variable is; None if it was never used before they were saved.

    Raises:
        MismatchError: if that is not clear.
    """
    name, shape, dtype = now = identities([variable])[0]
    if now in saved:
        return saved.index(now)
    renumbered = [i for i, one in enumerate(saved) if (unnumbered(one[0]), *one[1:]) == (unnumbered(name), shape, dtype)]
    if len(renumbered) == 1:
        return renumbered[0]
    if any(one[1:] == (shape, dtype) for one in saved):
        raise MismatchError(f"the step uses {described(now)} where it used {described(saved[0])} before; {ADVICE}")
    return None


def alike(identified: Sequence[Identity]) -> str | None:
    """A sentence if two variables cannot be told apart without a graph, else None."""
    for one in identified:
        if (count := list(identified).count(one)) > 1:
            return f"the eager step uses {count} variables {described(one)} that cannot be told apart; {ADVICE}, or give them other names"
    return None
