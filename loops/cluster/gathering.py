"""The workers wait for each other before TensorFlow connects them, because TensorFlow waits in silence, deaf to Ctrl-C, for an hour.

Each worker holds its own port. The chief hears of each of the others who it is and whom it takes for the members of the run, says for whom
it waits, and, when all are there, lets all go on at the same time and frees the ports for TensorFlow. One line of JSON is one message.
"""

from __future__ import annotations

import contextlib
import errno
import json
import selectors
import socket
import time
from typing import Any

from loops.cluster.members import Members
from loops.messages import say

__all__ = ["gather"]

_FIRST_WORD, _CADENCE = 3.0, 10.0  # seconds until a worker says for whom it waits, and until it says so again
_RETRY = 0.25
_CONNECT = 5.0
_SILENCE = 3 * _CADENCE  # the chief speaks more often
_LONGEST_MESSAGE = 1_000_000
_NAMED = 5


def gather(members: Members, join_timeout: float) -> None:
    """Returns when all members are there, on all of them.

    Args:
        members: who they are.
        join_timeout: seconds until it gives up.

    Raises:
        OSError: if the port of this worker is taken.
        TimeoutError: if somebody does not come in time; for all who came.
        ValueError: if two processes take themselves for the same worker, or one has another list of members.
    """
    with _own_port(members) as listener:
        if len(members.addresses) > 1:
            patience = _Patience(join_timeout)
            if members.number == 0:
                _Chief(members, listener, patience).wait()
            else:
                _wait_for_chief(members, patience)


class _Patience:
    """How long to wait still, and when to say for whom."""

    def __init__(self, limit: float):
        self.limit = limit
        self._end = time.monotonic() + limit
        self._next_word = time.monotonic() + _FIRST_WORD

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    @property
    def until_next_word(self) -> float:
        return max(0.0, min(self._next_word - time.monotonic(), self.left))

    def is_time_for_a_word(self) -> bool:
        if time.monotonic() < self._next_word:
            return False
        self._next_word = time.monotonic() + _CADENCE
        return True


def _own_port(members: Members) -> socket.socket:
    address = members.addresses[members.number]
    port = int(address.rpartition(":")[2])
    try:
        return socket.create_server(("", port), backlog=min(len(members.addresses) + 128, 4096))
    except OSError as error:
        reason = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise OSError(
            f"Port {port} of this machine, that of {members.named(members.number)}, {reason}. End that program (an earlier run?), or give "
            "the workers other ports."
        ) from error


class _Lines:
    """Messages over a connection."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self._read = b""

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # who has gone is noticed where it is read from
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]] | None:
        """What came since the last call; None if the connection has ended, or somebody else speaks there."""
        try:
            data = self.connection.recv(65536)
            if not data or len(self._read) > _LONGEST_MESSAGE:
                return None
            *lines, self._read = (self._read + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None


class _Chief:
    def __init__(self, members: Members, listener: socket.socket, patience: _Patience):
        self._members, self._listener, self._patience = members, listener, patience
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, _Lines] = {}
        self._there: dict[int, _Lines] = {}

    def wait(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        try:
            while missing := self._missing():
                if self._patience.left <= 0:
                    late = _names(self._members, missing)
                    raise TimeoutError(
                        f"{late[0].upper()}{late[1:]} did not come within {self._patience.limit:g} seconds, and the run needs all of its "
                        "workers. See why not, then start all of them again."
                    )
                if self._patience.is_time_for_a_word():
                    say(f"Waiting for {_names(self._members, missing)}.")
                    self._send_all(waiting=missing)
                for key, _ in self._selector.select(self._patience.until_next_word):
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        self._read(key.fileobj)
            self._send_all(go=True)
        except (TimeoutError, ValueError) as error:
            self._send_all(refused=str(error), late=isinstance(error, TimeoutError))
            raise
        finally:
            for connection in self._open:
                connection.close()
            self._selector.close()

    def _missing(self) -> list[int]:
        return [number for number in range(1, len(self._members.addresses)) if number not in self._there]

    def _send_all(self, **message: Any) -> None:
        for lines in self._there.values():
            lines.send(**message)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.settimeout(_CONNECT)
            self._open[connection] = _Lines(connection)
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: Any) -> None:
        lines = self._open[connection]
        messages = lines.receive()
        if messages is None:
            self._forget(lines)
            return
        for message in messages:
            if isinstance(message.get("worker"), int) and isinstance(message.get("members"), list):
                self._meet(lines, message["worker"], message["members"])

    def _forget(self, lines: _Lines) -> None:
        self._selector.unregister(lines.connection)
        del self._open[lines.connection]
        lines.connection.close()
        self._there = {number: other for number, other in self._there.items() if other is not lines}

    def _meet(self, lines: _Lines, number: int, members: list[Any]) -> None:
        if members != self._members.addresses:
            sentence = (
                f"The chief was started with the workers {self._members.addresses}, worker {number} with {members}; give all the same list."
            )
            lines.send(refused=sentence, late=False)
            raise ValueError(sentence)
        if number in self._there:
            lines.send(
                refused=f"Worker {number} is there already: two processes were given the index of {self._members.named(number)}.",
                late=False,
            )
        elif number in self._missing():
            self._there[number] = lines


def _wait_for_chief(members: Members, patience: _Patience) -> None:
    host, _, port = members.addresses[0].rpartition(":")
    while True:
        reason, word = "", None
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT) as connection:
                word = _word_of_chief(members, _Lines(connection))
        except socket.gaierror:
            reason = f"; the name {host} is not known here"
        except OSError:
            pass  # nobody is there yet
        if word is not None and word.get("go"):
            return
        if word is not None:
            raise (TimeoutError if word.get("late") else ValueError)(word["refused"])
        if patience.left <= 0:
            raise TimeoutError(
                f"The chief, {members.named(0)}, did not come within {patience.limit:g} seconds{reason}. See why not, then start all "
                "workers again."
            )
        if patience.is_time_for_a_word():
            say(f"Waiting for {members.named(0)}{reason}.")
        time.sleep(_RETRY)


def _word_of_chief(members: Members, lines: _Lines) -> dict[str, Any] | None:
    """What the chief decided, once all are there or it gave up; None if the connection ended before. The chief ends the waiting."""
    lines.send(worker=members.number, members=members.addresses)
    lines.connection.settimeout(_SILENCE)
    while (messages := lines.receive()) is not None:
        for message in messages:
            if "go" in message or "refused" in message:
                return message
            say(f"Waiting for {_names(members, message.get('waiting', []))}.")
    return None


def _names(members: Members, numbers: list[int]) -> str:
    more = len(numbers) - _NAMED
    named = [members.named(number) for number in numbers[:_NAMED]] + ([f"{more} more"] if more > 0 else [])
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
