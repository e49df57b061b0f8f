"""A file is the old one or the new one, never a part, and nothing half-written stays behind."""

from __future__ import annotations

import os
import pathlib
import threading

import pytest

from loops import files


def test_the_new_content_takes_the_place_of_the_old(tmp_path):
    path = tmp_path / "made" / "a.txt"
    files.write_text(path, "old")
    files.write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode() and os.listdir(path.parent) == ["a.txt"]
    files.write_bytes(str(path), b"\0\r\n", sync=True)
    assert path.read_bytes() == b"\0\r\n"


def test_the_temporary_file_is_beside_it_hidden_and_of_the_same_endings(tmp_path):
    names = []

    def write(name):
        names.append(pathlib.Path(name))
        names[0].write_text("x")

    files.write_atomically(tmp_path / "best.weights.h5", write)
    assert names[0].parent == tmp_path and names[0].name.startswith(".") and names[0].name.endswith(".weights.h5")
    assert os.listdir(tmp_path) == ["best.weights.h5"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(name):
        pathlib.Path(name).write_text("half")
        raise error

    with pytest.raises(type(error)):
        files.write_atomically(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_with_sync_the_disk_has_the_content_before_the_name_and_the_name_at_the_end(tmp_path, monkeypatch):
    happened = []
    replace, fsync = os.replace, os.fsync

    def record(what, of):
        def do(*args):
            happened.append(what)
            return of(*args)

        return do

    monkeypatch.setattr(os, "replace", record("replace", replace))
    monkeypatch.setattr(os, "fsync", record("sync", fsync))
    files.write_text(tmp_path / "a", "x")
    assert happened == ["replace"]
    happened.clear()
    files.write_text(tmp_path / "a", "x", sync=True)
    assert happened == ["sync", "replace", "sync"]


def test_of_several_that_write_first_one_succeeds(tmp_path):
    path, begin, ours, theirs = tmp_path / "cache" / "choice.json", threading.Barrier(8), [], []

    def write(i):
        begin.wait()
        (ours if files.write_first(path, str(i) * 10_000) else theirs).append(str(i) * 10_000)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ours == [path.read_text()] and len(theirs) == 7 and os.listdir(path.parent) == ["choice.json"]


@pytest.mark.parametrize("root", ["ram://test_files", ""])
def test_anywhere_is_any_file_system_of_tensorflow(tmp_path, root):
    import tensorflow as tf

    folder = root or str(tmp_path)
    tf.io.gfile.makedirs(folder)
    path = os.path.join(folder, "events.out.tfevents.1")
    files.write_anywhere(path, b"old")
    files.write_anywhere(path, b"\0new")
    with tf.io.gfile.GFile(path, "rb") as file:
        assert file.read() == b"\0new"
    assert [name for name in tf.io.gfile.listdir(folder) if name != "events.out.tfevents.1"] == []


def test_what_cannot_be_put_in_its_place_anywhere_leaves_nothing(tmp_path):
    import tensorflow as tf

    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(tf.errors.OpError):
        files.write_anywhere(str(tmp_path / "folder"), b"x")
    assert os.listdir(tmp_path) == ["folder"]
