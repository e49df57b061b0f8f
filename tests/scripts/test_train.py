"""One command trains a model on real data and leaves a workdir that another command evaluates."""

from __future__ import annotations

import csv
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from research import command_line
from scripts import evaluate, train
from tests.scripts.programs import row, run, weights

#: The same command on a small table: where it is not the point what is learnt, or how fast.
TABLE = ["--config.dataset=wine", "--config.hidden=(16,)"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "first"
    return workdir, *run(train, f"--workdir={workdir}", "--config.epochs=3")


def test_the_workdir_holds_what_the_run_left(trained):
    workdir, code, _, _ = trained
    assert code == 0
    for left in ("config.json", "history.csv", "checkpoints/best.weights.h5", "checkpoints/last.weights.h5", "plots/learning_curves.png"):
        assert (workdir / left).is_file(), left
    for tensorboard in ("train", "validation"):
        assert list((workdir / tensorboard).glob("events.out.tfevents.*")), tensorboard
    assert json.loads((workdir / "config.json").read_text())["config"]["optimizer"]["learning_rate"] == 0.01
    with (workdir / "history.csv").open() as file:
        assert [line["epoch"] for line in csv.DictReader(file)] == ["0", "1", "2"]


def test_it_ends_with_a_table_and_where_to_look_next(trained):
    workdir, _, output, _ = trained
    assert re.search(r"^\s+loss\s+accuracy$", output, re.MULTILINE)
    assert row(output, "test")[1] > 0.7
    with (workdir / "history.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    assert row(output, "train") == pytest.approx([float(last["loss"]), float(last["accuracy"])], abs=1e-4)
    assert row(output, "val") == pytest.approx([float(last["val_loss"]), float(last["val_accuracy"])], abs=1e-4)
    assert f"tensorboard --logdir={workdir}" in output
    assert f"scripts/evaluate.py --workdir={workdir}" in output


def test_evaluate_prints_the_same_test_metrics(trained):
    workdir, _, output, _ = trained
    code, evaluated, _ = run(evaluate, f"--workdir={workdir}")
    assert code == 0
    assert row(evaluated, "test") == row(output, "test")


def test_the_best_weights_are_tested_not_the_last(tmp_path, monkeypatch):
    # A learning rate that makes the loss rise again: the first epoch is the best one.
    rates = iter([0.05, 5.0])
    monkeypatch.setattr(loops.hooks.ProgressBar, "on_epoch_begin", lambda self, loop: setattr(loop, "learning_rate", next(rates)))
    code, output, _ = run(train, *TABLE, f"--workdir={tmp_path / 'run'}", "--config.epochs=2", "--compile=eager")
    assert code == 0
    assert "Best val_loss in epoch 1 of 2" in output
    best, last = weights(tmp_path / "run", "best"), weights(tmp_path / "run", "last")
    assert any(not np.array_equal(best[name], last[name]) for name in best)
    assert row(run(evaluate, f"--workdir={tmp_path / 'run'}")[1], "test") == row(output, "test")


def test_two_identical_commands_give_identical_bits(trained, tmp_path):
    run(train, f"--workdir={tmp_path / 'again'}", "--config.epochs=3")
    first, again = weights(trained[0]), weights(tmp_path / "again")
    assert first.keys() == again.keys() and len(first) == 6
    assert all(np.array_equal(first[name], again[name]) for name in first)


@pytest.fixture(scope="module")
def unsaved(tmp_path_factory):
    """The folder that a run without a workdir was started in, and what the program said; its seed is another one."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return folder, *run(train, "--config.epochs=1", "--seed=1")


def test_another_seed_gives_other_numbers(trained, unsaved):
    assert row(unsaved[2], "val") != pytest.approx(first_epoch(trained[0]), abs=1e-3)


def first_epoch(workdir):
    with (workdir / "history.csv").open() as file:
        logs = next(csv.DictReader(file))
    return [float(logs["val_loss"]), float(logs["val_accuracy"])]


def test_a_used_workdir_is_refused_with_one_sentence_if_it_has_to_be_new(trained):
    before = sorted(trained[0].rglob("*"))
    code, output, errors = run(train, f"--workdir={trained[0]}", "--config.epochs=1", "--resume=never")
    assert code == command_line.EXIT_REFUSED
    assert str(trained[0]) in errors and errors.count("\n") == 1
    assert sorted(trained[0].rglob("*")) == before


def test_a_workdir_that_cannot_be_written_is_refused_with_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = run(train, f"--workdir={tmp_path / 'file' / 'run'}", "--config.epochs=1")
    assert code == command_line.EXIT_REFUSED and errors.count("\n") == 1


def test_a_run_of_no_epochs_is_refused():
    code, _, errors = run(train, "--config.epochs=0")
    assert code == command_line.EXIT_REFUSED and "config.epochs is 0" in errors


def test_without_a_workdir_nothing_is_written(unsaved):
    folder, code, output, _ = unsaved
    assert code == 0 and "Nothing was written" in output
    assert list(folder.iterdir()) == []


def test_data_that_cannot_be_had_is_said_before_the_workdir_is_made(tmp_path, monkeypatch):
    def offline():
        raise Exception("no route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", offline)
    code, _, errors = run(train, "--config.dataset=mnist", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}")
    assert code == command_line.EXIT_REFUSED
    assert str(tmp_path / "mnist") in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_every_way_to_run_gives_the_same_numbers():
    ways = ["--compile=graph", "--strategy=mirrored", "--compile=xla", "--compile=eager"]
    arguments = [*TABLE, "--config.epochs=2", "--config.batch_size=200", "--config.optimizer.learning_rate=0.5"]
    found = {}
    for way in ways:
        code, output, _ = run(train, *arguments, way)
        assert code == 0, way
        found[way] = row(output, "val")
    for way, numbers in found.items():
        assert numbers == pytest.approx(found["--compile=graph"], rel=1e-3), way


def test_patience_decides_how_long_a_run_goes_on_without_getting_better(tmp_path, monkeypatch):
    monkeypatch.setattr(
        loops.hooks.ProgressBar, "on_epoch_begin", lambda self, loop: setattr(loop, "learning_rate", 0.05 * 0**loop.progress.epoch)
    )
    for patience, epochs in ((2, 3), (0, 5)):
        code, output, _ = run(train, *TABLE, "--compile=eager", "--config.epochs=5", f"--config.patience={patience}")
        assert code == 0 and f"Best val_loss in epoch 1 of {epochs}" in output


def test_a_run_that_goes_on_without_a_finite_loss_is_reported_as_it_is(tmp_path):
    arguments = ["--config.optimizer.learning_rate=1e30", "--config.on_nonfinite=ignore", "--config.epochs=1", "--compile=eager"]
    code, output, _ = run(train, *TABLE, f"--workdir={tmp_path / 'run'}", *arguments)
    assert code == 0
    assert "No epoch had a finite val_loss" in output and "evaluate.py" not in output and np.isnan(row(output, "test")[0])


def test_a_loss_that_is_not_finite_is_said_with_what_was_kept(tmp_path):
    code, _, errors = run(train, *TABLE, f"--workdir={tmp_path / 'run'}", "--config.optimizer.learning_rate=1e30", "--config.epochs=1")
    assert code == 1
    assert "step" in errors and "history.csv" in errors and "weights" not in errors and "Traceback" not in errors


@pytest.mark.parametrize("written", [None, "no json", "{}", '{"loop": {"seed": 0}, "config": {}}'])
def test_evaluate_refuses_a_folder_that_is_no_run(tmp_path, written):
    if written is not None:
        (tmp_path / "config.json").write_text(written)
    code, _, errors = run(evaluate, f"--workdir={tmp_path}")
    assert code == command_line.EXIT_REFUSED
    assert str(tmp_path) in errors and errors.count("\n") == 1


def test_evaluate_asks_for_a_workdir():
    code, _, errors = run(evaluate)
    assert code == command_line.EXIT_REFUSED and "--workdir" in errors


def test_processes_that_cannot_be_joined_get_a_sentence_and_a_code(monkeypatch):
    tf.constant(1.0)  # as something in the program might, before the processes are joined
    code, out, err = run(train, "--strategy=multi_worker", *TABLE)
    assert code == 2 and out == "" and err.startswith("train.py: TensorFlow has started in this process already")

    def never():
        raise TimeoutError("Worker 1 did not come.")

    monkeypatch.setattr(loops, "multi_worker_strategy", never)
    assert run(train, "--strategy=multi_worker", *TABLE) == (75, "", "Worker 1 did not come.\n")
