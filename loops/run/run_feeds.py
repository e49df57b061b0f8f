"""Which feed a run reads: the given one, that of a schedule, or one that a hook assigned; and which one it read when it was saved.

A feed itself cannot be saved. A resumed run has the right one again in one of these ways; in every other case it is refused:

    the feed that was given, or that a hook assigned in `on_train_begin`, has the description of the saved one
    a `FeedSchedule` was given: the feed is that of the saved epoch
    a hook had assigned it in `on_epoch_begin` or `on_epoch_end`: this one call is made once more, announced, on a stand-in for the loop
        that keeps the hook from doing anything else; what it assigns is taken if its data is told apart from other data (arrays), and is
        the saved one
    it had been assigned between two runs, and the first of them is complete: the program will assign it again
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from loops import json_values
from loops.engine.progress import Progress
from loops.errors import MismatchError
from loops.feeds import Feed, FeedSchedule, Position
from loops.feeds.base import checked_feed
from loops.hooks.base import Hook
from loops.messages import say
from loops.run import resume_rules
from loops.run.parts import RunParts

__all__ = ["RunFeeds"]

_REPEATABLE = ("on_epoch_begin", "on_epoch_end")
_WHAT_TO_DO = (
    "Give TrainLoop a loops.FeedSchedule({first epoch: feed, ...}), or let the hook assign loop.feed in on_train_begin too, "
    "by loop.progress"
)


class RunFeeds:
    """The feeds of one run.

    Args:
        parts: the run.
        schedule: what the loop was given, if that is a schedule.

    Attributes:
        assignments: how often `loop.feed` was assigned in this process.
    """

    def __init__(self, parts: RunParts, schedule: FeedSchedule | None):
        self._parts, self._schedule = parts, schedule
        for feed in [parts.feed] if schedule is None else schedule.feeds.values():
            self._cut(feed)
        self.assignments = 0
        self._first_epoch = 0  # of the schedule's feed that is read
        # Who assigned the feed: hook, method, the counters and logs that it saw; JSON-able. None for a feed that was given.
        self._assigned: dict[str, Any] | None = None
        self._acting: tuple[Hook, str] | None = None
        self._awaited: tuple[Mapping[str, Any], pathlib.Path | None] | None = None

    def assign(self, feed: Feed) -> None:
        """Goes on with another feed.

        Raises:
            ValueError: if the run follows a schedule, or an epoch would never end.
        """
        if self._schedule is not None:
            raise ValueError("loop.feed cannot be assigned: the loop was given a FeedSchedule, which says what is read in which epoch.")
        awaited, self._awaited = self._awaited, None
        self.assignments += 1
        feed = checked_feed(feed, "feed")
        if awaited is None:
            self._use(feed)
        else:
            self._go_on_with(feed, *awaited)
        parts, acting = self._parts, self._acting
        self._assigned = {
            "hook": acting[0].name if acting is not None else None,
            "method": acting[1] if acting is not None else None,
            "progress": parts.progress.state_dict(),
            "logs": {name: json_values.encode(value) for name, value in parts.logs.items()},
        }

    @contextlib.contextmanager
    def acting(self, hook: Hook, method: str) -> Iterator[None]:
        """Within this context a method of a hook is called."""
        self._acting = (hook, method)
        try:
            with self._parts.agreement.cluster.alone(hook.name if hook.chief_only else None):
                yield
        finally:
            self._acting = None

    def begin_epoch(self) -> None:
        """Goes on with the feed that the schedule has for the epoch that begins."""
        if self._schedule is not None and (first := self._schedule.first_epoch(self._parts.progress.epoch)) != self._first_epoch:
            self._first_epoch = first
            self._use(self._schedule.feeds[first])

    def begin(self) -> None:
        """Takes the schedule's feed for the epoch in progress, when the first run begins.

        Raises:
            MismatchError: if a feed that was assigned between two runs was not assigned again.
        """
        if self._awaited is not None:
            raise MismatchError(
                f"{_difference(self._awaited[0], self._parts.feed)}; assign it between the same two runs again. {_WHAT_TO_DO}"
            )
        if self._schedule is not None and not self._parts.step.is_open:
            self._first_epoch = self._schedule.first_epoch(self._parts.progress.epoch)
            self._parts.feed = self._schedule.feeds[self._first_epoch]

    def _use(self, feed: Feed, position: Position | None = None, files: tuple[pathlib.Path | None] | None = None) -> None:
        parts = self._parts
        parts.feed = feed
        self._cut(feed)
        self.check_that_epochs_end(parts.loop.steps)
        parts.progress.steps_per_epoch = parts.steps_per_epoch or feed.steps_per_epoch
        if parts.step.is_open:
            parts.execution.switch(feed, position or Position(), files)

    def _go_on_with(self, feed: Feed, state: Mapping[str, Any], files: pathlib.Path | None) -> None:
        """Takes the feed that a resumed run has waited for, at the saved position."""
        if (why := _difference(state, feed)) is not None:
            raise MismatchError(f"{why}; a run in the workdir went on with another feed here. Give what it was, or a new workdir.")
        self._use(feed, feed.load_state_dict(state["position"]), (files,))

    def _cut(self, feed: Feed) -> None:
        if self._parts.steps_per_epoch is not None:
            feed.in_epochs_of(self._parts.steps_per_epoch)

    def check_that_epochs_end(self, steps: int | None) -> None:
        """Checks that a run of at most `steps` steps comes to an end.

        Raises:
            ValueError: if an epoch would never end.
        """
        feeds = [self._parts.feed] if self._schedule is None else list(self._schedule.feeds.values())
        if any(feed.endless for feed in feeds) and self._parts.steps_per_epoch is None and steps is None:
            raise ValueError("The feed never ends, so an epoch would not either: give TrainLoop `steps_per_epoch`, or run(steps=...).")

    def steps_in(self, epochs: int) -> int | None:
        """Steps in the first `epochs` epochs; None if that is unknown."""
        length = self._parts.steps_per_epoch
        if length is not None or self._schedule is None:
            length = length or self._parts.feed.steps_per_epoch
            return None if length is None else epochs * length
        lengths = [self._schedule.feeds[self._schedule.first_epoch(epoch)].steps_per_epoch for epoch in range(epochs)]
        return None if None in lengths else sum(n or 0 for n in lengths)

    # What is saved, and what a resumed run makes of it.

    def describe(self) -> dict[str, Any]:
        """What must not change when the run is resumed, of the feed or feeds that the loop was given."""
        return self._parts.feed.describe() if self._schedule is None else self._schedule.describe()

    def state_dict(self) -> dict[str, Any]:
        """The feed that is read and the position in it, JSON-able."""
        feed, position = self._parts.feed, self._parts.progress.position
        return {
            "position": feed.state_dict(position),
            "data": feed.describe(),
            "first_epoch": self._first_epoch,
            "assigned": self._assigned,
        }

    def load_state_dict(self, state: Mapping[str, Any], files: pathlib.Path | None) -> None:
        """Finds the saved feed again and sets the counters to the position in it; after `on_train_begin` of the hooks.

        Args:
            state: what `state_dict` returned.
            files: folder with the feed's own position files, or None.

        Raises:
            MismatchError: if it cannot be found.
        """
        parts, by_hook = self._parts, state["assigned"]
        if self._schedule is not None:
            self._first_epoch = state["first_epoch"]
            parts.feed = self._schedule.feeds[self._first_epoch]
        why = _difference(state, parts.feed)
        if by_hook is not None and self._assigned is None:
            if why is None and not parts.feed.told_apart:
                why = f"it cannot be told whether the data of this {type(parts.feed).__name__} is that which a hook had assigned"
            if why is not None and by_hook["hook"] is None and parts.target_reached():
                self._awaited = state, files
                return
            if why is not None:
                parts.feed = self._assigned_again(by_hook, state, why)
                why = None
        if why is not None:
            raise MismatchError(f"{why}. {_WHAT_TO_DO}" if by_hook is not None else why)
        self._assigned = by_hook
        position = parts.feed.load_state_dict(state["position"])
        parts.progress.pass_index, parts.progress.batch = position.pass_index, position.batch

    def _assigned_again(self, by_hook: Mapping[str, Any], state: Mapping[str, Any], why: str) -> Feed:
        """The feed that a hook had assigned, from the same call of the hook."""
        name, method, parts = by_hook["hook"], by_hook["method"], self._parts
        hook = next((hook for hook in parts.hooks if hook.name == name), None)
        if hook is None or method not in _REPEATABLE:
            who = f"in {name}.{method}, which cannot be called again" if hook is not None else f"by {name}, which is not there any more"
            where = "between two runs or in on_train_begin" if name is None else who
            raise MismatchError(f"{why}; the feed had been assigned {where}. {_WHAT_TO_DO}")
        progress = Progress()
        progress.load_state_dict(by_hook["progress"])
        say(f"{name}.{method} of epoch {progress.epoch + 1} had assigned loop.feed; it is called once more, for the feed alone.")
        stand_in = _StandIn(parts.loop, progress, parts.feed)
        logs = MappingProxyType({key: json_values.decode(value) for key, value in by_hook["logs"].items()})
        try:
            hook.on_epoch_begin(stand_in) if method == "on_epoch_begin" else hook.on_epoch_end(stand_in, logs)
        except Exception as error:
            raise MismatchError(f"{why}; called again, {name}.{method} failed ({error}). {_WHAT_TO_DO}") from error
        feed = stand_in.assigned
        if feed is None:
            raise MismatchError(f"{why}; called again, {name}.{method} assigned no feed. {_WHAT_TO_DO}")
        differs = _difference(state, feed)
        if differs is None and not feed.told_apart:
            differs = f"it cannot be told whether the data of the {type(feed).__name__} is the same"
        if differs is not None:
            raise MismatchError(f"{name}.{method} had assigned the feed; it was called again, and {differs}. {_WHAT_TO_DO}")
        return feed


def _difference(state: Mapping[str, Any], feed: Feed) -> str | None:
    """How a feed differs from the saved one."""
    try:
        resume_rules.allowed_differences({"data": state["data"]}, {"data": resume_rules.as_saved(feed.describe())})
    except MismatchError as error:
        return str(error)
    return None


class _StandIn:
    """The loop as a hook may see it that is called again for the feed that it assigns. What else the hook asks for does not happen.

    Args:
        loop: the loop; what is not below is asked there.
        progress: the counters at that time.
        feed: the feed at that time, as far as that is known.
    """

    def __init__(self, loop: Any, progress: Progress, feed: Feed):
        object.__setattr__(self, "_loop", loop)
        object.__setattr__(self, "_seen", {"progress": progress, "feed": feed, "learning_rate": loop.learning_rate})
        object.__setattr__(self, "assigned", None)

    def __getattr__(self, name: str) -> Any:
        seen = object.__getattribute__(self, "_seen")
        return seen[name] if name in seen else getattr(object.__getattribute__(self, "_loop"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "feed":
            object.__setattr__(self, "assigned", checked_feed(value, "feed"))

    def _nothing(self, *arguments: Any, **named: Any) -> None:
        pass

    stop = save = rollback = log = retrace = _nothing

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        raise RuntimeError("it evaluates, which would give other results now")
