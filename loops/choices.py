"""The words that arguments of several functions take, as types, so that editors offer them and type checkers know a wrong one."""

from __future__ import annotations

from typing import Any, Literal, get_args

__all__ = ["At", "Compile", "Direction", "NonFiniteAction", "Resume", "check_choice"]

#: How steps run: one TensorFlow graph for a window, one XLA program, Python, or what is faster.
Compile = Literal["auto", "graph", "xla", "eager"]

#: What to do with a workdir: carry on the run in it if there is one, take a new folder only, a folder with a run only.
Resume = Literal["auto", "never", "must"]

#: What to do about a step that is not finite; see `loops.OnNonFinite`.
NonFiniteAction = Literal["raise", "stop", "skip", "rollback", "ignore"]

#: Whether lower or higher values of a metric are better; "auto" asks the metric.
Direction = Literal["auto", "min", "max"]

#: Whether a hook reads its metric at the end of epochs or at every evaluation.
At = Literal["epoch", "evaluation"]


def check_choice(value: Any, choices: Any, argument: str) -> None:
    """Checks that an argument is one of the words that it takes.

    Args:
        value: what was given.
        choices: one of the types above.
        argument: its name.

    Raises:
        ValueError: if it is not.

    Example:
        >>> check_choice("yes", Resume, "resume")
        Traceback (most recent call last):
            ...
        ValueError: `resume` must be one of 'auto', 'never', 'must'; got 'yes'.
    """
    words = get_args(choices)
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"`{argument}` must be one of {', '.join(map(repr, words))}; got {value!r}.")
