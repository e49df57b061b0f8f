"""Starts several processes of a program on this machine, which train one model together (see docs/scaling.md).

    python scripts/launch.py --workers=2 scripts/train.py --strategy=multi_worker --workdir=runs/first
    python scripts/launch.py --workers=2 -m my_package.train --epochs=10
    python scripts/launch.py --workers=4 --restarts=3 scripts/train.py ...     # starts all again after a preemption or a killed worker

Each process gets TF_CONFIG, with a free port for each, and its share of the processors and GPUs. What they print has the worker's name in
front. Ctrl-C and SIGTERM are handed on to all. If one fails, the others are ended, and the exit code is that of the one that failed; it is
75 (start me again) if that was what all of them said.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from research import command_line, processes
from research.study import InputError

_HOST = "localhost"
_PORTS = range(12_000, 32_000)  # below those that Linux gives to outgoing connections


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_integer("workers", None, "How many processes.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "threads_per_worker", None, "Threads that compute in each. Default: the processors, shared out.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_list(
        "gpus", None, "GPUs to share out, such as 0,1,2,3; none: no GPU. Default: CUDA_VISIBLE_DEVICES, else all.", flag_values=values
    )
    flags.DEFINE_integer(
        "restarts", 0, "So many times all are started again after exit code 75 or a killed worker.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "grace",
        30.0,
        "Seconds from asking a worker to end (SIGTERM) to killing it; 5 at most, if one was killed.",
        lower_bound=0.0,
        flag_values=values,
    )


def program(argv: list[str]) -> int:
    """Does what a command line says; returns the exit code."""
    own, command = split(argv)
    return command_line.run(lambda args: _main(args, command), define_flags, own)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """The program's own arguments, and the command to start: what begins with the first argument that is no flag, or with `-m`."""
    values = flags.FlagValues()
    define_flags(values, argv)
    i = 1
    while i < len(argv) and argv[i].startswith("-") and argv[i] != "-m":
        i += 1 if "=" in argv[i] or argv[i].lstrip("-") not in values else 2
    return argv[:i], argv[i:]


def _main(args: flags.FlagValues, command: list[str]) -> int:
    if args.workers is None:
        raise InputError("How many processes? Give --workers=2 before the program.")
    if "TF_CONFIG" in os.environ:
        raise InputError("TF_CONFIG is set: this process is one of several already. Start the program itself, or unset TF_CONFIG.")
    run = [sys.executable, *_checked(command)]
    shares = _shares(args.workers, args.threads_per_worker, _gpus(args.gpus, args.workers))
    left = args.restarts
    with processes.Signals() as signals:
        while True:
            # Other ports each time: somebody may still hold those of before.
            group = processes.Group(run, _environments(shares), args.grace)
            signals.begin(group)
            code, again = group.wait()
            if not again or left == 0 or signals.received:
                return code
            left -= 1
            processes.tell(f"starting all workers again ({args.restarts - left} of {args.restarts})")


def _checked(command: list[str]) -> list[str]:
    if not command or command == ["-m"]:
        raise InputError("Which program? Give a Python file, or -m MODULE, after the flags of launch.py, then its own flags.")
    if command[0] != "-m" and not pathlib.Path(command[0]).is_file():
        raise InputError(f"There is no Python file {command[0]!r} below {os.getcwd()}; a module is started by -m MODULE.")
    return command


def _gpus(given: Sequence[str] | None, workers: int) -> list[list[str]] | None:
    """The GPUs of each worker; None if there are none to share out."""
    if given is not None:
        gpus = [] if given == ["none"] else list(given)
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        gpus = [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu not in ("", "-1")]
    else:
        gpus = _installed_gpus()
    if len(gpus) % workers:
        raise InputError(
            f"{len(gpus)} GPUs ({','.join(gpus)}) cannot be shared out evenly among {workers} workers, which need the same number each: "
            "choose some by --gpus=0,1, or give --gpus=none."
        )
    each = len(gpus) // workers
    if not each:
        return [["-1"] for _ in range(workers)] if given is not None else None
    return [gpus[i * each : (i + 1) * each] for i in range(workers)]


def _installed_gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, check=False).stdout if tool else ""
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def _shares(workers: int, threads: int | None, gpus: list[list[str]] | None) -> list[dict[str, str]]:
    """The variables that give each worker its share of the machine. What the user has set of them stays."""
    each = str(threads or max(1, _processors() // workers))
    shares = []
    for number in range(workers):
        share = {name: os.environ.get(name, each) for name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS")}
        if threads is not None:
            share = dict.fromkeys(share, each)
        if gpus is not None:
            share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[number])
        shares.append(share)
    return shares


def _environments(shares: list[dict[str, str]]) -> list[dict[str, str]]:
    addresses = [f"{_HOST}:{port}" for port in _free_ports(len(shares))]
    environments = []
    for index, share in enumerate(shares):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environments.append({**os.environ, "PYTHONUNBUFFERED": "1", **share, "TF_CONFIG": json.dumps(config)})
    return environments


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens to. They are held until all are found, so that they differ."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("", port)))
                found.append(port)
            if len(found) == count:
                return found
    raise InputError(f"There are no {count} free ports between {_PORTS.start} and {_PORTS.stop}.")


if __name__ == "__main__":
    sys.exit(program(sys.argv))
