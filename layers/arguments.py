"""Checks of the arguments that layers, losses and metrics are given, and of the shapes that they are built for.

What only one class asks of its arguments, it checks itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["check_choice", "check_integers", "check_numbers", "known_dimension"]


def check_numbers(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    optional: bool = False,
    **arguments: float | None,
) -> None:
    """Refuses numbers that are out of bounds, and NaN.

    Args:
        at_least: the smallest number that is allowed.
        above: a number that all have to exceed.
        at_most: the greatest number that is allowed.
        below: a number that none may reach; infinity asks for finite ones.
        optional: whether None is allowed too.
        **arguments: the numbers, by the names that the user knows.

    Raises:
        ValueError: for the first one that is out of bounds.

    Example:
        >>> check_numbers(at_least=0, below=1, rate=0.0, decay=0.9)
        >>> check_numbers(above=0, below=math.inf, scale=-2.0)
        Traceback (most recent call last):
        ValueError: `scale` must be greater than 0 and finite; got -2.0.
    """
    bounds: list[tuple[float | None, Callable[[Any, Any], bool], str]] = [
        (at_least, operator.ge, f"at least {at_least}"),
        (above, operator.gt, f"greater than {above}"),
        (at_most, operator.le, f"at most {at_most}"),
        (below, operator.lt, "finite" if below == math.inf else f"less than {below}"),
    ]
    given = [bound for bound in bounds if bound[0] is not None]
    expected = " and ".join(words for _, _, words in given) + (", or None" if optional else "")
    for name, value in arguments.items():
        if not (optional and value is None) and not all(holds(value, limit) for limit, holds, _ in given):
            raise ValueError(f"`{name}` must be {expected}; got {value!r}.")


def check_integers(*, at_least: int, optional: bool = False, **arguments: Any) -> None:
    """Refuses what is no integer, and integers that are too small.

    Args:
        at_least: the smallest integer that is allowed.
        optional: whether None is allowed too.
        **arguments: the integers, by the names that the user knows.

    Raises:
        ValueError: for the first one that is refused.

    Example:
        >>> check_integers(at_least=1, units=2.5)
        Traceback (most recent call last):
        ValueError: `units` must be an integer of at least 1; got 2.5.
    """
    for name, value in arguments.items():
        if not (optional and value is None) and not (isinstance(value, int) and value >= at_least):
            raise ValueError(f"`{name}` must be an integer of at least {at_least}{', or None' if optional else ''}; got {value!r}.")


def check_choice(choices: Sequence[Any], /, **arguments: Any) -> None:
    """Refuses what is none of the choices.

    Args:
        choices: two or more, in the order in which a message names them.
        **arguments: what was chosen, by the names that the user knows.

    Raises:
        ValueError: for the first one that is none of them.

    Example:
        >>> check_choice(["loss", "ema"], update="mean")
        Traceback (most recent call last):
        ValueError: `update` must be 'loss' or 'ema'; got 'mean'.
    """
    *others, last = map(repr, choices)
    for name, value in arguments.items():
        if value not in choices:
            raise ValueError(f"`{name}` must be {', '.join(others)} or {last}; got {value!r}.")


def known_dimension(layer: Any, shape: Sequence[int | None]) -> int:
    """The last dimension of the inputs that a layer is built for.

    Args:
        layer: the layer that needs it.
        shape: shape of its inputs.

    Returns:
        The size of that dimension.

    Raises:
        ValueError: if it is unknown.

    Example:
        >>> import layers
        >>> known_dimension(layers.NoisyDense(units=2), (None, 3))
        3
        >>> known_dimension(layers.NoisyDense(units=2), (3, None))
        Traceback (most recent call last):
        ValueError: NoisyDense needs to know the last dimension of its inputs; got inputs of shape (3, None).
    """
    size = shape[-1]
    if size is None:
        raise ValueError(f"{type(layer).__name__} needs to know the last dimension of its inputs; got inputs of shape {tuple(shape)}.")
    return int(size)
