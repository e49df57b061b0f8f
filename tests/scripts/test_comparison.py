"""A comparison from the command line: killed in one of its parts it goes on in that part; any part can be evaluated by itself."""

from __future__ import annotations

import numpy as np
import pytest

from loops import testing
from research import command_line
from research.exports import check
from research.exports.load import load
from scripts import evaluate, export, train
from tests.scripts.programs import row, run, weights

PARTS = ["residual-1", "residual-2"]
SMALL = ["--config=functional_graphs", "--config.forms=('residual',)", "--config.depths=(1,2)", "--config.width=6"]
SMALL += ["--config.epochs=2", "--config.batch_size=420", "--compile=eager"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, *run(train, *SMALL, f"--workdir={workdir}")


def test_killed_in_its_second_part_the_same_command_ends_as_if_nothing_had_been(whole, tmp_path):
    killed = tmp_path / "killed"
    first, second = PARTS
    # Two epochs are two evaluations: the fourth is in the second epoch of the second part.
    with testing.crash_at("evaluation", count=4, how="raise"), pytest.raises(testing.InjectedCrash):
        run(train, *SMALL, f"--workdir={killed}")
    assert (killed / second / "snapshots").exists() and not (killed / "plots").exists()
    trained = (killed / first / "history.csv").read_bytes()

    code, output, _ = run(train, *SMALL, f"--workdir={killed}", "--resume=must")
    assert code == 0 and output.count("The run is complete") == 1
    assert (killed / first / "history.csv").read_bytes() == trained
    for name in PARTS:
        assert (killed / name / "history.csv").read_bytes() == (whole[0] / name / "history.csv").read_bytes()
        for which in ("best", "last"):
            expected, found = weights(whole[0] / name, which), weights(killed / name, which)
            assert expected.keys() == found.keys() and all((expected[key] == found[key]).all() for key in expected)
    assert concluded(output) == concluded(whole[2]) and len(concluded(output)) == 2


def concluded(output):
    """The lines of the parts in the table at the end."""
    return [line for line in output.rpartition("first_gradient")[2].splitlines() if line.startswith(tuple(PARTS))]


def test_a_part_or_all_of_them_can_be_evaluated_again(whole):
    workdir, code, output, _ = whole
    assert code == 0
    code, evaluated, _ = run(evaluate, f"--workdir={workdir / PARTS[1]}")
    assert code == 0
    code, together, _ = run(evaluate, f"--workdir={workdir}")
    assert code == 0 and row(together, PARTS[1]) == row(evaluated, "test")
    for name, line in zip(PARTS, concluded(output), strict=True):
        loss, accuracy = row(together, name)
        assert line.startswith(name) and {f"{loss:.4f}", f"{accuracy:.4f}"} <= set(line.split())


def test_a_comparison_that_has_not_come_to_a_part_says_so(whole, tmp_path):
    (tmp_path / "config.json").write_text((whole[0] / "config.json").read_text())
    code, _, errors = run(evaluate, f"--workdir={tmp_path}")
    assert code == command_line.EXIT_REFUSED
    assert "has not finished an epoch" in errors and errors.count("\n") == 1


def test_every_part_of_a_comparison_is_exported(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "check", lambda study, written, **_: dict.fromkeys(written, 0.0))
    workdir, to = whole[0], tmp_path / "to"
    assert run(export, f"--workdir={workdir}", "--forms=keras", f"--to={to}")[0] == 0
    assert sorted(path.name for path in to.iterdir()) == PARTS
    assert run(export, f"--workdir={workdir / PARTS[0]}", "--forms=keras")[0] == 0
    first, second, again = (
        load(path / "model.keras").get_weights() for path in (to / PARTS[0], to / PARTS[1], workdir / PARTS[0] / "export")
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], second[0])
