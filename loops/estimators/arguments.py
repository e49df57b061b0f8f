"""The arguments of training that an estimator has: those of its constructor, its `fit_kwargs`, and those of the call, put together."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from loops import api
from loops.train_loop import TrainLoop

__all__ = ["OF_MODELS", "OF_TASKS", "OWN", "Arguments"]

#: Arguments that are parameters of the estimators.
OWN = ("batch_size", "epochs", "verbose", "shuffle", "callbacks", "hooks", "compile", "clip", "on_nonfinite")
_ELSEWHERE = {
    "seed": "random_state in the constructor",
    "x": "X",
    "y": "y",
    "model": "model in the constructor",
    "sample_weight": "sample_weight in the call of fit",
}
#: All arguments that an estimator around a model takes, and one around a task.
OF_MODELS = frozenset(inspect.signature(api.fit).parameters) - set(_ELSEWHERE)
OF_TASKS = frozenset({*OWN, "steps_per_epoch", "workdir", "resume", "strategy", "config"}) & {
    *OWN,
    *inspect.signature(TrainLoop).parameters,
}
_OF_VALIDATION = ("validation_data", "validation_split")


class Arguments:
    """The arguments of one training.

    Args:
        own: parameters of the estimator, name -> value.
        defaults: their defaults.
        fit_kwargs: the estimator's parameter of that name.
        given: arguments of the call; they win.
        allowed: all names that there are.

    Attributes:
        of_training: name -> value, for what trains; `callbacks` and `hooks` are copies, as training changes them.
        validation: the user's `validation_data`, None if there is none.

    Raises:
        TypeError: for a name that does not exist.
        ValueError: for an argument that is set twice.
    """

    def __init__(
        self,
        own: Mapping[str, Any],
        defaults: Mapping[str, Any],
        fit_kwargs: Any,
        given: Mapping[str, Any],
        allowed: Collection[str],
    ):
        if fit_kwargs is not None and not isinstance(fit_kwargs, Mapping):
            raise TypeError(f"`fit_kwargs` is a dict of arguments, or None; got {fit_kwargs!r}.")
        more = dict(fit_kwargs or {})
        for name in [*more, *given]:
            if name in _ELSEWHERE:
                raise TypeError(f"Give {_ELSEWHERE[name]}, not {name!r} among the arguments of training.")
            if name not in allowed:
                raise TypeError(f"There is no argument of training {name!r}; there are: {', '.join(sorted(allowed))}.")
        for name, value in more.items():
            # Else a search over the parameter would change nothing, and would not say so.
            if name in own and own[name] is not defaults[name] and own[name] != value:
                raise ValueError(f"`{name}` is set twice: {name}={own[name]!r}, and {value!r} in fit_kwargs. Give it once.")
        merged = {**own, **more, **given}
        self.validation = merged.pop("validation_data", None)
        self.has_validation = self.validation is not None or bool(merged.get("validation_split"))
        for name in ("callbacks", "hooks"):
            merged[name] = copy.deepcopy(_listed(merged[name]))
        self.of_training: dict[str, Any] = merged

    def add_hook(self, hook: Any) -> None:
        """Adds a hook to those of the user."""
        self.of_training["hooks"].append(hook)


def _listed(items: Any) -> list[Any]:
    if items is None:
        return []
    return list(items) if isinstance(items, (list, tuple)) else [items]
