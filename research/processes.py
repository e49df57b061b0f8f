"""Runs several processes side by side as one: their lines come whole, with names in front; signals go to all; if one fails, all end.

It knows nothing of what they compute. `scripts/launch.py` says what they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any, TextIO

__all__ = ["Group", "Signals", "tell"]

_PATIENCE = 3  # the third Ctrl-C kills
_GRACE_AFTER_KILL = 5.0  # who waits, in C++, for a process that was killed hears no signal
_ASKED = (os.EX_TEMPFAIL, 128 + signal.SIGINT, -signal.SIGINT)
_SET_PARENT_DEATH_SIGNAL = 1
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def tell(text: str) -> None:
    """Says something of the processes, beside what they say themselves."""
    print(f"[launch] {text}", file=sys.stderr, flush=True)


class Signals:
    """Hands SIGINT and SIGTERM on to the workers. They are in sessions of their own, so a terminal's Ctrl-C reaches them only this way.

    Attributes:
        received: the last signal that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.received = 0
        self._interrupts = 0
        self._group: Group | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._hand_on)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def begin(self, group: Group) -> None:
        """From now on `group` gets the signals; also the one that came while it was started."""
        self._group = group
        if self.received:
            group.send(self.received)

    def _hand_on(self, number: int, frame: object) -> None:
        self.received = number
        self._interrupts += number == signal.SIGINT
        if self._group is not None:
            self._group.send(signal.SIGKILL if self._interrupts >= _PATIENCE else number)


class Group:
    """Processes of one command, started together and ended together.

    Args:
        command: what to run.
        environments: the environment of each process; their number is that of the processes.
        grace: seconds from asking a process to end (SIGTERM) to killing it; five at most, if another was killed.
    """

    def __init__(self, command: Sequence[str], environments: Sequence[dict[str, str]], grace: float):
        self._grace = grace
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._processes = [
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
            for environment in environments
        ]
        # Threads not before all processes are there: a fork could copy a lock that a thread holds.
        screen = _Screen()
        self._readers = []
        for index, process in enumerate(self._processes):
            assert process.stdout is not None and process.stderr is not None
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                self._readers.append(threading.Thread(target=_read, args=[source, target, index, screen], daemon=True))
                self._readers[-1].start()
            threading.Thread(target=self._watch, args=[index], daemon=True).start()

    def send(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def wait(self) -> tuple[int, bool]:
        """Waits until all have ended, and ends those that remain after one has failed.

        Returns:
            The exit code, and whether it makes sense to start all again.
        """
        running = set(range(len(self._processes)))
        codes: list[int] = []  # of those that were not ended by this program
        ending, grace = False, self._grace
        end_them = kill_them = float("inf")
        while running:
            now = time.monotonic()
            if now >= min(end_them, kill_them):
                if now >= kill_them:
                    tell(f"{_listed(running)} did not end within {grace:g} seconds: killed")
                for index in running:
                    self._processes[index].send_signal(signal.SIGKILL if now >= kill_them else signal.SIGTERM)
                ending = True
                end_them, kill_them = float("inf"), now + grace if now < kill_them else float("inf")
            try:
                index = self._ended.get(timeout=max(0.0, min(1.0, end_them - now, kill_them - now)))
            except queue.Empty:
                continue
            running.discard(index)
            code = self._processes[index].returncode
            if code == 0 or ending:
                continue
            codes.append(code)
            # Who was asked to leave is not alone: the others leave by themselves, as soon as they have saved.
            asked = code in _ASKED
            if code < 0 and not asked:
                grace = min(grace, _GRACE_AFTER_KILL)
            end_them = min(end_them, now + self._grace) if asked else now
            then = f"; {'waiting for' if asked else 'ending'} {_listed(running)}" if running else ""
            tell(f"worker {index} {_said(code)}{then}")
        for reader in self._readers:
            reader.join(timeout=1.0)  # not for ever: a grandchild may hold the pipe open
        failed = [code for code in codes if code != os.EX_TEMPFAIL]
        code = (failed or codes or [0])[0]
        return (code if code >= 0 else 128 - code), code < 0 or code == os.EX_TEMPFAIL

    def _watch(self, index: int) -> None:
        self._processes[index].wait()
        self._ended.put(index)


def _end_with_parent() -> None:
    """In a new process, before the program begins: SIGTERM when the one that started it is gone, however that came about."""
    if _PRCTL is not None:
        _PRCTL(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _listed(workers: set[int]) -> str:
    names = [str(index) for index in sorted(workers)]
    return f"worker {names[0]}" if len(names) == 1 else f"workers {', '.join(names[:-1])} and {names[-1]}"


def _said(code: int) -> str:
    return f"ended with code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"


class _Screen:
    """Where all workers' lines come together, whole; and the line that worker 0 draws again and again, if this is a terminal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._drawn: tuple[TextIO, str] | None = None

    def line(self, target: TextIO, text: str) -> None:
        with self._lock:
            drawn = self._drawn
            self._erase()
            self._write(target, f"{text}\n")
            if drawn is not None:
                self._draw(*drawn)

    def draw(self, target: TextIO, text: str) -> None:
        """Replaces what is drawn."""
        if target.isatty():
            with self._lock:
                self._erase()
                if text:
                    self._draw(target, text[: shutil.get_terminal_size().columns - 1])

    def _draw(self, target: TextIO, text: str) -> None:
        self._drawn = (target, text)
        self._write(target, text)

    def _erase(self) -> None:
        if self._drawn is not None:
            self._write(self._drawn[0], "\r\x1b[K")
            self._drawn = None

    def _write(self, target: TextIO, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: the workers shall not be held up
            target.write(text)
            target.flush()


def _read(source: IO[bytes], target: TextIO, index: int, screen: _Screen) -> None:
    """Passes on what a worker prints, each line with its name in front. Of a line that is drawn again and again the last state counts."""
    name, rest = f"[worker {index}] ", b""
    while data := os.read(source.fileno(), 65536):
        *lines, rest = (rest + data).split(b"\n")
        if index == 0 and (lines or rest):
            screen.draw(target, "")
        for line in lines:
            screen.line(target, name + _last_state(line))
        rest = rest[rest.rfind(b"\r", 0, -1) + 1 :]
        if index == 0 and rest:
            screen.draw(target, name + _last_state(rest))
    if rest:
        screen.line(target, name + _last_state(rest))
    source.close()


def _last_state(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
