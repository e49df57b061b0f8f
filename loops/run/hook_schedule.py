"""When each hook looks: the hooks in the order in which they act, their triggers, and the step and time of each hook's last look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loops import triggers
from loops.engine.progress import Progress
from loops.hooks.base import Hook, Loop

__all__ = ["HookSchedule"]


class HookSchedule:
    """The looks of all hooks: the last ones, and the next ones.

    Args:
        hooks: the hooks, with unique names.
    """

    def __init__(self, hooks: Sequence[Hook]):
        self._hooks: list[Hook] = []
        self._triggers: dict[str, triggers.Trigger] = {}
        self._with_windows: set[str] = set()
        self._last_looks: dict[str, tuple[int, float]] = {}
        for hook in hooks:
            self.add(hook)

    def add(self, hook: Hook) -> None:
        """Adds a hook; its first window begins at the next `start`.

        Raises:
            ValueError: if there is a hook of that name.
        """
        if hook.name in self._triggers:
            raise ValueError(f"There is a hook named {hook.name!r} already; give this one another `name`.")
        self._hooks = sorted([*self._hooks, hook], key=lambda hook: hook.phase)
        self._triggers[hook.name] = triggers.parse(hook.every)
        # A function assigned to the hook itself counts too: `LambdaHook` does that.
        if getattr(hook.on_window_end, "__func__", hook.on_window_end) is not Hook.on_window_end:
            self._with_windows.add(hook.name)

    def remove(self, hook: Hook) -> None:
        """Removes a hook."""
        self._hooks.remove(hook)
        self._triggers.pop(hook.name)
        self._last_looks.pop(hook.name, None)
        self._with_windows.discard(hook.name)

    def __iter__(self) -> Iterator[Hook]:
        """The hooks, phase by phase."""
        return iter(self._hooks)

    def before_retrace(self, loop: Loop) -> None:
        """Tells the hooks that the step is about to be traced again."""
        for hook in self._hooks:
            hook.before_retrace(loop)

    def start(self, step: int, now: float) -> None:
        """To be called when training begins or goes on, with `step` completed steps."""
        for hook in self._hooks:
            self._last_looks.setdefault(hook.name, (step, now))
            self._triggers[hook.name].start(now)

    def next_step(self, step: int) -> int | None:
        """The nearest step after `step` at which a hook will be due."""
        return min((s for t in self._triggers.values() if (s := t.next_step(step)) is not None), default=None)

    def due(self, hook: Hook, progress: Progress, now: float) -> bool:
        """Whether the trigger of `hook` is due."""
        return self._triggers[hook.name].due(progress, now)

    def due_by_time(self, progress: Progress, now: float) -> bool:
        """Whether a hook whose trigger counts seconds is due."""
        return any(t.may_fire_between_steps() and t.due(progress, now) for t in self._triggers.values())

    def open_window(self, hook: Hook, step: int, now: float) -> tuple[int, float] | None:
        """Begins a look of `hook` at `step`, and records it as the last one.

        Returns:
            The first step (1-based) of its window and the length of the window in seconds; None if no step was made since the last look.
        """
        last, begun = self._last_looks[hook.name]
        if last == step:
            return None
        self._last_looks[hook.name] = (step, now)
        self._triggers[hook.name].fired(now)
        return last + 1, now - begun

    def state_dict(self, now: float) -> dict[str, Any]:
        """The last look of each hook, JSON-able. A time is saved as its age in seconds, because the clock of the next process differs."""
        return {name: {"step": step, "age": now - at} for name, (step, at) in self._last_looks.items()}

    def load_state_dict(self, state: Mapping[str, Any], now: float) -> None:
        """Restores what `state_dict` returned for the hooks that still exist; the windows of other hooks begin here."""
        self._last_looks.update((name, (look["step"], now - look["age"])) for name, look in state.items() if name in self._triggers)

    def seen_by_all(self, step: int) -> int:
        """The last step that all hooks with further windows have seen; `step` if there is no such hook. Rows up to it can be dropped."""
        waiting = [h.name for h in self._hooks if h.final_window or not isinstance(self._triggers[h.name], triggers.Never)]
        return min((self._last_looks[name][0] for name in waiting if name in self._with_windows), default=step)
