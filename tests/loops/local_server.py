"""A web server in this process, for tests of what is sent to one."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time


class LocalServer(http.server.ThreadingHTTPServer):
    """Keeps what is posted to it.

    Attributes:
        root: its URL.
        got: (path, headers, text) of each request.
        status: what it answers with.
        redirects: path -> where it sends whoever posts there.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = f"http://127.0.0.1:{self.server_port}"
        self.got, self.status, self.redirects = [], 200, {}


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.got.append((self.path, dict(self.headers), text))
        self._answer()

    def do_GET(self):
        self.server.got.append((self.path, dict(self.headers), None))
        self._answer()

    def _answer(self):
        to = self.server.redirects.get(self.path)
        self.send_response(self.server.status if to is None else 302)
        if to is not None:
            self.send_header("Location", to)
        self.end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def local_server():
    """Runs a `LocalServer` in a thread."""
    with LocalServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def trickling_server(*, seconds_between_bytes=0.05):
    """A server that answers with a header that never ends, byte by byte; yields its URL."""
    over = threading.Event()

    def serve(listening):
        with contextlib.suppress(OSError):
            while not over.is_set():
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                    while not over.is_set():
                        connection.sendall(b"a")
                        time.sleep(seconds_between_bytes)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            with contextlib.suppress(OSError):  # wakes a thread that waits for a connection
                socket.create_connection(listening.getsockname(), timeout=1).close()
            thread.join()
