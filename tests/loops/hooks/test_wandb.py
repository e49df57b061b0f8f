"""W&B gets every point once, and its run goes on, wherever the process was killed: offline, read back by `wandb sync`, and online."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import loops
from loops import hooks
from loops.hooks import _wandb_files
from loops.hooks import wandb as our_module
from tests.loops.hooks import tracked_runs
from tests.loops.hooks.tracked_runs import EPOCHS, KILLS
from tests.loops.hooks.wandb_server import wandb_server

wandb = pytest.importorskip("wandb", reason='needs pip install "tapeloops[wandb]"')

# Files are written at once; by default, every 15 seconds.
QUICK = {"x_transaction_log_flush_interval": 0.05, "x_disable_stats": True, "silent": True}


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    for name in ("WANDB_DIR", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch):
    with wandb_server() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.root)
        wandb.teardown()  # W&B reads the environment once in a process
        yield running
        wandb.teardown()


def offline(**arguments):
    return hooks.WandB("p", every="2 steps", mode="offline", settings=QUICK, **arguments)


def files(workdir):
    return sorted((workdir / "wandb").glob("offline-run-*/*.wandb"))


def records(workdir):
    from wandb.proto import wandb_internal_pb2

    contents = [content for path in files(workdir) for content, _ in _wandb_files.records(path.read_bytes())]
    return [wandb_internal_pb2.Record.FromString(content) for content in contents]


def synced(workdir):
    """The points after `wandb sync` of all folders of a run."""
    with wandb_server() as server:
        folders = [str(path.parent) for path in files(workdir)]
        program = [sys.executable, "-c", "from wandb.cli.cli import cli; cli()", "sync", "--yes", *folders]
        environment = {**os.environ, "WANDB_BASE_URL": server.root}
        shown = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)
        assert shown.returncode == 0 and "ERROR" not in shown.stderr, shown.stderr
        return server.points()


def test_a_run_with_all_that_belongs_to_it(tmp_path, server):
    hook = hooks.WandB("p", every="2 steps", settings=QUICK)
    draw = hooks.LambdaHook(on_epoch_end=lambda loop, logs: hook.image("a/picture", np.eye(4), loop.progress.step))
    loop = tracked_runs.make(tmp_path / "run", hook, draw)
    loop.run(epochs=EPOCHS)
    found = server.points()
    pictures = [(step, value["_type"]) for name, step, value in found if name == "a/picture"]
    assert pictures == [(6, "image-file"), (12, "image-file"), (18, "image-file")]
    scalars = [point for point in found if point[0] == "batch/loss" or not point[0].startswith(("batch/", "learning_rate", "a/"))]
    wanted = tracked_runs.expected(loop)
    assert [point[:2] for point in scalars] == [point[:2] for point in wanted]
    np.testing.assert_allclose([point[2] for point in scalars], [point[2] for point in wanted], rtol=1e-6)
    ((run, config),) = server.configs.items()
    config.pop("_wandb")
    assert config == {"epochs": 3, "optimizer": {"name": "adam", "learning_rate": 0.5}, "hidden": [5], "clip": None}
    assert server.exits == {run: 0}


def test_offline_files_hold_config_summary_weights_and_outcome(tmp_path):
    tracked_runs.make(tmp_path / "run", offline()).run(epochs=1)
    found = records(tmp_path / "run")
    artifacts = [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    assert [artifact.type for artifact in artifacts] == ["model"]
    summary = {item.key: item.value_json for record in found for item in record.summary.update}
    assert summary["outcome"] == '"finished"' and summary["reason"] == '""'
    assert [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"] == [0]


def test_killed_anywhere_offline_the_same_run_goes_on_and_has_each_point_once(tmp_path, monkeypatch):
    workdir, hook = tmp_path / "run", offline()
    lock = tracked_runs.talking(monkeypatch, our_module._Run)
    loop = tracked_runs.make(workdir, hook)
    with tracked_runs.KillPoints(workdir, hook, lock, settle=lambda: time.sleep(0.5)) as copies:
        loop.run(epochs=EPOCHS)
    wanted, held = synced(workdir), []
    assert len({point[:2] for point in wanted}) == len(wanted) > 50
    for name, count, _ in KILLS:
        copies.restore((name, count))
        held.append(max((_wandb_files.last_step(path) for path in files(workdir)), default=-1))
        tracked_runs.make(workdir, offline()).run(epochs=EPOCHS)
        assert synced(workdir) == wanted, (name, count)
    assert len(set(held)) > 3, "the kills left W&B with the same points"


def test_killed_anywhere_online_the_same_run_goes_on_and_has_each_point_once(tmp_path, server, monkeypatch):
    workdir = tmp_path / "run"

    def make():
        hook = hooks.WandB("p", every="2 steps", settings=QUICK)
        return tracked_runs.make(workdir, hook), hook

    lock = tracked_runs.talking(monkeypatch, our_module._Run)
    loop, hook = make()
    with tracked_runs.KillPoints(workdir, hook, lock) as copies:
        loop.run(epochs=EPOCHS)
    wanted = server.points()
    ((run, history),) = server.histories.items()
    history = list(history)
    for i, (name, count, _) in enumerate(KILLS):
        copies.restore((name, count))
        # What the server has got by then is not known: any beginning of the history, also one behind the snapshot.
        ended = json.loads((workdir / "trackers" / "WandB" / "run.json").read_text())["ended"]
        server.histories = {run: history[: len(history) * i // len(KILLS)] if ended is None else list(history)}
        make()[0].run(epochs=EPOCHS)
        assert server.points() == wanted, (name, count)


SCRIPT = """
import pathlib, sys
from loops import hooks, testing
from tests.loops.hooks import test_wandb, tracked_runs
with testing.crash_at(*eval(sys.argv[2])):
    tracked_runs.make(pathlib.Path(sys.argv[1]), test_wandb.offline()).run(epochs=tracked_runs.EPOCHS)
"""


def test_a_process_that_is_really_killed_loses_nothing(tmp_path):
    undisturbed, workdir = tmp_path / "whole" / "run", tmp_path / "run"
    tracked_runs.make(undisturbed, offline()).run(epochs=EPOCHS)
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(loops.__file__).parents[1])}
    environment.pop("WANDB_SERVICE", None)  # the process of W&B that belongs to this one
    killed = subprocess.run([sys.executable, "-c", SCRIPT, str(workdir), "('step', 14)"], env=environment, capture_output=True, timeout=240)
    assert killed.returncode == -9, killed.stderr
    time.sleep(0.5)  # W&B's own process ends after ours
    tracked_runs.make(workdir, offline()).run(epochs=EPOCHS)
    assert synced(workdir) == synced(undisturbed)


def test_a_file_that_ends_anywhere_is_read_and_made_whole(tmp_path):
    tracked_runs.make(tmp_path / "run", offline()).run(epochs=1)
    (path,) = files(tmp_path / "run")
    whole = path.read_bytes()
    ends = [end for _, end in _wandb_files.records(whole)]
    for length in range(8, len(whole), 97):
        folder = tmp_path / "cut"
        folder.mkdir()
        (folder / "a.wandb").write_bytes(whole[:length])
        before = [end for end in ends if end <= length]
        assert _wandb_files.made_whole(folder / "a.wandb") == bool(before)
        assert folder.exists() == bool(before)
        if before:
            assert (folder / "a.wandb").read_bytes() == whole[: before[-1]]
        shutil.rmtree(folder, ignore_errors=True)


def test_several_runs_of_a_loop_and_an_evaluation_after_them(tmp_path):
    hook = hooks.WandB("p", mode="offline", settings=QUICK, dir=str(tmp_path))
    loop = tracked_runs.make(None, hook)
    loop.run(epochs=1)
    loop.run(epochs=2)
    logs = loop.evaluate(loop.evaluations["val"], "test")
    (tmp_path / "a.txt").write_text("a")
    hook.add_files(loop, tmp_path / "a.txt")
    found = records(tmp_path)
    history = [record.history for record in found if record.WhichOneof("record_type") == "history"]
    steps = [line.step.num for line in history if any("val_loss" in (item.key, *item.nested_key) for item in line.item)]
    assert steps == [6, 12]
    summary = {item.key: item.value_json for record in found for item in record.summary.update}
    assert float(summary["test_loss"]) == pytest.approx(logs["test_loss"])
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/a.txt"))) == 1


def test_fit_takes_it_as_a_callback(tmp_path):
    model = tracked_runs.tiny.Classifier().model
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = tracked_runs.tiny.data(32)
    history = loops.fit(model, x, y, epochs=2, verbose=0, callbacks=[offline(dir=str(tmp_path))])
    lines = [record.history for record in records(tmp_path) if record.WhichOneof("record_type") == "history"]
    values = [float(item.value_json) for line in lines for item in line.item if "loss" in (item.key, *item.nested_key)]
    assert values == history.history["loss"]


def test_how_training_ended_is_the_state_of_the_run(tmp_path, server):
    fail = hooks.LambdaHook(on_epoch_end=lambda loop, logs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracked_runs.make(tmp_path / "run", hooks.WandB("p", settings=QUICK), fail).run(epochs=1)
    assert list(server.exits.values()) == [1]


def test_a_tracker_that_fails_is_said_once_and_what_it_missed_comes_later(tmp_path, monkeypatch):
    workdir, hook = tmp_path / "run", offline()
    with (
        tracked_runs.failing(monkeypatch, wandb, "init"),
        pytest.warns(UserWarning, match=r"WandB could not .*OSError: nobody is there") as caught,
    ):
        loop = tracked_runs.make(workdir, hook)
        loop.run(epochs=1)
    assert loop.outcome == "finished" and len([w for w in caught if "WandB" in str(w.message)]) == 1
    tracked_runs.make(workdir, offline()).run(epochs=EPOCHS)
    assert [step for name, step, _ in synced(workdir) if name == "val_loss"] == [6, 12, 18]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"project": 3}, r"WandB\(project=...\) takes the name of a project, or None; got 3"),
        ({"mode": "on"}, "WandB.mode=....* takes 'online', 'offline', 'disabled' or None; got 'on'"),
        ({"id": "a"}, "WandB gives wandb.init the argument 'id' itself"),
        ({"colour": "red"}, "WandB passes further arguments to wandb.init, which has no 'colour'"),
        ({"timeout": -1}, "seconds, more than 0; got -1"),
        ({"every": "often"}, "often"),
    ],
)
def test_wrong_arguments_get_a_sentence(arguments, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        hooks.WandB(**arguments)
