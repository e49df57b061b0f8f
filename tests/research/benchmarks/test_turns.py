"""Contenders take turns in processes of their own, and a crash of one of them is nobody else's."""

from __future__ import annotations

import os
import time

import pytest

from research.benchmarks import turns
from research.benchmarks.registry import Row
from research.benchmarks.turns import Limits
from tests.research.benchmarks.fakes import fake

ROW = Row("mlp_sgd")


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    log = tmp_path_factory.mktemp("turns") / "log"
    faults = ("abort", "raise", "hang", "missing", "unsuitable")
    entries = {"first": fake([100, 101, 102, 103], log=log), **{fault: fake(fault=fault, log=log) for fault in faults}}
    entries["last"] = fake([50], log=log)
    limits = Limits(setup=30, turn=1)
    found = turns.measure(ROW, entries, rows=None, rounds=3, seconds=0.0, inference=["last"], limits=limits)
    lines = [line.split() for line in log.read_text().splitlines()]
    return found, lines


def test_rates_are_those_of_the_rounds(measured):
    found, _ = measured
    assert found["data"] == {"title": "nothing", "examples": 10, "steps": 10}
    first, last = found["contenders"]["first"], found["contenders"]["last"]
    assert first["rates"] == pytest.approx([101, 102, 103]) and last["rates"] == pytest.approx([50, 50, 50])
    assert first["ended"] is None and first["mode"] == "graph" and first["setup_seconds"] >= 0
    assert first["memory"]["peak"] >= first["memory"]["imported"] > 1


@pytest.mark.parametrize(
    "name, how",
    [
        ("abort", "round 2: killed by SIGABRT: what it said last"),
        ("raise", "round 2: ended with code 1: ValueError: the weights are gone"),
        ("hang", "round 2: no answer in"),
        ("missing", "not installed: no_such_package"),
    ],
)
def test_how_a_process_ended_is_told_and_the_others_go_on(measured, name, how):
    found = measured[0]["contenders"][name]
    assert found["ended"].startswith(how)
    assert found.get("rates", [100.0]) == pytest.approx([100.0])  # the first round; none of what is not installed


def test_who_does_not_suit_is_told(measured):
    found = measured[0]["contenders"]["unsuitable"]
    assert found["not_run"] == "cannot do it" and found["ended"] is None and "rates" not in found


def test_one_works_at_any_time(measured):
    worked = sorted((float(begun), float(ended)) for what, begun, ended in measured[1] if what == "turn")
    assert len(worked) > 10
    assert all(ended <= begun for (_, ended), (begun, _) in zip(worked, worked[1:], strict=False))


def test_no_process_is_left_and_none_of_those_that_they_started(measured):
    pids = {int(pid) for what, *given in measured[1] if what == "pids" for pid in given}
    assert len(pids) == 6
    assert not [pid for pid in pids if is_running(pid)]


def test_evaluation_is_timed_where_there_is_such_a_call(measured):
    found = measured[0]["contenders"]
    assert list(found["last"]["inference"]) == ["evaluate"] and "inference" not in found["first"]
    sizes = found["last"]["inference"]["evaluate"]
    assert [len(sizes[size]["seconds"]) for size in ("small", "large")] == [3, 3]


def test_idle_processes_do_nothing(measured):
    idle = measured[0]["contenders"]["last"]["idle"]
    assert idle["seconds"] > 0.5 and idle["busy"] < 0.1


def test_an_interrupt_leaves_no_process():
    with pytest.raises(KeyboardInterrupt), turns.processes({"a": fake(), "b": fake(fault="missing")}) as started:
        pids = [process.pid for process, _ in started.values()]
        raise KeyboardInterrupt
    assert len(pids) == 2 and not any(is_running(pid) for pid in pids)


def test_a_process_ends_with_the_benchmark():
    with turns.processes({"a": fake()}) as started:
        process = started["a"][0]
        process.answer(30)
        process._popen.stdin.close()  # as when the benchmark is killed
        deadline = time.monotonic() + 20
        while is_running(process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 0
