"""One device, replicas and workers: what is started, and what is said of how far apart they end."""

from __future__ import annotations

import numpy as np
import pytest

from research import command_line, runner, study
from research.configs import distribution as config_file
from research.studies import distribution
from research.studies.distribution import Trained
from research.study import InputError
from scripts import launch, train


def config(**changes):
    made = config_file.get_config()
    made.update({"epochs": 2, "hidden": (16,), "batch_size": 200, **changes})
    return made


def test_the_others_are_started_with_the_same_settings():
    made = config(normalize="minmax")
    replicas, workers = distribution.commands(made, data_dir="some/data", seed=3).values()
    script, *flags = replicas
    assert script.endswith("train.py")
    parsed = command_line.parse(train.define_flags, [script, *flags])
    assert parsed.config.to_dict() == made.to_dict()
    assert (parsed.strategy, parsed.logical_cpus, parsed.seed, parsed.data_dir, parsed.compile) == ("mirrored", 2, 3, "some/data", "graph")
    own, command = launch.split(workers)
    assert own[0].endswith("launch.py") and own[1:] == ["--workers=2"]
    parsed = command_line.parse(train.define_flags, command)
    assert parsed.config.to_dict() == made.to_dict() and parsed.strategy == "multi_worker"


def test_three_ways_are_compared_in_one_command(tmp_path, monkeypatch, capsys):
    """The others are played here, on one device too: the second in the same way, the third with another seed."""
    began = []

    def play(command):
        flags = command[1 if command[0].endswith("train.py") else 3 :]
        parsed = command_line.parse(train.define_flags, ["train.py", *flags])
        began.append(parsed.strategy)
        seed = parsed.seed + (parsed.strategy == "multi_worker")
        made = study.build(parsed.config, seed=seed)
        # As under a strategy: it compares nothing.
        runner.train(study.dataclasses.replace(made, after=None), parsed.config, workdir=parsed.workdir, compile="graph", seed=seed)
        return 0

    monkeypatch.setattr(distribution, "start", play)
    made = config()
    runner.train(study.build(made), made, workdir=tmp_path / "all", compile="graph")
    said = capsys.readouterr().out
    assert began == ["mirrored", "multi_worker"]
    table = {line[:10].strip(): line.split()[2:] for line in said.partition("How far apart")[2].splitlines() if line[:1] in "o2"}
    apart = {name: [float(cell) for cell in cells[3:6]] for name, cells in table.items()}
    assert apart["one device"] == [0, 0, 0] and apart["2 replicas"] == [0, 0, 0]
    assert all(value > 1e-3 for value in apart["2 workers"])
    assert {path.name for path in (tmp_path / "all" / "plots").iterdir()} >= {"curves.png", "differences.png"}


def test_how_far_apart_is_the_largest_difference_of_all_epochs():
    one = Trained({"loss": [3.0, 2.0], "val_loss": [3.0, 2.5]}, [np.zeros([2, 2]), np.ones([2])], None)
    other = Trained({"loss": [3.5, 2.0], "val_loss": [3.0, 2.25]}, [np.zeros([2, 2]), np.array([1.0, 0.25])], 100.0)
    rows = distribution.compared({"one": one, "other": other})
    assert [rows["other"][name] for name in ("loss apart", "val_loss apart", "a weight apart")] == [0.5, 0.25, 0.75]
    assert rows["other"]["steps/s"] == 100 and "steps/s" not in rows["one"]


def test_a_run_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(distribution, "start", lambda command: 3)
    made = config(epochs=1)
    with pytest.raises(InputError, match="2 replicas ended with code 3"):
        runner.train(study.build(made), made, compile="graph")


@pytest.mark.parametrize(("changes", "said"), [({"copies": 1}, "copies"), ({"dataset": "diabetes"}, "regression")])
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))


@pytest.mark.matrix
def test_three_ways_train_the_same(tmp_path, capsys):
    made = config(batch_size=32)
    runner.train(study.build(made), made, workdir=tmp_path, compile="graph")
    lines = capsys.readouterr().out.partition("How far apart")[2].splitlines()
    for line in lines:
        if line.startswith("2 "):
            assert all(float(cell) < 1e-5 for cell in line.split()[5:8]), line
    assert sum(line.startswith("2 ") for line in lines) == 2
