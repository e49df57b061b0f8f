"""`search.py` finds a better config, goes on where it was, and says what it cannot do."""

from __future__ import annotations

import functools
import json

import pytest

from scripts import search
from tests.scripts.programs import called

pytest.importorskip("optuna")
run = functools.partial(called, search.program, "search.py")
#: On a table that is one batch: no trace would be worth its time, and there are few pictures.
SMALL = ("--config=classification", "--config.dataset=wine", "--config.epochs=2", "--config.hidden=(8,)", "--config.batch_size=128")
SMALL += ("--compile=eager",)
RATES = "--space.optimizer.learning_rate=1e-2:1:log"


def test_a_search_ends_with_the_best_point_and_goes_on_when_asked_for_more(tmp_path):
    code, out, err = run(*SMALL, RATES, f"--workdir={tmp_path}", "--trials=2")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("default    val_loss ") and [line.split()[1] for line in lines[1:3]] == ["0", "1"]
    assert "2 trials: 2 completed, 0 pruned, 0 failed." in out and (tmp_path / "plots" / "history.png").exists()
    command = next(line for line in lines if line.startswith("Train it:"))
    assert (
        "--config=classification --config.batch_size=128 --config.dataset=wine --config.epochs=2 --config.hidden=(8,) "
        "--config.optimizer.learning_rate=" in command
    )
    best = min((float(line.split()[3]), line.split()[1]) for line in lines[1:3])
    with open(tmp_path / "trials" / f"{int(best[1]):04d}" / "config.json", encoding="utf-8") as file:
        assert f"learning_rate={json.load(file)['config']['optimizer']['learning_rate']}" in command
    code, out, _ = run(*SMALL, RATES, f"--workdir={tmp_path}", "--trials=3")
    assert code == 0 and [line.split()[1] for line in out.splitlines() if line.startswith("trial ")][:1] == ["2"]
    assert "3 trials: 3 completed" in out
    code, out, err = run(*SMALL, "--space.optimizer.learning_rate=1e-2:2:log", f"--workdir={tmp_path}")
    assert code == 2 and "is another one: space was" in err and "or a new workdir." in err


def test_trials_that_fail_are_kept_with_their_reason_and_end_the_search_if_all_do(tmp_path):
    wild = ("--config.optimizer.learning_rate=1e30", "--config.on_nonfinite=raise")
    code, out, err = run(*SMALL, *wild, "--space.optimizer.name=none_such", f"--workdir={tmp_path}", "--sampler=grid", "--failures=1")
    assert out.startswith("default    FAILED  ")  # which ends no search: points may do better
    assert code == 2 and "1 trial in a row failed, the last because: Keras makes no optimizer 'none_such'" in err


BAD = {
    "no workdir": ((RATES,), "A search needs --workdir=runs/NAME"),
    "nothing to search": (("--workdir={tmp}",), "There is nothing to search: "),
    "a flag that is no range": (("--workdir={tmp}", "--space.batch_size"), "is no range"),
    "a comparison": (("--config=wide_deep", "--space.batch_size=16,32", "--workdir={tmp}"), "compares several runs"),
    "a metric that no epoch logs": ((*SMALL, RATES, "--metric=val_f1", "--mode=max", "--workdir={tmp}"), "No epoch has logged 'val_f1'"),
    "a metric of unknown direction": (
        (*SMALL, RATES, "--metric=speed", "--workdir={tmp}"),
        "Give --mode=min or --mode=max for each of speed.",
    ),
    "more processes than cores": ((*SMALL, RATES, "--jobs=9999", "--workdir={tmp}"), "--jobs=9999 is more than this machine has cores"),
    "several metrics for CMA-ES": (
        (*SMALL, RATES, "--sampler=cmaes", "--metric=val_loss,val_accuracy", "--workdir={tmp}"),
        "--sampler=cmaes takes one metric",
    ),
    "a range for a grid": ((*SMALL, RATES, "--sampler=grid", "--workdir={tmp}"), "A grid needs values"),
    "no storage": (
        (*SMALL, RATES, "--storage=sqlite:////no/where.db", "--workdir={tmp}"),
        "The storage 'sqlite:////no/where.db' cannot be used",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_sentence(tmp_path, case):
    arguments, sentence = BAD[case]
    code, _, err = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert code == 2 and sentence in err and "Traceback" not in err
    assert case == "no storage" or not (tmp_path / "search.json").exists()  # the command put right takes the same workdir
