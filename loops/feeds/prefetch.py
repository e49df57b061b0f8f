"""Runs an iterator ahead in a background thread, by as many items as may be in memory."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

__all__ = ["Prefetcher"]


class Prefetcher:
    """Iterates over `items` in a thread. Errors of the iterator are raised where the item is taken.

    An item counts from when it is begun until nobody holds it any more, so `depth=2` means one that is worked on and the next, which is
    made meanwhile. Whoever holds them all and asks for another still gets it, then made while they wait. What cannot be referred to
    weakly (None, numbers) counts until it is taken.

    Args:
        items: the iterator to run ahead.
        depth: how many items may be there at a time, at least 1.
    """

    def __init__(self, items: Iterator[Any], depth: int):
        self._items, self._depth = items, depth
        self._ready: deque[tuple[str, Any]] = deque()
        self._there = 0
        self._asked = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="feed")
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._may_make():
                item = next(self._items)
                self._put("item", item)
                del item  # it is the consumer's now
        except StopIteration:
            self._put("end", None)
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put("error", error)
        finally:
            if (close := getattr(self._items, "close", None)) is not None:
                close()

    def _may_make(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._there < self._depth or (self._asked and not self._ready))
            self._there += 1
            return not self._closed

    def _put(self, kind: str, value: Any) -> None:
        with self._changed:
            if kind == "item" and _can_be_watched(value):
                weakref.finalize(value, self._let_go).atexit = False
            self._ready.append((kind, value))
            self._changed.notify_all()

    def _let_go(self) -> None:
        with self._changed:
            self._there -= 1
            self._changed.notify_all()

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        with self._changed:
            self._asked = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ready)
            self._asked = False
            kind, value = self._ready[0]  # asked again after the end, it ends again
            if kind == "item":
                self._ready.popleft()
                if not _can_be_watched(value):
                    self._let_go()
                return value
        if kind == "error":
            raise value
        raise StopIteration

    def stop(self) -> None:
        """Has the thread end when it has made the item that it is at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread; items that were made ready are dropped."""
        self.stop()
        self._thread.join()
        self._ready.clear()


def _can_be_watched(item: Any) -> bool:
    return hasattr(type(item), "__weakref__")
