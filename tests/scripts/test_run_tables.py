"""`runs.py list`, `best`, `compare` and `remove` read what runs left in their workdirs, without TensorFlow."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import subprocess
import sys

import pytest

from loops.run.workdir_lock import WorkdirLock, is_locked
from research import run_tables
from scripts import runs
from tests.scripts.programs import REPOSITORY, called

run = functools.partial(called, runs.program, "runs.py")


def workdir(path, rate, losses, outcome="finished", **loop):
    path.mkdir(parents=True)
    config = {"study": "classification", "optimizer": {"name": "sgd", "learning_rate": rate}, "epochs": len(losses)}
    (path / "config.json").write_text(json.dumps({"loop": {"seed": 0, **loop}, "config": config}))
    lines = ["epoch,val_accuracy,val_loss", *(f"{i},{1 - loss},{loss}" for i, loss in enumerate(losses))]
    (path / "history.csv").write_text("\n".join(lines) + "\n")
    if outcome is not None:
        ended = {"outcome": outcome, "reason": None, "step": 10 * len(losses), "epochs": len(losses), "seconds": 2.0}
        (path / "outcome.json").write_text(json.dumps(ended))
    return path


@pytest.fixture
def folder(tmp_path):
    workdir(tmp_path / "a", 0.1, [0.5, 0.25, 0.375])
    workdir(tmp_path / "deep" / "b", 0.2, [0.5, float("nan"), 0.125], outcome="stopped", seed=3)
    killed = workdir(tmp_path / "c", 0.1, [0.75], outcome=None)
    snapshot = killed / "snapshots" / "10"
    snapshot.mkdir(parents=True)
    info = {"epoch": 0, "epoch_ended": True, "seconds": 0.5}
    (snapshot / "manifest.json").write_text(json.dumps({"step": 10, "info": info}))
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "config.json").write_text(json.dumps({"loop": {"seed": 0}, "config": {}, "parts": ["p"]}))
    workdir(tmp_path / "comparison" / "p", 0.3, [1.0], outcome="failed")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[1, 2]")
    return tmp_path


def listed(*arguments):
    code, out, err = run("list", *arguments, "--format=json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_table_has_what_differs_and_where_the_metric_was_best(folder):
    rows = {row["run"]: row for row in listed(folder)}
    assert list(rows) == ["a", "c", "comparison/p", "deep/b"]
    assert set(rows["a"]) == {"run", "optimizer.learning_rate", "epochs", "seed", "best val_loss", "in epoch", "steps/s", "state", "size"}
    assert [rows["a"][name] for name in ("best val_loss", "in epoch", "epochs", "steps/s", "state")] == [0.25, 2, 3, 15.0, "finished"]
    assert [rows["deep/b"][name] for name in ("best val_loss", "in epoch", "seed", "state")] == [0.125, 3, 3, "stopped"]
    # From the newest snapshot, as nobody wrote how it ended.
    assert [rows["c"][name] for name in ("epochs", "steps/s", "state")] == [1, 20.0, "killed"]
    assert rows["comparison/p"]["state"] == "failed"
    assert rows["a"]["size"] == sum(file.stat().st_size for file in (folder / "a").iterdir())


def test_the_best_comes_first_whichever_way_is_better(folder):
    assert [row["run"] for row in listed(folder, "--sort=val_loss")] == ["deep/b", "a", "c", "comparison/p"]
    assert [row["run"] for row in listed(folder, "--sort=val_accuracy", "--metric=val_accuracy")] == ["deep/b", "a", "c", "comparison/p"]
    assert [row["run"] for row in listed(folder, "--sort=-size")][-1] == min(listed(folder), key=lambda row: row["size"])["run"]
    code, out, _ = run("list", folder, "--format=csv", "--sort=-optimizer.learning_rate")
    assert code == 0 and [row["run"] for row in csv.DictReader(io.StringIO(out))][0] == "comparison/p"
    code, out, _ = run("list", folder)
    assert code == 0 and out.splitlines()[0].split()[0] == "run" and len(out.splitlines()) == 5
    code, out, _ = run("best", folder)
    assert code == 0 and "deep/b: val_loss 0.125 in epoch 3 of 3, the minimum of 4 runs" in out and "optimizer.learning_rate: 0.2" in out


def test_one_that_is_running_is_called_so_and_not_removed(folder):
    with WorkdirLock(folder / "a"):
        assert {row["run"]: row["state"] for row in listed(folder)}["a"] == "running"
        code, out, _ = run("remove", folder / "a", "--yes")
        assert code == 1 and "in use by this very process" in out
    assert (folder / "a").exists() and not is_locked(folder / "a")


def test_a_lock_of_another_process_is_seen_and_a_look_does_not_take_it(folder):
    code = "import sys; from loops.run.workdir_lock import *; l = WorkdirLock(sys.argv[1]).acquire(); print('held', flush=True); input()"
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, types; sys.modules['loops'] = m = types.ModuleType('loops'); m.__path__ = ['loops']; {code}",
            folder / "a",
        ],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert is_locked(folder / "a")
        other.communicate("\n")
    assert not is_locked(folder / "a")
    WorkdirLock(folder / "a").acquire().release()


def test_removal_asks_first(folder, capsys):
    questions = []

    def answer(given):
        return lambda question: questions.append(question) or given

    assert run_tables.remove_runs([str(folder / "a")], yes=False, ask=answer("")) == 1
    assert (folder / "a").exists()
    assert run_tables.remove_runs([str(folder / "comparison")], yes=False, ask=answer("y")) == 0
    assert not (folder / "comparison").exists()
    assert "(1 run, " in questions[1]
    code, out, _ = run("remove", folder / "a", folder / "c", "--yes")
    assert code == 0 and out.count("Removed:") == 2 and sorted(os.listdir(folder)) == ["deep", "other"]


def test_curves_of_several_runs_are_in_one_picture(folder):
    picture = folder / "curves.png"
    code, out, err = run("compare", folder / "a", folder / "deep" / "b", f"--out={picture}")
    assert (code, err) == (0, "") and "optimizer.learning_rate" in out and "study" not in out
    assert picture.read_bytes().startswith(b"\x89PNG")


BAD = {
    "no folder": (("list", "missing"), "There is no folder"),
    "no runs": (("list", "other"), "There are no runs below"),
    "an unknown metric": (("list", ".", "--metric=val_f2"), "No run has logged 'val_f2'; there are val_accuracy, val_loss."),
    "an unknown column": (("list", ".", "--sort=rate"), "There is no column 'rate' to sort by; there are run, "),
    "no workdir": (("compare", "a", "other"), "is no workdir of a run."),
    "nothing to remove": (("remove", "other", "--yes"), "is no workdir of a run, so it is not removed."),
    "one too few": (("compare", "a"), "compare takes A B ...; got a."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_sentence(folder, case, monkeypatch):
    monkeypatch.chdir(folder)
    arguments, sentence = BAD[case]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and sentence in err and "Traceback" not in err
    assert (folder / "other").exists()


def test_a_metric_whose_direction_is_unknown_is_asked_for(folder):
    (folder / "a" / "history.csv").write_text("epoch,score\n0,1.5\n1,2.5\n")
    code, _, err = run("best", folder, "--metric=score")
    assert code == 2 and "give --mode=min or --mode=max" in err
    code, out, _ = run("best", folder, "--metric=score", "--mode=max")
    assert code == 0 and "score 2.5 in epoch 2 of 3" in out
