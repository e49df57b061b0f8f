"""Starts worker processes on this machine, and the pair of them that plays scenarios for all tests of a session."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["Pair", "start", "wait"]

_ROOT = pathlib.Path(__file__).parents[3]


def start(workers: int, arguments: Sequence[str], folder: pathlib.Path, *, stdin: Any = subprocess.DEVNULL) -> list[subprocess.Popen]:
    """Starts `python -m ...` as every worker of a cluster; what it prints goes to `output-<worker>` in `folder`.

    Args:
        workers: how many.
        arguments: the module and its arguments; "{worker}" stands for the number of the worker.
        folder: where the output goes.
        stdin: as for `subprocess.Popen`.
    """
    sockets = [socket.socket() for _ in range(workers)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    started = []
    for worker in range(workers):
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": worker}}),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_NUM_INTRAOP_THREADS": "1",
            "PYTHONPATH": str(_ROOT),
            "WORKERS_TIMEOUT": "15",
        }
        command = [sys.executable, "-m", *(argument.format(worker=worker) for argument in arguments)]
        with open(folder / f"output-{worker}", "ab") as output:
            started.append(subprocess.Popen(command, env=environment, cwd=_ROOT, stdin=stdin, stdout=output, stderr=subprocess.STDOUT))
    return started


def wait(processes: Sequence[subprocess.Popen], seconds: float) -> list[int]:
    """The exit codes; those of processes that do not end in time are killed, which gives -9."""
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [process.returncode for process in processes]


class Pair:
    """Two workers that play one scenario after another; started when the first is asked for, and again after a hang or an end.

    Args:
        folder: where results and output go.
        seconds: how long a scenario may take.
    """

    def __init__(self, folder: pathlib.Path, seconds: float = 150.0):
        self.folder, self._seconds = folder, seconds
        self._processes: list[subprocess.Popen] = []
        self._number, self._results = 0, dict[str, list[dict[str, Any]]]()
        self._asked: dict[str, int] = {}
        self._ends = False

    def ask(self, name: str) -> None:
        """Has the workers begin with a scenario."""
        if name in self._asked or name in self._results:
            return
        if self._ends or not self._processes or any(process.poll() is not None for process in self._processes):
            self.close()
            self._ends = False
            self._processes = start(2, ["tests.loops.cluster.worker", str(self.folder)], self.folder, stdin=subprocess.PIPE)
        self._number += 1
        self._asked[name] = self._number
        for process in self._processes:
            process.stdin.write(f"{self._number} {name}\n".encode())
            process.stdin.flush()

    def results(self, name: str, of: Sequence[int] = (0, 1)) -> list[dict[str, Any]]:
        """What a scenario gave on each worker. It is played once.

        Args:
            name: which.
            of: the workers that live to tell.

        Raises:
            AssertionError: if one of these has ended, or does not come to an end.
        """
        if name in self._results:
            return self._results[name]
        self.ask(name)
        number, end = self._asked.pop(name), time.monotonic() + self._seconds
        files = [self.folder / f"{number}-{worker}.pickle" for worker in of]
        while not all(file.exists() for file in files):
            ended = [self._processes[worker].poll() for worker in of]
            if time.monotonic() > end or (any(code is not None for code in ended) and not all(file.exists() for file in files)):
                there = [file.exists() for file in files]
                said = "\n".join(f"--- worker {worker}\n{self.output(worker)[-4000:]}" for worker in range(2))
                self.close()
                raise AssertionError(f"{name}: exit codes {ended}, results {there}\n{said}")
            time.sleep(0.02)
        self._results[name] = [pickle.loads(file.read_bytes()) for file in files]
        self._ends = len(of) < 2 or any(result.pop("ends", False) for result in self._results[name])
        return self._results[name]

    def exit_codes(self, seconds: float = 60.0) -> list[int]:
        """The exit codes of workers that end."""
        return wait(self._processes, seconds)

    def output(self, worker: int) -> str:
        """What a worker has printed."""
        return (self.folder / f"output-{worker}").read_text(errors="replace")

    def close(self) -> None:
        """Ends both."""
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
        self._processes = []
        self._asked.clear()
