"""CSVLogger writes what Keras's callback writes, loses no column and doubles no epoch."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest

from loops.hooks import CSVLogger, Evaluate
from tests.loops.hooks.fake_loop import FakeLoop

LOGS = [
    {"loss": 0.1 + 0.2, "accuracy": 1.0, "val_loss": float(np.float32(1e-8)), "val_accuracy": 0.5, "learning_rate": 0.009999999776482582},
    {"loss": float("nan"), "accuracy": 0.0, "val_loss": float("inf"), "val_accuracy": 123456789.125, "learning_rate": 1e22},
    {"loss": 1.0, "accuracy": 2.0, "learning_rate": 0.5},
]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def epochs_of(path):
    return [int(row["epoch"]) for row in rows_of(path)]


def continue_at(epoch, hook, count, step=0):
    loop = FakeLoop([hook])
    loop.progress.epoch, loop.progress.step = epoch, step
    loop.run([{"loss": float(epoch)}] * count)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_file_is_the_one_keras_writes(tmp_path, separator):
    vectors = [{**logs, "f1": np.array([0.5, i], "float32")} for i, logs in enumerate(LOGS)]
    FakeLoop([CSVLogger(tmp_path / "ours.csv", separator)]).run(vectors)
    callback = keras.callbacks.CSVLogger(tmp_path / "theirs.csv", separator)
    callback.on_train_begin()
    for epoch, logs in enumerate(vectors):
        callback.on_epoch_end(epoch, logs)
    callback.on_train_end()
    assert (tmp_path / "ours.csv").read_bytes() == (tmp_path / "theirs.csv").read_bytes()


def test_a_log_that_appears_later_gets_a_column(tmp_path):
    path = tmp_path / "log.csv"
    FakeLoop([CSVLogger(path)]).run([{"loss": 1.0}, {"loss": 2.0, "val_loss": 3.0}, {"loss": 4.0}, {"loss": 5.0, "extra": 6.0}])
    assert path.read_text().split() == [
        "epoch,loss,val_loss,extra",
        "0,1.0,NA,NA",
        "1,2.0,3.0,NA",
        "2,4.0,NA,NA",
        "3,5.0,NA,6.0",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_every_row_is_on_the_disk_when_its_epoch_has_ended(tmp_path):
    loop = FakeLoop([CSVLogger(tmp_path / "new" / "log.csv")])
    loop.begin()
    for epoch in range(3):
        loop.epoch({"loss": 1.0})
        assert epochs_of(tmp_path / "new" / "log.csv") == list(range(epoch + 1))
    loop.end("interrupted")


def test_a_run_that_goes_on_does_not_double_the_epochs_that_it_does_again(tmp_path):
    path = tmp_path / "log.csv"
    continue_at(0, CSVLogger(path), 4)
    continue_at(2, CSVLogger(path, append=True), 3)
    assert epochs_of(path) == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in rows_of(path)] == ["0.0", "0.0", "2.0", "2.0", "2.0"]


def test_a_restarted_run_keeps_its_rows_even_without_append(tmp_path):
    path = tmp_path / "log.csv"
    continue_at(0, CSVLogger(path), 3)
    continue_at(3, CSVLogger(path), 1, step=3)
    assert epochs_of(path) == [0, 1, 2, 3]


def test_another_run_of_the_same_loop_goes_on_in_the_file(tmp_path):
    loop = FakeLoop([CSVLogger(tmp_path / "log.csv")])
    loop.run([{"loss": 1.0}] * 2)
    loop.run([{"loss": 1.0}] * 2)
    assert epochs_of(tmp_path / "log.csv") == [0, 1, 2, 3]


def test_a_new_run_adds_its_rows_below_with_append_and_writes_anew_without(tmp_path):
    path = tmp_path / "log.csv"
    hook = CSVLogger(path, append=True)
    continue_at(0, hook, 2)
    continue_at(0, hook, 2)
    assert epochs_of(path) == [0, 1, 0, 1]
    assert path.read_text().count("epoch") == 1
    continue_at(2, CSVLogger(path, append=True), 1)
    assert epochs_of(path) == [0, 1, 0, 1, 2]
    continue_at(0, CSVLogger(path), 1)
    assert epochs_of(path) == [0]


def test_columns_of_an_existing_file_keep_their_places(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,val_loss,loss\r\n0,1.0,2.0\r\n")
    loop = FakeLoop([CSVLogger(path, append=True)])
    loop.progress.epoch = 1
    loop.run([{"loss": 3.0, "accuracy": 5.0, "val_loss": 4.0}])
    assert path.read_text().split() == ["epoch,val_loss,loss,accuracy", "0,1.0,2.0,NA", "1,4.0,3.0,5.0"]


def test_a_row_that_a_crash_cut_short_is_written_again(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"epoch,loss\r\n0,1.0\r\n1")
    continue_at(1, CSVLogger(path, append=True), 1)
    assert path.read_bytes() == b"epoch,loss\r\n0,1.0\r\n1,1.0\r\n"


def test_an_empty_file_gets_its_header(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("")
    continue_at(0, CSVLogger(path, append=True), 1)
    assert path.read_bytes() == b"epoch,loss\r\n0,0.0\r\n"


STEPS = 3
LATE = [{"loss": 0.5}, {"loss": 0.25, "val_loss": 1.0}, {"loss": 0.125}, {"loss": 1.5, "val_loss": 2.0, "extra": 1e-9}, {"loss": 2.0}]
EVERY_OTHER = [{"loss": float(i), **({"val_loss": i / 7} if i % 2 else {})} for i in range(5)]
VECTORS = [{"loss": float(i), "f1": np.array([0.5, i], "float32")} for i in range(5)]
FOREIGN = b'note,epoch,loss\n"a, b",0,9.0\nc,1,8.0\nd,2,7.0\n'
TORN = {"nothing": b"", "a row": b"9", "half a number": b"7,0.2", "an open quote": b'7,"""[0.5,', "no end of line": b"7,0.25,1.0"}


def new_loop(path, **options):
    return FakeLoop([CSVLogger(path, **options), Evaluate(1.5, "test", every="5 steps")], steps=STEPS)


def go_on(loop, epochs, end):
    while loop.progress.step < end:
        epoch = loop.progress.step // STEPS
        loop.epoch(epochs[epoch], until=min(STEPS, end - epoch * STEPS))


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("epochs", [LATE, EVERY_OTHER, VECTORS], ids=["late columns", "validation every other epoch", "vectors"])
def test_a_resumed_run_leaves_the_bytes_of_the_undisturbed_one(tmp_path, epochs, append, torn):
    whole = tmp_path / "whole.csv"
    if append:
        whole.write_bytes(FOREIGN)
    loop = new_loop(whole, append=append)
    loop.begin()
    go_on(loop, epochs, 15)
    loop.end("finished")
    assert (b"a, b" in whole.read_bytes()) == append
    for cut in range(1, 16):
        path = tmp_path / f"{cut}.csv"
        if append:
            path.write_bytes(FOREIGN)
        first = new_loop(path, append=append)
        first.begin()
        go_on(first, epochs, cut)
        saved = first.saved()
        go_on(first, epochs, min(15, cut + 5))  # rows, and columns, of a future that is lost
        first.end("interrupted")
        path.write_bytes(path.read_bytes() + torn)
        second = new_loop(path, append=append)
        second.resume(saved)
        go_on(second, epochs, 15)
        second.end("finished")
        assert path.read_bytes() == whole.read_bytes(), cut
    assert not list(tmp_path.glob(".*"))


def test_a_finished_run_that_is_called_again_leaves_the_file_as_it_is(tmp_path):
    loop = new_loop(tmp_path / "log.csv")
    loop.begin()
    go_on(loop, LATE, 15)
    saved, before = loop.saved(), (tmp_path / "log.csv").read_bytes()
    loop.end("finished")
    again = new_loop(tmp_path / "log.csv")
    again.resume(saved)
    again.end("finished")
    assert (tmp_path / "log.csv").read_bytes() == before


def test_a_file_that_lost_rows_meanwhile_is_said_and_goes_on(tmp_path):
    path = tmp_path / "log.csv"
    loop = new_loop(path)
    loop.begin()
    go_on(loop, LATE, 9)
    saved = loop.saved()
    loop.end("interrupted")
    for rows, expected in ((1, [0, 3, 4]), (0, [3, 4])):
        if rows:
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: rows + 1]))
        else:
            path.unlink()
        again = new_loop(path)
        with pytest.warns(UserWarning, match=f"log.csv has {rows} of the 3 rows that this run had written"):
            again.resume(saved)
        go_on(again, LATE, 15)
        again.end("finished")
        assert epochs_of(path) == expected


def test_a_run_that_fails_to_begin_leaves_the_old_file(tmp_path):
    path = tmp_path / "log.csv"
    continue_at(0, CSVLogger(path), 2)
    loop = FakeLoop([CSVLogger(path)])
    loop.begin()
    loop.end("failed")
    assert epochs_of(path) == [0, 1]


def test_a_file_without_a_column_of_epochs_gets_one(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("loss\r\n9.0\r\n")
    continue_at(0, CSVLogger(path, append=True), 1)
    assert path.read_bytes() == b"loss,epoch\r\n9.0,NA\r\n0.0,0\r\n"


def test_a_column_of_a_future_that_did_not_happen_goes(tmp_path):
    path = tmp_path / "log.csv"
    loop = new_loop(path)
    loop.begin()
    go_on(loop, [{"loss": 1.0}, {"loss": 2.0, "spike": 9.0}], 3)
    saved, before = loop.saved(), path.read_bytes()
    go_on(loop, [{"loss": 1.0}, {"loss": 2.0, "spike": 9.0}], 6)
    loop.end("interrupted")
    assert b"spike" in path.read_bytes()
    again = new_loop(path)
    again.resume(saved)
    again.end("interrupted")
    assert path.read_bytes() == before
