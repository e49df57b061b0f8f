"""Who looks when: the hooks in the order in which they act, the triggers that say when they are due, and when each looked last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loops import triggers
from loops.engine.progress import Progress
from loops.hooks.base import Hook

__all__ = ["HookSchedule"]


class HookSchedule:
    """The appointments of all hooks.

    Args:
        hooks: the hooks, with unique names.
    """

    def __init__(self, hooks: Sequence[Hook]):
        self._hooks: list[Hook] = []
        self._triggers: dict[str, triggers.Trigger] = {}
        self._windowed: set[str] = set()
        self._looked: dict[str, tuple[int, float]] = {}
        for hook in hooks:
            self.add(hook)

    def add(self, hook: Hook) -> None:
        """One more hook; for it the run begins at the next `start`."""
        self._hooks = sorted([*self._hooks, hook], key=lambda hook: hook.phase)
        self._triggers[hook.name] = triggers.parse(hook.every)
        if type(hook).on_window_end is not Hook.on_window_end:
            self._windowed.add(hook.name)

    def remove(self, hook: Hook) -> None:
        """Forgets a hook."""
        self._hooks.remove(hook)
        self._triggers.pop(hook.name)
        self._looked.pop(hook.name, None)
        self._windowed.discard(hook.name)

    def __iter__(self) -> Iterator[Hook]:
        """The hooks, phase by phase."""
        return iter(self._hooks)

    def start(self, step: int, now: float) -> None:
        """Training begins, or goes on, at `step` completed steps."""
        for hook in self._hooks:
            self._looked.setdefault(hook.name, (step, now))
            self._triggers[hook.name].start(now)

    def next_step(self, step: int) -> int | None:
        """The nearest step after `step` at which a hook will be due."""
        return min((s for t in self._triggers.values() if (s := t.next_step(step)) is not None), default=None)

    def due(self, hook: Hook, progress: Progress, now: float) -> bool:
        """Whether `hook` is to look now."""
        return self._triggers[hook.name].due(progress, now)

    def due_by_time(self, progress: Progress, now: float) -> bool:
        """Whether a hook that counts in seconds is due."""
        return any(t.may_fire_between_steps() and t.due(progress, now) for t in self._triggers.values())

    def take(self, hook: Hook, step: int, now: float) -> tuple[int, float] | None:
        """Opens the window of `hook` up to `step`.

        Returns:
            Its first step (1-based) and its length in seconds; None if there is nothing new to see.
        """
        last, begun = self._looked[hook.name]
        if last == step:
            return None
        self._looked[hook.name] = (step, now)
        self._triggers[hook.name].fired(now)
        return last + 1, now - begun

    def state_dict(self, now: float) -> dict[str, Any]:
        """When each hook looked last, JSON-able; times as ages in seconds."""
        return {name: {"step": step, "age": now - at} for name, (step, at) in self._looked.items()}

    def load_state_dict(self, state: Mapping[str, Any], now: float) -> None:
        """Restores what `state_dict` gave, for hooks that are still there; others look from here on."""
        self._looked.update((name, (look["step"], now - look["age"])) for name, look in state.items() if name in self._triggers)

    def oldest(self, step: int) -> int:
        """The last step that has been seen by every hook that will look again; `step` if there is none."""
        waiting = [h.name for h in self._hooks if h.final_window or not isinstance(self._triggers[h.name], triggers.Never)]
        return min((self._looked[name][0] for name in waiting if name in self._windowed), default=step)
