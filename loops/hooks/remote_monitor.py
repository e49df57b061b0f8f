"""Sends the logs of every epoch to a web server. A failure to send them does not end training."""

from __future__ import annotations

import json
import math
import urllib.parse
import warnings
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

import numpy as np

from loops.hooks import _http
from loops.hooks.base import Hook, Loop, Phase

__all__ = ["RemoteMonitor"]


class RemoteMonitor(Hook):
    """POSTs {"epoch": 0-based epoch, and the logs} to `root + path` at the end of every epoch.

    Differences from Keras's callback of that name: it waits at most `timeout` seconds; it warns once of a timeout, or of an answer that
    reports an error; it sends arrays as lists, NaN and infinity as null (JSON has no numbers for them); it needs no further library. Epochs
    that a resumed run does again are sent again.

    Args:
        root: URL of the server.
        path: path of the events below it.
        field: name of the form field with the JSON text; not used with `send_as_json`.
        headers: further HTTP headers.
        send_as_json: whether to send "application/json" instead of a form.
        timeout: seconds to wait for the server.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.RemoteMonitor("http://localhost:9000", send_as_json=True)
    """

    phase = Phase.RECORD
    every = None

    def __init__(
        self,
        root: str = "http://localhost:9000",
        path: str = "/publish/epoch/end/",
        field: str = "data",
        headers: Mapping[str, str] | None = None,
        send_as_json: bool = False,
        *,
        timeout: float = 5.0,
    ):
        self.root = root
        self.path = path
        self.field = field
        self.headers = dict(headers or {})
        self.send_as_json = send_as_json
        self.timeout = timeout
        self._warned = False

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        values = {name: _finite(np.asarray(value).tolist()) for name, value in logs.items()}
        text = json.dumps({"epoch": loop.progress.epoch, **values}, allow_nan=False)
        if self.send_as_json:
            body, kind = text, "application/json"
        else:
            body, kind = urllib.parse.urlencode({self.field: text}), "application/x-www-form-urlencoded"
        try:
            # An invalid URL raises ValueError; a URLError, a bad status and a timeout are OSErrors.
            _http.post(self.root + self.path, body.encode(), {"Content-Type": kind, **self.headers}, timeout=self.timeout)
        except (OSError, ValueError, HTTPException) as error:
            if not self._warned:
                warnings.warn(f"RemoteMonitor could not send to {self.root}{self.path} ({error}); training goes on.", stacklevel=2)
            self._warned = True

    def state_dict(self) -> dict[str, Any]:
        return {"warned": self._warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._warned = state["warned"]


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
