"""`scripts/launch.py`: several processes of a program behave as one. The programs are small, and know nothing of TensorFlow."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from tests.scripts.programs import REPOSITORY, called

LAUNCH = [sys.executable, str(REPOSITORY / "scripts" / "launch.py")]
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k not in ("TF_CONFIG", "CUDA_VISIBLE_DEVICES")}, "PYTHONPATH": str(REPOSITORY)}
BEGIN = """
import json, os, signal, sys, time
config = json.loads(os.environ["TF_CONFIG"])
index = config["task"]["index"]
"""
#: A worker that says when it is ready for signals, and what it does at SIGTERM and SIGINT.
WAITS = """
def leave(number, frame):
    print(signal.Signals(number).name, flush=True)
    time.sleep(0.3 * index)
    sys.exit(75 if number == signal.SIGTERM else 130)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
print("ready")
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def child(tmp_path):
    """Writes a program; gives its path."""

    def write(code: str) -> pathlib.Path:
        path = tmp_path / "child.py"
        path.write_text(BEGIN + textwrap.dedent(code))
        return path

    return write


def launch(*arguments, **environment):
    return subprocess.run(
        [*LAUNCH, *map(str, arguments)], env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def started(*arguments):
    process = subprocess.Popen(
        [*LAUNCH, *map(str, arguments)], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(2):
        assert re.fullmatch(r"\[worker \d\] ready( \d+)?\n", process.stdout.readline())
    return process


def test_each_process_knows_all_and_itself_and_its_lines_have_its_name(child):
    program = child(
        """
        print(json.dumps({"config": config, "arguments": sys.argv[1:], "own session": os.getsid(0) == os.getpid()}))
        print("wrong", file=sys.stderr)
        """
    )
    done = launch("--workers=3", program, "--epochs=2", "-x", "--workers=7")
    assert done.returncode == 0
    lines = dict(re.fullmatch(r"\[worker (\d)\] (.*)", line).groups() for line in done.stdout.splitlines())
    said = [json.loads(lines[str(i)]) for i in range(3)]
    assert [each["config"]["task"] for each in said] == [{"type": "worker", "index": i} for i in range(3)]
    (cluster,) = {json.dumps(each["config"]["cluster"]) for each in said}
    ports = [int(re.fullmatch(r"localhost:(\d+)", address)[1]) for address in json.loads(cluster)["worker"]]
    assert len(set(ports)) == 3
    for port in ports:
        socket.create_server(("", port)).close()  # nobody holds it
    assert all(each["own session"] for each in said)  # a terminal's Ctrl-C does not come twice
    assert all(each["arguments"] == ["--epochs=2", "-x", "--workers=7"] for each in said)
    assert sorted(done.stderr.splitlines()) == [f"[worker {i}] wrong" for i in range(3)]


def test_a_module_is_started_by_m(child):
    done = launch("--workers", "2", "-m", "json.tool", "--help")
    assert done.returncode == 0 and done.stdout.count("] usage:") == 2


def test_lines_come_at_once_and_whole_and_of_drawn_ones_the_last_state(child):
    program = child(
        r"""
        for i in range(200):
            os.write(1, b"a" * 500)
            os.write(1, b"b" * 500 + b"\n")
        os.write(2, b"\r10%\r20%")
        os.write(2, b"\r30%\r\n" + b"\xc3")
        os.write(2, b"\xa4 without an end")
        """
    )
    done = launch("--workers=2", program)
    assert done.stdout.splitlines().count(f"[worker 0] {'a' * 500}{'b' * 500}") == 200
    assert done.stdout.splitlines().count(f"[worker 1] {'a' * 500}{'b' * 500}") == 200
    assert sorted(done.stderr.splitlines()) == [f"[worker {i}] {text}" for i in (0, 1) for text in ("30%", "ä without an end")]


def test_on_a_terminal_only_the_chief_draws_and_lines_of_others_do_not_hit_what_it_drew(child):
    program = child(
        r"""
        if index == 0:
            for percent, seconds in ((10, 0.3), (20, 2.0), (30, 0.3)):
                print(f"\r{percent}%", end="", flush=True)
                time.sleep(seconds)
            print()
        else:
            time.sleep(0.6)
            print("\rdrawn by another", end="", flush=True)
            time.sleep(0.4)
            print("\rline of another")
        """
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*LAUNCH, "--workers=2", str(program)], env=ENVIRONMENT, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # how Linux says that nobody has the other end any more
            break
        if not data:
            break
        seen += data
    assert process.wait(10) == 0
    os.close(ours)
    assert _screen(seen) == ["[worker 1] line of another", "[worker 0] 30%", ""]
    assert re.search(rb"line of another\r?\n\[worker 0\] 20%", seen)  # drawn again below it
    assert b"[worker 0] 10%" in seen and b"[worker 0] 20%" in seen and b"drawn by another" not in seen


def _screen(written: bytes) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines = [""]
    for piece in re.split(r"(\r\n|\n|\r\x1b\[K)", written.decode()):
        if piece in ("\n", "\r\n"):
            lines.append("")
        elif piece == "\r\x1b[K":
            lines[-1] = ""
        else:
            assert "\r" not in piece
            lines[-1] += piece
    return lines


def test_one_that_fails_ends_the_others_and_its_code_counts(child):
    program = child("if index == 1:\n    time.sleep(0.3)\n    sys.exit(3)\n" + WAITS)
    done = launch("--workers=3", program)
    assert done.returncode == 3
    assert done.stderr.splitlines() == ["[launch] worker 1 ended with code 3; ending workers 0 and 2"]
    assert done.stdout.count("SIGTERM") == 2


def test_one_that_does_not_end_is_killed_after_the_grace(child):
    program = child(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if index == 1:
            time.sleep(0.5)
            sys.exit(4)
        time.sleep(100)
        """
    )
    began = time.monotonic()
    done = launch("--workers=2", "--grace=0.5", program)
    assert done.returncode == 4 and time.monotonic() - began < 30
    assert done.stderr.splitlines() == [
        "[launch] worker 1 ended with code 4; ending worker 0",
        "[launch] worker 0 did not end within 0.5 seconds: killed",
    ]


def test_who_waits_for_a_killed_one_is_not_given_the_whole_grace(child):
    program = child(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if index == 1:
            os.kill(os.getpid(), 9)
        time.sleep(100)
        """
    )
    done = launch("--workers=2", "--grace=60", program)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.splitlines()[1:] == ["[launch] worker 0 did not end within 5 seconds: killed"]


def test_one_that_ends_well_ends_nobody(child):
    done = launch("--workers=2", "--grace=0.1", child("time.sleep(0.6 * index)\nprint('done')"))
    assert done.returncode == 0 and done.stdout.count("done") == 2 and done.stderr == ""


def test_a_killed_worker_ends_the_others_with_the_code_of_shells(child):
    program = child("if index == 0:\n    time.sleep(0.3)\n    os.kill(os.getpid(), 9)\n" + WAITS)
    done = launch("--workers=2", program)
    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.splitlines() == ["[launch] worker 0 was killed by SIGKILL; ending worker 1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_are_handed_on_to_all_once(child, number, code):
    process = started("--workers=2", "--restarts=5", child(WAITS))
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert sorted(out.splitlines()) == [f"[worker {i}] {signal.Signals(number).name}" for i in (0, 1)]


def test_the_third_interrupt_kills(child):
    process = started("--workers=2", child("signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready')\ntime.sleep(100)"))
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells them")
def test_workers_hear_of_it_when_the_launcher_is_killed(child, tmp_path):
    program = child(
        f"""
        def leave(number, frame):
            open({str(tmp_path)!r} + f"/{{index}}", "w").close()
            os._exit(75)
        signal.signal(signal.SIGTERM, leave)
        print("ready")
        time.sleep(100)
        """
    )
    process = started("--workers=2", program)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 20
    while not all((tmp_path / str(i)).exists() for i in (0, 1)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all((tmp_path / str(i)).exists() for i in (0, 1))


def test_if_all_say_start_again_so_does_the_launcher_but_a_failure_among_them_counts(child):
    done = launch("--workers=2", child("time.sleep(0.3 * index)\nsys.exit(75)"))
    assert done.returncode == 75
    assert done.stderr.splitlines()[0] == "[launch] worker 0 ended with code 75; waiting for worker 1"
    assert launch("--workers=2", child("time.sleep(0.3 * index)\nsys.exit((75, 1)[index])")).returncode == 1


@pytest.mark.parametrize("end", ["sys.exit(75)", "os.kill(os.getpid(), 9)", "sys.exit(1)"])
def test_restarts_follow_a_preemption_or_a_death_but_no_failure(child, tmp_path, end):
    program = child(
        f"""
        count = len(list(__import__("pathlib").Path({str(tmp_path)!r}).glob(f"{{index}}-*")))
        open({str(tmp_path)!r} + f"/{{index}}-{{count}}", "w").write(str(config["cluster"]))
        if count < 2:
            time.sleep(0.2)
            {end}
        print("done")
        """
    )
    done = launch("--workers=2", "--restarts=2", "--grace=5", program)
    again = [line for line in done.stderr.splitlines() if "again" in line]
    if end == "sys.exit(1)":
        assert done.returncode == 1 and not again
        return
    assert done.returncode == 0 and done.stdout.count("done") == 2
    assert again == [f"[launch] starting all workers again ({i} of 2)" for i in (1, 2)]
    assert len({(tmp_path / f"0-{i}").read_text() for i in range(3)}) == 3  # other ports


def test_restarts_come_to_an_end(child):
    done = launch("--workers=2", "--restarts=1", child("sys.exit(75)"))
    assert done.returncode == 75 and done.stderr.count("starting all") == 1


SHARES = "print(*(os.environ.get(name) for name in ('TF_NUM_INTRAOP_THREADS', 'OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')))"


@pytest.mark.parametrize(
    ("arguments", "environment", "shares"),
    [
        ([], {}, [f"{max(1, len(os.sched_getaffinity(0)) // 2)} " * 2 + "None"] * 2),
        (["--threads_per_worker=3", "--gpus=0,1,2,3"], {}, ["3 3 0,1", "3 3 2,3"]),
        (["--threads_per_worker=3", "--gpus=none"], {"CUDA_VISIBLE_DEVICES": "0,1"}, ["3 3 -1"] * 2),
        (["--threads_per_worker=3"], {"CUDA_VISIBLE_DEVICES": "4,7"}, ["3 3 4", "3 3 7"]),
        ([], {"OMP_NUM_THREADS": "5", "TF_NUM_INTRAOP_THREADS": "6", "CUDA_VISIBLE_DEVICES": ""}, ["6 5 "] * 2),
    ],
)
def test_each_has_its_share_of_processors_and_gpus(child, arguments, environment, shares):
    done = launch("--workers=2", *arguments, child(SHARES), PATH="", **environment)  # without PATH no nvidia-smi is found
    assert sorted(done.stdout.splitlines()) == [f"[worker {i}] {share}" for i, share in enumerate(shares)]


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        ([], {}, "How many processes? Give --workers=2 before the program."),
        (["--workers=2"], {}, "Which program? Give a Python file, or -m MODULE"),
        (["--workers=2", "-m"], {}, "Which program?"),
        (["--workers=2", "no.py"], {}, "There is no Python file 'no.py' below "),
        (["--workers=0", __file__], {}, "flag --workers=0"),
        (["--wokers=2", __file__], {}, "Unknown command line flag 'wokers'. Did you mean --workers"),
        (["--workers=2", "--gpus=0,1,2", __file__], {}, "3 GPUs (0,1,2) cannot be shared out evenly among 2 workers"),
        (["--workers=2", __file__], {"TF_CONFIG": "{}"}, "TF_CONFIG is set: this process is one of several already."),
    ],
)
def test_wrong_usage_gets_one_sentence(monkeypatch, arguments, environment, sentence):
    from scripts import launch

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, out, err = called(launch.program, "launch.py", *arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and err.startswith(f"launch.py: {sentence}")


def test_the_launcher_starts_nothing_of_tensorflow():
    code = "import sys, scripts.launch; print([name for name in ('tensorflow', 'keras', 'loops') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
