"""CSVLogger writes what Keras's callback writes, loses no column and doubles no epoch."""

from __future__ import annotations

import csv

import keras
import numpy as np
import pytest

from loops.hooks import CSVLogger
from tests.hooks.fake_loop import FakeLoop

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
