"""Sends something to a web server, within a time limit that holds for the whole exchange.

The timeout of `urllib` bounds each wait by itself, so a server that sends a byte now and then, or a name server that does not answer, could
hold its caller for any length of time. Here a thread does the exchange and the caller waits no longer than it said.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import queue
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

__all__ = ["post"]


def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> None:
    """Sends a POST request and waits for the server's answer, whose content is not read.

    Args:
        url: "http://..." or "https://...".
        body: what to send.
        headers: HTTP headers.
        timeout: seconds for all of it: finding the server, connecting, sending, and receiving the answer.

    Raises:
        TimeoutError: if it takes longer; it is an OSError.
        OSError: if the server cannot be reached, or answers with an error (`urllib.error.HTTPError`).
        http.client.HTTPException: if the answer is not HTTP.
        ValueError: if the URL is none.
    """
    request = urllib.request.Request(url, body, dict(headers), method="POST")
    connections = _Connections()
    outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def exchange() -> None:
        _here.connections = connections
        try:
            with _opener().open(request, timeout=timeout):
                pass
        except BaseException as error:
            outcome.put(error)
        else:
            outcome.put(None)

    try:
        threading.Thread(target=exchange, name="post", daemon=True).start()
    except RuntimeError as error:  # no more threads, or the interpreter is about to end
        raise OSError(str(error)) from error
    try:
        failure = outcome.get(timeout=timeout)
    except queue.Empty:
        connections.end()
        raise TimeoutError("timed out") from None
    if failure is not None:
        if isinstance(failure, urllib.error.HTTPError):
            failure.close()
        raise failure


class _Connections:
    """The sockets of an exchange, so that it can be ended from outside: its thread does not outlive the time limit for long."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._over = False

    def add(self, connection: socket.socket) -> None:
        self._sockets.append(connection)
        if self._over:
            self.end()

    def end(self) -> None:
        self._over = True
        for connection in list(self._sockets):
            # Not the method of an SSLSocket, which changes what the other thread reads from.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


_here = threading.local()  # `connections` of the exchange that the thread does


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _here.connections.add(self.sock)


class _SecureConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _here.connections.add(self.sock)


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, request)


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Handler, _SecureHandler)
