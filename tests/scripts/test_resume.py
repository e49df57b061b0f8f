"""A run that was ended by a signal goes on when the same command is given again, and ends as one that nothing happened to."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from loops import hooks
from loops.run.workdir_lock import WorkdirLock
from research import command_line
from scripts import runs, train
from tests.scripts.programs import REPOSITORY, called, run, weights

SMALL = ["--config.dataset=wine", "--compile=eager"]
COMMAND = ["--config.epochs=60", "--config.patience=60", "--config.hidden=(30,)", "--compile=graph"]


def killed_when_under_way(workdir, rng):
    """The exit code of a process that was killed a little after it has saved something, and what it wrote to stderr."""
    process = subprocess.Popen(
        [sys.executable, "scripts/train.py", f"--workdir={workdir}", *COMMAND],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while saved(workdir) == 0 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, errors


def signalled(workdir, number):
    """What `run` returns of a process, this one, that gets a signal before the third epoch that it trains."""
    epochs, before = iter(range(60)), signal.getsignal(signal.SIGINT)
    # A shell that started the tests in the background would have this process ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(hooks.ProgressBar, "on_epoch_begin", lambda *_: next(epochs) == 2 and os.kill(os.getpid(), number))
            return run(train, f"--workdir={workdir}", *COMMAND)
    finally:
        signal.signal(signal.SIGINT, before)


def saved(workdir):
    folder = workdir / "snapshots"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.is_dir() else 0


def test_runs_that_were_killed_end_as_those_that_were_not(tmp_path):
    whole, killed, rng = tmp_path / "whole", tmp_path / "killed", random.Random(os.environ.get("KILL_SEED", ""))

    code, errors = killed_when_under_way(killed, rng)
    assert code == -signal.SIGKILL and errors == ""
    by_kill = saved(killed)

    code, output, errors = signalled(killed, signal.SIGINT)
    assert code == command_line.EXIT_INTERRUPTED and errors == ""
    assert "Resuming the run" in output
    assert re.search(rf"^Interrupted in epoch \d+ of 60. Kept in {killed}: checkpoints/best", output, re.MULTILINE)
    assert len(weights(killed)) == 4
    by_interrupt = saved(killed)

    with pytest.raises(SystemExit) as ended:
        signalled(killed, signal.SIGTERM)
    assert ended.value.code == 75
    assert saved(killed) > by_interrupt > by_kill > 0

    code, _, errors = run(train, f"--workdir={killed}", *COMMAND, "--resume=must")
    assert code == 0, errors
    code, _, errors = run(train, f"--workdir={whole}", *COMMAND)
    assert code == 0, errors

    code, output, _ = called(runs.program, "runs.py", "diff", whole, killed)
    assert code == 0, output
    assert (whole / "history.csv").read_bytes() == (killed / "history.csv").read_bytes()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "small"
    assert run(train, *SMALL, f"--workdir={workdir}", "--config.epochs=1")[0] == 0
    return workdir


def test_the_second_process_in_a_workdir_is_told_who_has_it(small_run):
    with WorkdirLock(small_run):
        code, _, err = run(train, *SMALL, f"--workdir={small_run}", "--config.epochs=1")
    assert code == 1
    assert "is in use by" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--config.batch_size=16", "data.batch_size was 32 and is 16 now"),
        ("--seed=1", "seed was 0 and is 1 now"),
        ("--config.hidden=(30,)", r"dense/kernel is \[13, 30\] float32 now and was \[13, 300\] float32"),
        ("--resume=never", "is used already"),
    ],
)
def test_a_run_that_would_not_be_the_same_is_refused_with_the_difference(given, message, small_run):
    code, _, err = run(train, *SMALL, f"--workdir={small_run}", "--config.epochs=2", given)
    assert code == 2
    assert re.search(message, err), err


def test_a_complete_run_says_so_and_a_larger_target_carries_it_on(small_run):
    code, out, _ = run(train, *SMALL, f"--workdir={small_run}", "--config.epochs=1")
    assert code == 0 and "The run is complete" in out
    code, out, _ = run(train, *SMALL, f"--workdir={small_run}", "--config.epochs=2")
    assert code == 0 and "config.epochs was 1 and is 2 now" in out
    assert len((small_run / "history.csv").read_text().splitlines()) == 3


def test_resume_must_wants_a_run(tmp_path):
    code, _, err = run(train, f"--workdir={tmp_path / 'new'}", "--resume=must")
    assert code == 2 and "There is no run" in err
