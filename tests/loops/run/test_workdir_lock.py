"""One run at a time in a workdir, and whoever comes second is told who has it."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from loops.errors import WorkdirInUse
from loops.run import workdir_lock
from loops.run.workdir_lock import WorkdirLock

REPOSITORY = pathlib.Path(__file__).parents[3]

# Only the package's own search path: what its __init__ imports would start TensorFlow.
HOLD = """
import importlib.util, os, subprocess, sys, time
sys.modules["loops"] = importlib.util.module_from_spec(importlib.util.find_spec("loops"))
from loops.run.workdir_lock import WorkdirLock
lock = WorkdirLock(sys.argv[1]).acquire()
worker = os.fork() if sys.argv[2] == "with a worker" else -1
if worker != 0:
    print(worker, flush=True)
time.sleep(600)
"""


class Holder:
    """A process that has the workdir."""

    def __init__(self, workdir, how="alone"):
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, str(workdir), how], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        self.worker = int(self.process.stdout.readline())
        self.pid = self.process.pid

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def holder(tmp_path):
    holder = Holder(tmp_path / "run")
    yield holder
    holder.kill()


def test_the_second_process_is_told_who_has_the_workdir_and_since_when(holder, tmp_path):
    with pytest.raises(WorkdirInUse) as error:
        WorkdirLock(tmp_path / "run").acquire()
    said = str(error.value)
    assert f"{str(tmp_path / 'run')!r} is in use by process {holder.pid} on host {socket.gethostname()} since 2" in said
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S*; wait for it, stop it, or give another workdir\.$", said)
    # Having asked does not take it away.
    with pytest.raises(WorkdirInUse):
        WorkdirLock(tmp_path / "run").acquire()


def test_a_killed_process_does_not_have_it_any_more(holder, tmp_path):
    holder.kill()
    with WorkdirLock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()


def test_a_forked_worker_that_outlives_it_does_not_have_it(tmp_path):
    holder = Holder(tmp_path, "with a worker")
    try:
        with pytest.raises(WorkdirInUse, match=f"process {holder.pid} "):
            WorkdirLock(tmp_path).acquire()
        holder.kill()
        os.kill(holder.worker, 0)
        deadline = time.monotonic() + 60  # the worker lets go as soon as it gets to run
        while True:
            try:
                with WorkdirLock(tmp_path):
                    break
            except WorkdirInUse:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        os.kill(holder.worker, signal.SIGKILL)
        holder.kill()


def test_the_same_process_does_not_get_it_twice(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with WorkdirLock(tmp_path) as lock:
        for name in (tmp_path, tmp_path / "link", os.path.relpath(tmp_path)):
            with pytest.raises(WorkdirInUse, match="in use by this very process since"):
                WorkdirLock(name).acquire()
        with pytest.raises(RuntimeError, match="held already"):
            lock.acquire()
        with WorkdirLock(tmp_path / "another"):
            pass
    with WorkdirLock(tmp_path):
        pass


def test_a_lock_that_was_dropped_is_free(tmp_path):
    with pytest.warns(ResourceWarning):
        WorkdirLock(tmp_path).acquire()
    with WorkdirLock(tmp_path):
        pass


def test_a_holder_that_has_not_yet_said_who_it_is(holder, tmp_path):
    (tmp_path / "run" / ".lock").write_text("")
    with pytest.raises(WorkdirInUse, match="in use by another process; wait"):
        WorkdirLock(tmp_path / "run").acquire()


@pytest.mark.parametrize("missing", ["flock", "fcntl"])
def test_where_nothing_can_be_locked_that_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch, missing):
    class Refusing:
        LOCK_EX = LOCK_NB = 0

        @staticmethod
        def flock(*_):
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(workdir_lock, "fcntl", Refusing if missing == "flock" else None)
    said = []
    with WorkdirLock(tmp_path, said.append):
        assert len(said) == 1 and "cannot be locked" in said[0] and "no other process" in said[0]
        with pytest.raises(WorkdirInUse, match="this very process"):
            WorkdirLock(tmp_path).acquire()


def test_a_full_disk_takes_no_lock_away(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with WorkdirLock(tmp_path):
        monkeypatch.undo()
        with pytest.raises(WorkdirInUse):
            WorkdirLock(tmp_path).acquire()


def test_release_is_harmless_when_nothing_is_held_and_survives_a_vanished_folder(tmp_path):
    lock = WorkdirLock(tmp_path / "run")
    lock.release()
    lock.acquire()
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run").rmdir()
    lock.release()
    lock.release()
    with lock:
        assert (tmp_path / "run" / ".lock").exists()
