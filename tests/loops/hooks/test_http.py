"""A POST takes no longer than its caller said, whatever the server and the network do."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error

import pytest

from loops.hooks import _http
from tests.loops.local_server import local_server, trickling_server


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "post"]


def test_what_is_posted_arrives():
    with local_server() as server:
        _http.post(f"{server.root}/in?a=1", b"hello", {"Content-Type": "text/plain", "X-Run": "7"}, timeout=30)
    ((path, headers, text),) = server.got
    assert (path, headers["Content-Type"], headers["X-Run"], text) == ("/in?a=1", "text/plain", "7", "hello")


def test_a_redirection_is_followed():
    with local_server() as server:
        server.redirects["/old"] = f"{server.root}/new"
        _http.post(f"{server.root}/old", b"hello", {}, timeout=30)
    assert [path for path, _, _ in server.got] == ["/old", "/new"]


def test_an_answer_that_reports_an_error_is_raised():
    with local_server() as server:
        server.status = 503
        with pytest.raises(urllib.error.HTTPError, match="HTTP Error 503"):
            _http.post(server.root, b"hello", {}, timeout=30)


@pytest.mark.parametrize(("url", "error"), [("http://127.0.0.1:9", OSError), ("not a url", ValueError), ("http://[::bad", ValueError)])
def test_a_server_that_is_not_there_is_an_error(url, error):
    with pytest.raises(error):
        _http.post(url, b"hello", {}, timeout=30)


def test_an_answer_that_comes_byte_by_byte_is_waited_for_no_longer_than_the_timeout():
    # Each byte comes well within the timeout of a single read.
    with trickling_server(seconds_between_bytes=0.05) as root:
        begun = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out"):
            _http.post(root, b"hello", {}, timeout=0.5)
        assert 0.4 < time.monotonic() - begun < 10
        for thread in threads():  # the connection was closed under it
            thread.join(10)
        assert not threads()


def test_a_name_that_is_not_found_in_time_is_waited_for_no_longer_than_the_timeout(monkeypatch):
    answer = threading.Event()

    def slow(*args, **kwargs):
        answer.wait(60)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        _http.post("http://server.invalid", b"hello", {}, timeout=0.2)
    assert time.monotonic() - begun < 10
    answer.set()
    for thread in threads():
        thread.join(10)


def test_a_connection_that_is_made_too_late_is_closed(monkeypatch):
    go_on, real = threading.Event(), socket.getaddrinfo

    def slow(*args, **kwargs):
        go_on.wait(60)
        return real(*args, **kwargs)

    with trickling_server() as root:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        with pytest.raises(TimeoutError):
            _http.post(root, b"hello", {}, timeout=0.2)
        go_on.set()
        for thread in threads():
            thread.join(10)
        assert not threads()
        monkeypatch.undo()


def test_no_thread_to_be_had_is_an_error_like_a_server_that_is_not_there(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread"):
        _http.post("http://127.0.0.1:9", b"hello", {}, timeout=1)
