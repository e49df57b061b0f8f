"""A crash point that is armed crashes at its count and in its way; one that is not costs next to nothing."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from loops import fault_points
from loops.testing import FakeClock, InjectedCrash, crash_at

REPOSITORY = pathlib.Path(__file__).parents[2]

# Only the package's own search path: what its __init__ imports would start TensorFlow.
PROGRAM = """
import importlib.util, sys
sys.modules["loops"] = importlib.util.module_from_spec(importlib.util.find_spec("loops"))
from loops import fault_points
try:
    for step in range(5):
        print(step, flush=True)
        fault_points.reached("feed")
        fault_points.reached("hook")
finally:
    print("cleaned up", flush=True)
"""


def program(crash):
    environment = {**os.environ, "TAPELOOPS_CRASH_AT": crash}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


def test_unarmed_points_do_nothing():
    for name in fault_points.NAMES:
        fault_points.reached(name)


@pytest.mark.parametrize("name", fault_points.NAMES)
def test_it_crashes_at_its_count_and_only_there(name):
    with crash_at(name, count=3, how="raise"):
        for other in fault_points.NAMES:
            if other != name:
                fault_points.reached(other)
        fault_points.reached(name)
        fault_points.reached(name)
        with pytest.raises(InjectedCrash, match=name):
            fault_points.reached(name)
        fault_points.reached(name)
    fault_points.reached(name, 100)


def test_steps_of_one_call_are_counted_together():
    with crash_at("step", count=10, how="raise"):
        fault_points.reached("step", 4)
        fault_points.reached("step", 5)
        with pytest.raises(InjectedCrash):
            fault_points.reached("step", 4)


def test_the_one_armed_before_comes_back():
    with crash_at("hook", 2, how="raise"):
        fault_points.reached("hook")
        with crash_at("feed", how="raise"), pytest.raises(InjectedCrash):
            fault_points.reached("feed")
        with pytest.raises(InjectedCrash):
            fault_points.reached("hook")


def test_of_many_threads_one_crashes():
    crashed = []

    def run():
        for _ in range(1000):
            try:
                fault_points.reached("feed")
            except InjectedCrash:
                crashed.append(threading.get_ident())

    with crash_at("feed", count=2500, how="raise"):
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(crashed) == 1


def test_the_environment_arms_a_program():
    assert program("") == (0, ["0", "1", "2", "3", "4", "cleaned up"], "")
    assert program("feed:3,kill") == (-signal.SIGKILL, ["0", "1", "2"], "")
    assert program("hook") == (-signal.SIGKILL, ["0"], "")
    assert program("hook:2,exit") == (fault_points.EXIT_CODE, ["0", "1", "cleaned up"], "")
    code, lines, err = program("feed:2,raise")
    assert (code, lines) == (1, ["0", "1", "cleaned up"]) and "InjectedCrash: Crash injected at 'feed'." in err


@pytest.mark.parametrize(
    ("crash", "said"),
    [
        ("hok:2,kill", "no crash point 'hok'; there are before_write, "),
        ("hook:x,kill", "looks like"),
        ("hook:0,kill", "count of 1 or more"),
        ("hook:1,explode", "can kill, raise, exit; it cannot 'explode'"),
    ],
)
def test_a_crash_that_does_not_exist_is_refused(crash, said):
    code, lines, err = program(crash)
    assert code == 1 and lines == [] and said in err


@pytest.mark.parametrize(
    "bad", [{"name": "nowhere"}, {"name": "hook", "count": 0}, {"name": "hook", "count": True}, {"name": "hook", "how": ""}]
)
def test_so_does_the_context(bad):
    with pytest.raises(ValueError, match="crash point"), crash_at(**bad):
        pass


def test_a_fake_clock_goes_on_when_it_is_told_to():
    clock = FakeClock(100, tick=0.25)
    assert [clock(), clock()] == [100.0, 100.25]
    clock.advance(60)
    assert clock() == 160.5
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)
