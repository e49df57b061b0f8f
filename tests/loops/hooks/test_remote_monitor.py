"""RemoteMonitor sends what Keras's callback sends; a server that is slow, wrong or absent never stops training."""

from __future__ import annotations

import json
import math
import socket
import time
import urllib.parse
import warnings

import numpy as np
import pytest

from loops.hooks import RemoteMonitor
from tests.loops.hooks.fake_loop import FakeLoop
from tests.loops.local_server import local_server, trickling_server


@pytest.fixture
def server():
    with local_server() as running:
        yield running


LOGS = [{"loss": 0.5, "f1_score": np.array([[0.25, 1.0]], "float32")}, {"loss": np.float32(2.0), "f1_score": np.zeros([1, 2])}]
EVENTS = [{"epoch": 0, "loss": 0.5, "f1_score": [[0.25, 1.0]]}, {"epoch": 1, "loss": 2.0, "f1_score": [[0.0, 0.0]]}]


def test_events_arrive_as_a_form_and_arrays_as_lists(server):
    FakeLoop([RemoteMonitor(server.root, field="event")]).run(LOGS)
    assert [path for path, _, _ in server.got] == ["/publish/epoch/end/"] * 2
    assert [json.loads(urllib.parse.parse_qs(body)["event"][0]) for _, _, body in server.got] == EVENTS
    assert server.got[0][1]["Content-Type"] == "application/x-www-form-urlencoded"


def test_events_arrive_as_json_with_further_headers(server):
    FakeLoop([RemoteMonitor(server.root, "/in", headers={"X-Run": "7"}, send_as_json=True)]).run(LOGS)
    path, headers, body = server.got[1]
    assert (path, headers["X-Run"], headers["Content-Type"], json.loads(body)) == ("/in", "7", "application/json", EVENTS[1])


def test_a_bad_status_is_noticed_once_and_training_goes_on(server):
    server.status = 503
    with pytest.warns(UserWarning, match=r"could not send to http://127.0.0.1:\d+/publish/epoch/end/ \(HTTP Error 503") as caught:
        history = FakeLoop([RemoteMonitor(server.root)]).run([{"loss": 1.0}] * 3)
    assert len(caught) == 1 and len(server.got) == 3 and history.epoch == [0, 1, 2]


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hook = RemoteMonitor(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
        begin = time.monotonic()
        with pytest.warns(UserWarning, match="timed out"):
            FakeLoop([hook]).run([{"loss": 1.0}])
        assert time.monotonic() - begin < 30
    assert RemoteMonitor().timeout == 5.0


def test_nor_is_one_that_answers_byte_by_byte():
    with trickling_server() as root:
        begin = time.monotonic()
        with pytest.warns(UserWarning, match="timed out"):
            FakeLoop([RemoteMonitor(root, timeout=0.3)]).run([{"loss": 1.0}])
        assert time.monotonic() - begin < 30


@pytest.mark.parametrize("root", ["http://127.0.0.1:9", "not a url", "http://[::bad"])
def test_a_server_that_is_not_there_is_one_warning(root):
    with pytest.warns(UserWarning, match="RemoteMonitor could not send") as caught:
        FakeLoop([RemoteMonitor(root, timeout=1.0)]).run([{"loss": 1.0}] * 2)
    assert len(caught) == 1


def test_numbers_that_json_does_not_know_are_sent_as_null(server):
    logs = {"loss": math.nan, "peak": np.float32(np.inf), "f1": np.array([[0.5, np.nan]])}
    FakeLoop([RemoteMonitor(server.root, send_as_json=True)]).run([logs])
    ((_, _, body),) = server.got

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    assert json.loads(body, parse_constant=refuse) == {"epoch": 0, "loss": None, "peak": None, "f1": [[0.5, None]]}


def test_a_warning_is_not_repeated_in_the_next_process():
    loop = FakeLoop([RemoteMonitor("http://127.0.0.1:9", timeout=1.0)])
    loop.begin()
    with pytest.warns(UserWarning, match="could not send"):
        loop.epoch({"loss": 1.0})
    again = FakeLoop([RemoteMonitor("http://127.0.0.1:9", timeout=1.0)])
    again.resume(loop.saved())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.epoch({"loss": 1.0})
