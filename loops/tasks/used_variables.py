"""Which variables a step uses. An eager step has no graph to ask; values of a resumed run are given to them right before their first use.

Only variables that no attribute leads to need this: the others are known without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.errors import MismatchError
from loops.tasks.run_variables import ADVICE, Identity, described, identities, unnumbered

__all__ = ["UsedVariables", "alike"]


@dataclasses.dataclass
class _Waiting:
    """Saved values of captured variables that were not used yet, and what is known without them."""

    saved: list[Identity]
    values: list[np.ndarray]
    known: Callable[[], Iterable[tf.Variable]]
    known_ids: set[int] = dataclasses.field(default_factory=set)

    def is_known(self, variable: tf.Variable) -> bool:
        """Whether a variable is known by attribute; only for one that is new is the task searched again."""
        if id(variable) not in self.known_ids:
            self.known_ids = {id(v) for v in self.known()}
        return id(variable) in self.known_ids


class UsedVariables:
    """A context for each eager step that notes which plain variables they use, in the order of their first use.

    Variables are not kept alive: one that a step makes for itself is forgotten with it.

    Attributes:
        refusal: what a step is refused with that draws random numbers from hidden state; None lets it draw. The first step may draw: it may
            make variables.

    Example:
        >>> import tensorflow as tf
        >>> used, a, b = UsedVariables(), tf.Variable(1.0), tf.Variable(2.0)
        >>> with used:
        ...     _ = b.assign_add(a * 0.0)
        >>> [float(v) for v in used]
        [1.0, 2.0]
    """

    def __init__(self) -> None:
        self.refusal: str | None = None
        self._seen: dict[int, weakref.ref[tf.Variable]] = {}
        self._waiting: _Waiting | None = None
        self._steps = 0
        self._contexts = contextlib.ExitStack()

    def __iter__(self) -> Any:
        return (variable for ref in list(self._seen.values()) if (variable := ref()) is not None)

    def add(self, variables: Iterable[tf.Variable]) -> None:
        """Takes over what was used before."""
        for variable in variables:
            self._seen.setdefault(id(variable), weakref.ref(variable))

    def while_traced(self) -> contextlib.AbstractContextManager[None]:
        """A context for tracing a step: the graph does not list all variables that it uses."""
        return _private_api.uses_of_variables(self._noticed, traces=True)

    def __enter__(self) -> UsedVariables:
        self._contexts.enter_context(_private_api.uses_of_variables(self._noticed))
        self._contexts.enter_context(_private_api.hidden_draws(self._drew))
        return self

    def __exit__(self, *exception: object) -> None:
        self._contexts.close()
        self._steps += 1

    def _noticed(self, variable: tf.Variable) -> None:
        known = self._seen.get(id(variable))
        if known is not None and known() is variable:
            return
        self._seen.pop(id(variable), None)  # that of a variable that is gone
        self._seen[id(variable)] = weakref.ref(variable)
        if self._waiting is not None:
            self._give_saved_value(variable)

    def _drew(self) -> None:
        if self.refusal is not None and self._steps:
            raise ValueError(self.refusal)

    # Saved values.

    def expect(self, saved: Sequence[Identity], values: Sequence[np.ndarray], known: Callable[[], Iterable[tf.Variable]]) -> None:
        """Gives saved values to captured variables: to those seen already now, to others right before their first use.

        Args:
            saved: name, shape and type of each.
            values: their values.
            known: returns the plain variables that are known without this.

        Raises:
            MismatchError: if two of them are alike: which is which cannot be told without a graph.
        """
        if (sentence := alike(saved)) is not None:
            raise MismatchError(sentence)
        self._waiting = _Waiting(list(saved), list(values), known)
        for variable in list(self):
            self._give_saved_value(variable)

    @property
    def waiting(self) -> tuple[list[Identity], list[np.ndarray]]:
        """Identities and values of those that were not used yet."""
        return (self._waiting.saved, self._waiting.values) if self._waiting is not None else ([], [])

    def _give_saved_value(self, variable: tf.Variable) -> None:
        assert self._waiting is not None
        saved, values = self._waiting.saved, self._waiting.values
        if not saved or self._waiting.is_known(variable):
            return
        place = _place_in(saved, variable)
        if place is not None:
            del saved[place]
            value = values.pop(place)
            with tf.init_scope():  # it may be used first while a tf.function is traced
                variable.assign(value)


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
