"""Notify tells once, by function, server or command; whatever goes wrong there, training goes on."""

from __future__ import annotations

import json
import sys
import time
import warnings

import pytest

from loops.hooks import Notify
from tests.loops.hooks.fake_loop import FakeLoop
from tests.loops.local_server import local_server, trickling_server

LOGS = [{"loss": 1.0, "val_loss": value} for value in (0.9, 0.4, 0.3)]


def tell(hook, logs=LOGS, **attributes):
    loop = FakeLoop([hook])
    vars(loop).update(attributes)
    loop.run(logs)
    return loop


def test_a_function_is_told_of_the_threshold_once_and_of_the_end(tmp_path):
    told = []
    tell(Notify(told.append, "val_loss", threshold=0.5), workdir=tmp_path)
    assert told == [
        f"val_loss = 0.4 reached 0.5 at step 2 (epoch 2) in {tmp_path}",
        f"Training finished at step 3 (3 epochs), loss = 1, val_loss = 0.3 in {tmp_path}",
    ]


def test_stagnation_is_told_and_the_end_is_left_out():
    told = []
    tell(Notify(told.append, "loss", patience=2, at_end=False))
    assert told == ["loss = 1 after 2 epochs without improvement on 1 at step 3 (epoch 3)"]


def test_a_run_that_was_stopped_or_failed_says_why():
    told = []
    loop = FakeLoop([hook := Notify(told.append)])
    loop.begin()
    loop.epoch(LOGS[0])
    loop.stop("EarlyStopping: enough")
    loop.end("stopped")
    loop.begin()
    try:
        raise FloatingPointError("loss is\nnan")
    except FloatingPointError:
        loop.end("failed")
    assert told[0].startswith("Training stopped at step 1 (1 epochs)") and told[0].endswith(": EarlyStopping: enough")
    assert told[1].startswith("Training failed at step 1") and told[1].endswith(": loss is nan")
    assert hook.state_dict()["met"] == 0


def test_a_run_that_is_complete_already_tells_nothing():
    told = []
    loop = tell(Notify(told.append, "val_loss", threshold=0.5))
    again = FakeLoop([Notify(told.append, "val_loss", threshold=0.5)])
    again.resume(loop.saved())
    again.end("finished")
    assert len(told) == 2


def test_what_was_told_before_a_snapshot_is_not_told_again():
    told = []
    loop = FakeLoop([Notify(told.append, "val_loss", threshold=0.5, at_end=False)])
    loop.begin()
    loop.epoch(LOGS[1])
    again = FakeLoop([Notify(told.append, "val_loss", threshold=0.5, at_end=False)])
    again.resume(loop.saved())
    again.epoch(LOGS[2])
    assert len(told) == 1


@pytest.fixture
def server():
    with local_server() as running:
        yield running


def test_a_server_gets_json(server):
    tell(Notify(f"{server.root}/hook", "val_loss", threshold=0.5, at_end=False))
    ((path, headers, text),) = server.got
    assert (path, headers["Content-Type"]) == ("/hook", "application/json")
    assert json.loads(text) == {"text": "val_loss = 0.4 reached 0.5 at step 2 (epoch 2)", "step": 2, "epoch": 1}


def test_a_command_gets_the_message_as_its_last_argument(tmp_path):
    file = tmp_path / "told"
    program = f"import sys; open({str(file)!r}, 'a').write(repr(sys.argv[1:]))"
    tell(Notify([sys.executable, "-S", "-c", program, "hello; $HOME"], "val_loss", threshold=0.5, at_end=False))
    assert file.read_text() == repr(["hello; $HOME", "val_loss = 0.4 reached 0.5 at step 2 (epoch 2)"])


def test_whatever_goes_wrong_is_warned_about_once_and_training_goes_on(server):
    def broken(message):
        raise KeyError("not my day")

    server.status = 500
    for listener, said in (
        (broken, "KeyError: 'not my day'"),
        (f"{server.root}/hook", "500"),
        ("http://127.0.0.1:1/", "refused"),
        (["no-such-program-here"], "no-such-program-here"),
        ([sys.executable, "-S", "-c", "raise SystemExit(3)"], "non-zero exit status 3"),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop = tell(Notify(listener, "val_loss", threshold=0.5))
        assert len(loop.history.epoch) == 3
        assert [said in str(w.message) and "training goes on" in str(w.message) for w in caught] == [True]


def test_a_server_that_answers_byte_by_byte_is_not_waited_for():
    with trickling_server() as root:
        begun = time.monotonic()
        with pytest.warns(UserWarning, match="timed out"):
            tell(Notify(root, at_end=True, timeout=0.3))
        assert time.monotonic() - begun < 30


def test_a_command_that_hangs_is_not_waited_for():
    begun = time.monotonic()
    with pytest.warns(UserWarning, match="timed out"):
        tell(Notify([sys.executable, "-S", "-c", "import time; time.sleep(60)"], at_end=True, timeout=0.3))
    assert time.monotonic() - begun < 30
