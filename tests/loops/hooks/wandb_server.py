"""A stand-in for the server of Weights & Biases, in this process: it keeps what their own client and `wandb sync` send of runs.

Only the requests that they make for runs are answered. Their history is kept as their server does: by the number of its line.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import threading

_WHERE = {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}}


class WandBServer(http.server.ThreadingHTTPServer):
    """Keeps runs.

    Attributes:
        root: its URL.
        histories: run id -> the lines of its history.
        exits: run id -> its exit code, when it has ended.
        configs: run id -> its config.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = f"http://127.0.0.1:{self.server_port}"
        self.histories, self.exits, self.configs = {}, {}, {}

    def points(self):
        """(name, step, value) of the only run."""
        (history,) = self.histories.values()
        return sorted((name, line["_step"], value) for line in history for name, value in line.items() if not name.startswith("_"))


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = self._read()
        if self.path.endswith("/file_stream"):
            self._keep(self.path.split("/")[-2], request)
            return self._answer({})
        name = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
        answer = getattr(self, f"_{name[1]}", None) if name is not None else None
        given = request.get("variables", {})
        if answer is None:
            return self._answer({"data": None, "errors": [{"message": "not here"}]})
        return self._answer({"data": answer(given)})

    def do_PUT(self):
        self._read()
        self._answer({})

    def do_GET(self):
        self._answer({})

    def _UpsertBucket(self, given):  # noqa: N802
        name = given["name"]
        new = name not in self.server.histories
        history = self.server.histories.setdefault(name, [])
        if given.get("config"):
            self.server.configs[name] = {key: entry["value"] for key, entry in json.loads(given["config"]).items()}
        bucket = {"id": "B", "name": name, "displayName": name, "config": "{}", "historyLineCount": len(history), "project": _WHERE}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _RunResumeStatus(self, given):  # noqa: N802
        name, bucket = given["name"], None
        if name in self.server.histories:
            history = self.server.histories[name]
            tail = json.dumps([json.dumps(line) for line in history[-1:]])
            counts = {"historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0}
            texts = {"config": "{}", "summaryMetrics": "{}", "historyTail": tail, "eventsTail": "[]", "wandbConfig": '{"t":1}'}
            bucket = {"id": "B", "name": name, "displayName": name, "tags": [], **counts, **texts}
        return {"model": {**_WHERE, "bucket": bucket}}

    def _Viewer(self, given):  # noqa: N802
        return {"viewer": {"id": "V", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}}

    def _keep(self, run, request):
        lines = (request.get("files") or {}).get("wandb-history.jsonl")
        if lines is not None:
            history, at = self.server.histories.setdefault(run, []), lines["offset"]
            history[at : at + len(lines["content"])] = [json.loads(line) for line in lines["content"]]
        if request.get("complete"):
            self.server.exits[run] = request["exitcode"]

    def _read(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        with contextlib.suppress(ValueError):
            return json.loads(content)
        return {}

    def _answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def wandb_server():
    """Runs a `WandBServer` in a thread."""
    with WandBServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
