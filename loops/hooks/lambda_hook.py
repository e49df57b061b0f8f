"""A hook made of functions, for tasks too small for a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from loops import triggers
from loops.engine.rows import Window
from loops.hooks.base import Hook, Loop, Phase

__all__ = ["LambdaHook"]


class LambdaHook(Hook):
    """Calls the given functions with what the methods of a `Hook` get (without `self`).

    Args:
        on_train_begin: `(loop)`.
        on_epoch_begin: `(loop)`.
        on_window_end: `(loop, window)`, whenever `every` is due.
        on_evaluate_begin: `(loop, name)`.
        on_evaluate_batch: `(batch, logs, last)`; giving it makes every evaluation call it at each batch.
        on_evaluate_end: `(loop, name, logs)`.
        on_predict_begin: `(loop)`.
        on_predict_end: `(loop, outputs)`.
        on_epoch_end: `(loop, logs)`.
        on_train_end: `(loop)`.
        every: when `on_window_end` is due; as in `Hook`.
        phase: the `Phase` in which the functions act.
        observes: names of what the program must return to the hook; as in `Hook`.
        final_window: whether `on_window_end` is called once more for the last steps; as in `Hook`.
        state_dict: `()`; returns what the functions remember between calls, so that a resumed run can restore it; as in `Hook`.
        load_state_dict: `(state)`; restores it.

    Raises:
        ValueError: if only one of `state_dict` and `load_state_dict` is given.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.LambdaHook(on_window_end=lambda loop, window: print(window.mean("loss")), every="100 steps")
        >>> hook.every
        EverySteps(100)
    """

    def __init__(
        self,
        *,
        on_train_begin: Callable[[Loop], Any] | None = None,
        on_epoch_begin: Callable[[Loop], Any] | None = None,
        on_window_end: Callable[[Loop, Window], Any] | None = None,
        on_evaluate_begin: Callable[[Loop, str], Any] | None = None,
        on_evaluate_batch: Callable[[int, Callable[[], dict[str, Any]], bool], Any] | None = None,
        on_evaluate_end: Callable[[Loop, str, Mapping[str, Any]], Any] | None = None,
        on_predict_begin: Callable[[Loop], Any] | None = None,
        on_predict_end: Callable[[Loop, Any], Any] | None = None,
        on_epoch_end: Callable[[Loop, Mapping[str, Any]], Any] | None = None,
        on_train_end: Callable[[Loop], Any] | None = None,
        every: triggers.Trigger | str | None = "1 epoch",
        phase: Phase = Phase.RECORD,
        observes: Iterable[str] = (),
        final_window: bool = False,
        state_dict: Callable[[], dict[str, Any]] | None = None,
        load_state_dict: Callable[[dict[str, Any]], Any] | None = None,
    ):
        # Assigned over the methods of the same names; where no function was given, `Hook`'s method stays.
        given = dict(locals())
        methods = [name for name in given if (name.startswith("on_") or name.endswith("state_dict")) and name != "on_window_end"]
        if (state_dict is None) != (load_state_dict is None):
            raise ValueError("LambdaHook needs both `state_dict` and `load_state_dict`, or neither: one gives what the other restores.")
        for method in methods:
            if given[method] is not None:
                setattr(self, method, given[method])
        self.watches_evaluation = on_evaluate_batch is not None
        self.every = None
        if on_window_end is not None:
            self.on_window_end = on_window_end  # type: ignore[method-assign,assignment]
            self.every = triggers.parse(every)
        self.phase = Phase(phase)
        self.observes = frozenset(observes)
        self.final_window = final_window
