"""Training is held up by a snapshot no longer than it has to be, and hears of what went wrong."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from loops.snapshots.store import SnapshotStore
from loops.snapshots.writer import SnapshotWriter
from loops.testing import InjectedCrash, crash_at

REPOSITORY = pathlib.Path(__file__).parents[3]
WEIGHTS = {"w": np.arange(5.0)}


@pytest.fixture
def said():
    return []


@pytest.fixture
def writer(tmp_path, said):
    writer = SnapshotWriter(SnapshotStore(tmp_path / "snapshots", keep_last=9), said.append)
    yield writer
    writer.close()


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until the gate is open."""
    gate, fsync = threading.Event(), os.fsync

    def wait(descriptor):
        assert gate.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", wait)
    yield gate
    gate.set()


@pytest.fixture
def full(monkeypatch):
    """Calls of this make the disk full, or not full."""
    write = os.write

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda now: monkeypatch.setattr(os, "write", refuse if now else write)


def submit(writer, step, state=None):
    writer.submit(writer.begin(step), WEIGHTS, state or {"step": step}, {})


def test_submit_returns_while_the_snapshot_is_being_written(writer, gate):
    submit(writer, 1)
    assert writer.store.steps() == [] and writer.saved_step is None
    assert not writer.wait(0.01)
    gate.set()
    assert writer.wait()
    assert writer.saved_step == 1 and writer.store.load(1).state == {"step": 1}


def test_at_most_one_is_in_flight_and_they_are_written_in_turn(writer, gate):
    submit(writer, 1)
    draft = writer.begin(2)
    (draft.files / "iterator").write_text("2")
    opener = threading.Timer(0.05, gate.set)
    opener.start()
    writer.submit(draft, WEIGHTS, {"step": 2}, {})  # returns only when the first is there
    assert writer.store.load(1).state == {"step": 1} and writer.saved_step == 1
    writer.close()
    assert writer.saved_step == 2 and (writer.store.load(2).files / "iterator").read_text() == "2"
    submit(writer, 3)  # a closed writer can be used again
    writer.close()
    assert writer.store.steps() == [1, 2, 3]


def test_what_changes_after_submit_is_not_in_the_snapshot(writer, gate):
    state = {"losses": [1.0]}
    submit(writer, 1, state)
    state["losses"].append(2.0)
    gate.set()
    writer.wait()
    assert writer.store.load(1).state == {"losses": [1.0]}


def test_a_full_disk_is_said_once_and_tried_again(writer, said, full):
    submit(writer, 1)
    writer.wait()
    full(True)
    for step in (2, 3, 4):
        submit(writer, step)
        writer.wait()
        assert f"The snapshot of step {step} could not be saved in" in writer.failure and "No space left on device" in writer.failure
    assert len(said) == 1 and "step 2 " in said[0] and "the last one that was saved is that of step 1." in said[0]
    assert writer.saved_step == 1 and sorted(os.listdir(writer.store.directory)) == ["1"]
    full(False)
    submit(writer, 5)
    writer.wait()
    assert writer.failure is None and writer.saved_step == 5
    assert len(said) == 2 and "can be saved again" in said[1] and "step 5" in said[1]
    full(True)
    submit(writer, 6)
    writer.close()
    assert len(said) == 3 and "step 6 " in said[2]


def test_what_went_wrong_is_reported_in_the_training_thread(tmp_path, full):
    threads = []
    writer = SnapshotWriter(SnapshotStore(tmp_path), lambda _: threads.append(threading.current_thread()))
    full(True)
    submit(writer, 1)
    while writer.failure is None:
        writer.poll()
    assert threads == [threading.main_thread()]


def test_a_vanished_folder_is_said_and_made_again(writer, said):
    submit(writer, 1)
    writer.wait()
    draft = writer.begin(2)
    shutil.rmtree(writer.store.directory)
    writer.submit(draft, WEIGHTS, {}, {})
    writer.wait()
    assert "No such file or directory" in writer.failure and len(said) == 1
    submit(writer, 3)
    writer.wait()
    assert writer.failure is None and writer.store.steps() == [3]


def test_a_folder_that_cannot_be_made_is_a_failure_and_no_error(tmp_path, said):
    (tmp_path / "snapshots").write_text("in the way")
    writer = SnapshotWriter(SnapshotStore(tmp_path / "snapshots"), said.append)
    assert writer.begin(1) is None and writer.begin(2) is None
    assert "The snapshot of step 2 could not be saved" in writer.failure
    assert len(said) == 1 and "none was saved before" in said[0]
    (tmp_path / "snapshots").unlink()
    submit(writer, 3)
    writer.wait()
    assert writer.failure is None and len(said) == 2


def test_what_the_caller_fails_to_write_counts_as_a_failure(writer, said):
    with writer.failing(4):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert "step 4 could not be saved" in writer.failure and "Disk quota exceeded" in said[0]


@pytest.mark.parametrize("method", ["wait", "close", "poll", "begin", "submit"])
def test_any_other_error_is_raised_in_the_training_thread_once(writer, method):
    with crash_at("half_written", how="raise"):
        draft = writer.begin(2)
        submit(writer, 1)
        writer._writing.join(None)
    calls = {"begin": lambda: writer.begin(3), "submit": lambda: writer.submit(draft, WEIGHTS, {}, {})}
    with pytest.raises(InjectedCrash):
        calls.get(method, getattr(writer, method))()
    draft.discard()
    assert writer.failure is None and writer.saved_step is None
    assert os.listdir(writer.store.directory) == []
    submit(writer, 4)
    writer.wait()
    assert writer.saved_step == 4


def test_a_state_that_cannot_be_held_is_refused_at_once(writer):
    with pytest.raises(TypeError, match=r"state\['rate'\] is a float32"):
        submit(writer, 1, {"rate": np.float32(1)})
    assert os.listdir(writer.store.directory) == []


# Only the package's own search path: what its __init__ imports would start TensorFlow.
EXIT = """
import importlib.util, os, sys, time
sys.modules["loops"] = importlib.util.module_from_spec(importlib.util.find_spec("loops"))
import numpy as np
from loops.snapshots import writer as snapshots
from loops.snapshots.store import SnapshotStore

directory, how = sys.argv[1:]
fsync = os.fsync
os.fsync = lambda descriptor: (time.sleep(3600 if how == "hangs" else 0.1), fsync(descriptor))
writer = snapshots.SnapshotWriter(SnapshotStore(directory))
writer.submit(writer.begin(1), {"w": np.arange(5.0)}, {}, {})
if how == "hangs":
    snapshots.EXIT_SECONDS = 0.1
if how == "forks":
    child = os.fork()
    if child == 0:
        assert writer.wait() and writer.saved_step is None
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
if how == "error":
    raise KeyError("an error in training")
"""


@pytest.mark.parametrize(("how", "code", "saved"), [("normal", 0, True), ("error", 1, True), ("forks", 0, True), ("hangs", 0, False)])
def test_an_exit_finishes_the_write_but_does_not_wait_for_ever(tmp_path, how, code, saved):
    done = subprocess.run([sys.executable, "-c", EXIT, str(tmp_path), how], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    store = SnapshotStore(tmp_path)
    assert store.steps() == ([1] if saved else [])
    if saved:
        store.verify(1)
