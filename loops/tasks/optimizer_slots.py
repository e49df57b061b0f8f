"""Which variables an optimizer has slots for, and how it gets slots for others while training goes on.

As in Keras, an optimizer is built for the variables that train when it is first used, so that frozen layers cost nothing and a saved model
is the one that Keras would have saved. When a layer is set free later, the optimizer is built again for the longer list: it keeps the slots
that it has, as they are, and their order is that of an optimizer which had been built for that list at once.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api

__all__ = ["build", "build_as", "built_for", "rebuild"]

_AVERAGE = "average"  # Keras's name for the slot with the moving average of a variable
# The id of a variable, None for what belongs to none; the name of its slot, None for what was made without a reference to the variable; and
# which of several such slots it is.
_Label = tuple[int | None, str | None, int]


def build(optimizer: keras.optimizers.Optimizer, variables: Sequence[Any], order: Sequence[Any] = ()) -> bool:
    """Sees to it that an optimizer can update `variables`. It keeps slots of variables that do not train any more.

    Args:
        optimizer: built or not.
        variables: the variables to update.
        order: the order of all variables, for the slots where the optimizer has been built for others than `variables`.

    Returns:
        Whether slots were made.
    """
    if not optimizer.built:
        with _scope(optimizer):
            optimizer.build(list(variables))
        return True
    if all(_private_api.is_built_for(optimizer, v) for v in variables):
        return False
    wanted = list({id(v): v for v in [*variables, *_private_api.variables_to_update(optimizer)]}.values())
    if len(wanted) > len(variables):
        place = {id(v): i for i, v in enumerate(order)}
        wanted.sort(key=lambda v: place.get(id(v), len(place)))
    rebuild(optimizer, wanted)
    return True


def rebuild(optimizer: keras.optimizers.Optimizer, variables: Sequence[Any]) -> None:
    """Builds an optimizer again, for exactly `variables` in this order. Slots of variables that it was built for before stay as they are.

    A new slot begins as Keras lets it begin; a new moving average of weights begins with the weights, which it would have if it had
    followed them while they were frozen.

    Raises:
        ValueError: if the optimizer has state of which it cannot be told what it belongs to.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        rebuild(inner, variables)
        _private_api.forget_what_it_was_built_for(optimizer, [])
        keras.optimizers.Optimizer.build(optimizer, list(variables))  # its own method would make another loss scale
        return
    # An optimizer makes its count of iterations first, then its learning rate, unless that is a schedule.
    constant = 1 + isinstance(_private_api.learning_rate_setting(optimizer), keras.Variable)
    with _scope(optimizer):
        slots = _Slots(optimizer, constant)
        slots.give_names()
        slots.build_for(list(variables))


def built_for(optimizers: Mapping[str, Any], variables: Sequence[Any]) -> dict[str, list[int]]:
    """For each optimizer that is built the indices of its variables, JSON-able.

    Args:
        optimizers: name -> optimizer.
        variables: all variables of the models.
    """
    place = {id(v): i for i, v in enumerate(variables)}
    found = {}
    for name, optimizer in optimizers.items():
        updated = _private_api.variables_to_update(optimizer) if optimizer.built else None
        if updated is not None and all(id(v) in place for v in updated):
            found[name] = [place[id(v)] for v in updated]
    return found


def build_as(optimizers: Mapping[str, Any], variables: Sequence[Any], saved: Mapping[str, Sequence[int]]) -> bool:
    """Builds the optimizers for the variables that `built_for` found; those with other names are left as they are.

    Returns:
        Whether something had to be done.
    """
    changed = False
    for name, indices in saved.items():
        optimizer = optimizers.get(name)
        if optimizer is None or not indices or max(indices) >= len(variables):
            continue
        wanted = [variables[i] for i in indices]
        if not optimizer.built:
            build(optimizer, wanted)
        elif [id(v) for v in _private_api.variables_to_update(optimizer)] != [id(v) for v in wanted]:
            rebuild(optimizer, wanted)
        else:
            continue
        changed = True
    return changed


class _Slots:
    """The slots of one optimizer: whose they are, and the optimizer built again with them.

    Args:
        optimizer: a built optimizer, not one around another one.
        constant: number of variables that do not depend on what it is built for.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, constant: int):
        self._optimizer, self._constant = optimizer, constant
        self._slots: dict[_Label, keras.Variable] = {}
        self._by_reference: set[_Label] = set()

    def give_names(self) -> None:
        """Builds the optimizer as it was, to see whose each of its slots is."""
        slots = _private_api.own_variables(self._optimizer)[self._constant :]
        known = list(_private_api.variables_to_update(self._optimizer))
        build = _Build(self._optimizer, self._constant, lambda at, *_: slots[at])
        try:
            labels = build.of(known, slots)
        except IndexError:
            raise self._refusal() from None
        if len(labels) != len(slots) or any(a.shape != b.shape for a, b in zip(build.made, slots, strict=True)):
            raise self._refusal()
        self._slots, self._by_reference = dict(zip(labels, slots, strict=True)), build.by_reference

    def build_for(self, variables: list[Any]) -> None:
        """Builds the optimizer for `variables`, with the slots that have a name already."""
        optimizer = self._optimizer

        def make(at: int, label: _Label, reference: Any, name: str | None, initializer: Any) -> keras.Variable:
            if label in self._by_reference:
                return self._slots[label]
            slot = type(optimizer).add_variable_from_reference(optimizer, reference, name=name, initializer=initializer)
            if optimizer.use_ema and name == _AVERAGE:
                slot.assign(reference)
            return slot

        build = _Build(optimizer, self._constant, make)
        labels = build.of(variables, _private_api.own_variables(optimizer)[self._constant :])
        if {label for label in labels if label[0] is None} != {label for label in self._slots if label[0] is None}:
            raise self._refusal()
        for label, slot in zip(labels, build.made, strict=True):
            old = self._slots.get(label, slot)
            if old.shape != slot.shape:
                raise self._refusal()
            if old is not slot:  # the optimizer made it by itself, once more
                slot.assign(old)

    def _refusal(self) -> ValueError:
        kind = type(self._optimizer).__name__
        return ValueError(
            f"The optimizer {kind} was built for other variables than those that train now, and it cannot be told which of its state "
            f"belongs to which variable. Make these variables trainable before training, give the task a new optimizer, or let "
            f"{kind}.build make its slots by add_variable_from_reference."
        )


class _Build:
    """Builds an optimizer and sees for which variable it makes each slot.

    Args:
        optimizer: the optimizer.
        constant: number of its variables that are no slots.
        make: (place, label, reference variable, name, initializer) -> the slot to use at this place.

    Attributes:
        made: the slots.
        by_reference: labels of those that the optimizer made by `add_variable_from_reference`.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, constant: int, make: Callable[..., keras.Variable]):
        self._optimizer, self._constant, self._make = optimizer, constant, make
        self._labels: list[_Label] = []
        self._counts: collections.Counter[tuple[int | None, str | None]] = collections.Counter()
        self._current: int | None = None
        self.made: list[keras.Variable] = []
        self.by_reference: set[_Label] = set()

    def of(self, variables: list[Any], slots: Sequence[keras.Variable]) -> list[_Label]:
        """Builds the optimizer for `variables`, without the `slots` that it has; returns the label of each new slot."""
        _private_api.forget_what_it_was_built_for(self._optimizer, slots)
        with _private_api.slots_from(self._optimizer, self._from_reference):
            self._optimizer.build(_Watched(variables, self._now_at))
        self._now_at(None)
        self.made = _private_api.own_variables(self._optimizer)[self._constant :]
        return self._labels

    def _from_reference(self, reference: Any, name: str | None, initializer: Any) -> keras.Variable:
        self._now_at(reference)
        label = self._label(name or "var")
        self._labels.append(label)
        self.by_reference.add(label)
        return self._make(len(self._labels) - 1, label, reference, name, initializer)

    def _now_at(self, variable: Any) -> None:
        """Called when the optimizer turns to another variable. What it has made without a reference belongs to the one before."""
        count = len(_private_api.own_variables(self._optimizer)) - self._constant
        self._labels += [self._label(None) for _ in range(count - len(self._labels))]
        self._current = None if variable is None else id(variable)

    def _label(self, name: str | None) -> _Label:
        self._counts[self._current, name] += 1
        return self._current, name, self._counts[self._current, name]


class _Watched(list[Any]):
    """Variables that say when somebody turns to one of them, and when he is through."""

    def __init__(self, variables: Sequence[Any], now_at: Callable[[Any], None]):
        super().__init__(variables)
        self._now_at = now_at

    def __iter__(self) -> Iterator[Any]:
        for variable in super().__iter__():
            self._now_at(variable)
            yield variable
        self._now_at(None)


@contextlib.contextmanager
def _scope(optimizer: Any) -> Any:
    """Variables are made outside of a trace, under the optimizer's name, and where its other variables are."""
    strategy = getattr(getattr(_private_api.own_variables(optimizer)[0], "value", None), "distribute_strategy", None)
    with tf.init_scope(), contextlib.ExitStack() as stack:
        if strategy is not None and not tf.distribute.has_strategy():
            stack.enter_context(strategy.scope())
        stack.enter_context(keras.name_scope(optimizer.name, caller=optimizer))
        yield
