"""Parameters of estimators that are dicts, with names for their entries: `model_kwargs__units` is the entry `units` of `model_kwargs`.

So a search can be over single entries. It knows no model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from sklearn.base import BaseEstimator

__all__ = ["NestedParameters", "keywords_of"]


class NestedParameters(BaseEstimator):
    """An estimator some of whose parameters are dicts (or None) with entries of their own.

    Attributes:
        nested: names of these parameters.
    """

    nested: ClassVar[tuple[str, ...]] = ()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters, name -> value.

        Args:
            deep: whether entries of the dicts are listed too, as `PARAMETER__ENTRY`.
        """
        found: dict[str, Any] = super().get_params(deep=deep)
        for holder in self.nested if deep else ():
            value = getattr(self, holder)
            if isinstance(value, Mapping):
                found.update({f"{holder}__{name}": entry for name, entry in value.items()})
        return found

    def set_params(self, **params: Any) -> NestedParameters:
        """Sets parameters, and entries of those that are dicts; a dict that was given is not changed, but replaced.

        Raises:
            ValueError: for a name that does not exist.
        """
        entries: dict[str, dict[str, Any]] = {}
        own = {}
        for name, value in params.items():
            holder, separator, entry = name.partition("__")
            if separator and holder in self.nested:
                entries.setdefault(holder, {})[entry] = value
            else:
                own[name] = value
        super().set_params(**own)
        for holder, values in entries.items():
            known = self._entries_of(holder)
            if known is not None and (unknown := sorted(set(values) - set(known))):
                listed = ", ".join(sorted(known)) or "none"
                raise ValueError(f"{type(self).__name__} has no parameter {holder}__{unknown[0]}; entries of {holder}: {listed}.")
            setattr(self, holder, {**(getattr(self, holder) or {}), **values})
        return self

    def _entries_of(self, holder: str) -> Collection[str] | None:
        """The names that `holder` may have, None: any."""
        return None


def keywords_of(function: Callable[..., Any], *, without: Collection[str] = ()) -> frozenset[str] | None:
    """The names of the keyword arguments that a function takes, None: any, or they cannot be told.

    Args:
        function: the function.
        without: names to leave out.

    Example:
        >>> sorted(keywords_of(lambda X, y, units=3, rate=0.1: None, without=("X", "y")))
        ['rate', 'units']
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)) - set(without)
