"""Runs an iterator a few items ahead in a background thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Prefetcher"]


class Prefetcher:
    """Iterates over `items` in a thread, at most `depth` items ahead. Errors of the iterator are raised where the item is taken.

    Args:
        items: the iterator to run ahead.
        depth: how many items may wait, at least 1.
    """

    def __init__(self, items: Iterator[Any], depth: int):
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), daemon=True, name="feed")
        self._thread.start()

    def _run(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put(("error", error))

    def _put(self, entry: tuple[str, Any]) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Any:
        kind, value = self._queue.get()
        if kind == "item":
            return value
        self._queue.put((kind, value))  # asked again, it ends again
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; items that were made ready are dropped."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:  # makes room, so that a thread that waits for it wakes up
                self._queue.get_nowait()
        self._thread.join()
