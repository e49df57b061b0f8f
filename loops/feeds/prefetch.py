"""Runs an iterator in a background thread, ahead of its consumer, with a bound on the number of items in memory."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

__all__ = ["Prefetcher"]


class Prefetcher:
    """Iterates over `items` in a thread. An error of the iterator is raised in the consumer, in place of the item.

    An item counts from the moment when the thread begins to make it until it is garbage-collected. So `depth=2` means the item that the
    consumer works on and the next one, which the thread makes meanwhile. A consumer that holds `depth` items and asks for another gets it,
    but waits until the thread has made it. An item that cannot be weakly referenced (None, a number) counts until it is taken.

    Args:
        items: the iterator to run ahead.
        depth: number of items in memory at a time, at least 1.
    """

    def __init__(self, items: Iterator[Any], depth: int):
        self._items, self._depth = items, depth
        self._ready: deque[tuple[str, Any]] = deque()
        self._in_memory = 0
        self._consumer_waits = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="feed")
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._may_make():
                item = next(self._items)
                self._put("item", item)
                del item  # this thread must not keep it in memory
        except StopIteration:
            self._put("end", None)
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put("error", error)
        finally:
            if (close := getattr(self._items, "close", None)) is not None:
                close()

    def _may_make(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._in_memory < self._depth or (self._consumer_waits and not self._ready))
            self._in_memory += 1
            return not self._closed

    def _put(self, kind: str, value: Any) -> None:
        with self._changed:
            if kind == "item" and _can_be_weakly_referenced(value):
                weakref.finalize(value, self._forget_one).atexit = False
            self._ready.append((kind, value))
            self._changed.notify_all()

    def _forget_one(self) -> None:
        with self._changed:
            self._in_memory -= 1
            self._changed.notify_all()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        with self._changed:
            self._consumer_waits = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ready)
            self._consumer_waits = False
            kind, value = self._ready[0]  # an end or an error stays in the queue, so that later calls end in the same way
            if kind == "item":
                self._ready.popleft()
                if not _can_be_weakly_referenced(value):
                    self._forget_one()
                return value
        if kind == "error":
            raise value
        raise StopIteration

    def stop(self) -> None:
        """Makes the thread end after the item that it is making; does not wait for it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread and drops the items that are ready."""
        self.stop()
        self._thread.join()
        self._ready.clear()


def _can_be_weakly_referenced(item: Any) -> bool:
    return hasattr(type(item), "__weakref__")
