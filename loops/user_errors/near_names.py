"""Suggests the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A question for a sentence, that begins with a blank; empty if nothing is similar.

    Example:
        >>> did_you_mean("acuracy", ["accuracy", "auc"])
        " Did you mean 'accuracy'?"
    """
    lower = {one.lower(): one for one in reversed(list(known))}
    near = difflib.get_close_matches(str(name).lower(), lower, n=2, cutoff=0.7)
    return f" Did you mean {' or '.join(repr(lower[one]) for one in near)}?" if near else ""
