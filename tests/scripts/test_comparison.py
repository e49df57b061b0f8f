"""A comparison from the command line: killed in one of its parts it goes on in that part; any part can be evaluated by itself."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from research import command_line, deep_mlp
from scripts import evaluate, train
from tests.scripts.test_train import row, run, weights

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ["--config=deep_mlp", "--config.depth=1", "--config.units=6", "--config.epochs=2", "--config.histogram_freq=0", "--compile=graph"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, *run(train, *SMALL, f"--workdir={workdir}")


def test_killed_in_its_second_part_the_same_command_ends_as_if_nothing_had_been(whole, tmp_path):
    killed = tmp_path / "killed"
    command = [sys.executable, "scripts/train.py", *SMALL, f"--workdir={killed}"]
    # Two epochs are two evaluations: the fourth is in the second epoch of the second part.
    environment = {**os.environ, "TAPELOOPS_CRASH_AT": "evaluation:4,kill"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    first, second, third = deep_mlp.VARIANTS[:3]
    assert (killed / second / "snapshots").exists() and not (killed / third).exists()
    trained = (killed / first / "history.csv").read_bytes()

    code, output, _ = run(train, *SMALL, f"--workdir={killed}", "--resume=must")
    assert code == 0 and output.count("The run is complete") == 1
    assert (killed / first / "history.csv").read_bytes() == trained
    for name in deep_mlp.VARIANTS:
        assert (killed / name / "history.csv").read_bytes() == (whole[0] / name / "history.csv").read_bytes()
        for which in ("best", "last"):
            expected, found = weights(whole[0] / name, which), weights(killed / name, which)
            assert expected.keys() == found.keys() and all((expected[key] == found[key]).all() for key in expected)
    assert output.rpartition("gradient at step")[2].splitlines()[1:6] == whole[2].rpartition("gradient at step")[2].splitlines()[1:6]


def test_a_part_or_all_of_them_can_be_evaluated_again(whole):
    workdir, code, output, _ = whole
    assert code == 0
    code, evaluated, _ = run(evaluate, f"--workdir={workdir / 'selu'}")
    assert code == 0
    code, together, _ = run(evaluate, f"--workdir={workdir}")
    assert code == 0 and row(together, "selu") == row(evaluated, "test")
    concluded = output.rpartition("gradient at step")[2]
    for name in deep_mlp.VARIANTS:
        loss, accuracy = row(together, name)
        assert {f"{loss:.4f}", f"{accuracy:.4f}"} <= set(next(line for line in concluded.splitlines() if line.startswith(name)).split())


def test_a_comparison_that_has_not_come_to_a_part_says_so(whole, tmp_path):
    (tmp_path / "config.json").write_text((whole[0] / "config.json").read_text())
    code, _, errors = run(evaluate, f"--workdir={tmp_path}")
    assert code == command_line.EXIT_REFUSED
    assert "has not finished an epoch" in errors and errors.count("\n") == 1
