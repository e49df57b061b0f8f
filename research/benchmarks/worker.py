"""The process of one contender of `scripts/benchmark.py`: reads what to do from stdin, one JSON object a line, and answers on stdout.

    python -m research.benchmarks.worker '{"make": "module:Class", "arguments": {}, "packages": []}'

It says when it has imported its library, then works only between a request and its answer; otherwise it blocks on reading. It ends with
stdin. Whatever a library prints goes to stderr, of which the benchmark shows the last line if the process ends by itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Worker", "main"]

_VERSIONS = ("tensorflow", "keras", "torch", "lightning", "jax", "optax", "numpy")


class Worker:
    """Does what it is asked for; each public method is a request, its arguments are that request's.

    Args:
        make: "module:Class" of the contender.
        arguments: of the class.
    """

    def __init__(self, make: str, arguments: dict[str, Any]):
        module, name = make.split(":")
        self._contender = getattr(importlib.import_module(module), name)(**arguments)
        self._imported = peak_megabytes()
        self._warm: set[tuple[str, int]] = set()

    def setup(self, directory: str, **which: Any) -> dict[str, Any]:
        """Compiles, and trains an epoch more to see how long it takes; or says why the contender does not take part."""
        self._workload = self._contender.workload(**which)
        if (why := self._contender.unsuitable(self._workload)) is not None:
            return {"not_run": why}
        begun = time.perf_counter()
        self._contender.setup(self._workload, pathlib.Path(directory))
        seconds = time.perf_counter() - begun
        self._epoch_seconds = self._contender.run(1).seconds
        data = {"title": self._workload.title, "examples": self._workload.rows, "steps": self._workload.steps}
        found = {"setup_seconds": seconds, "epoch_seconds": self._epoch_seconds, "mode": self._contender.mode, "versions": versions()}
        return {"data": data, **found}

    def run(self, seconds: float) -> dict[str, Any]:
        """Trains whole epochs, as many as fill `seconds`."""
        timed = self._contender.run(max(1, math.ceil(seconds / self._epoch_seconds)))
        return {"steps": timed.steps, "seconds": timed.seconds}

    def inference(self, what: str, rows: int, calls: int) -> dict[str, Any]:
        """The median seconds of some calls of `evaluate` or `predict` on `rows` examples, after a first one; None without such a call."""
        x, y = self._workload.resized(rows=rows, source="arrays").data()
        given = (x, y) if what == "evaluate" else (x,)
        try:
            if (what, rows) not in self._warm:
                getattr(self._contender, what)(*given)
                self._warm.add((what, rows))
        except NotImplementedError:
            return {"seconds": None}
        return {"seconds": statistics.median(_seconds(lambda: getattr(self._contender, what)(*given)) for _ in range(calls))}

    def first_step(self, fits: int, **which: Any) -> dict[str, Any]:
        """Seconds to the first step and to the end, of each of some fits of a new model."""
        from research.benchmarks.first_step import timed_fits

        return {"fits": timed_fits(self._contender, self._contender.workload(**which), fits), "versions": versions()}

    def operations(self) -> dict[str, Any]:
        """What a step is made of, by TensorFlow's profiler."""
        from research.benchmarks.profile import operations

        return {"microseconds": operations(self._contender)}

    def memory(self) -> dict[str, Any]:
        """Megabytes at the peak, and what they were when the library had been imported."""
        return {"peak": peak_megabytes(), "imported": self._imported}


def versions() -> dict[str, str]:
    """Of the libraries that this process has imported."""
    return {name: importlib.metadata.version(name) for name in _VERSIONS if name in sys.modules}


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def peak_megabytes() -> float:
    """The most memory that this process ever had. Not `ru_maxrss` where Linux says it: that begins with what the parent process had."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main(entry: dict[str, Any]) -> None:
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)

    def answer(what: dict[str, Any]) -> None:
        try:
            print(json.dumps(what), file=answers)
        except BrokenPipeError:  # nobody is there any more
            os._exit(0)

    if missing := [name for name in entry["packages"] if importlib.util.find_spec(name) is None]:
        answer({"missing": missing})
        return
    worker = Worker(entry["make"], entry["arguments"])
    answer({})
    busy, since = time.process_time(), time.perf_counter()
    for line in requests:
        request = json.loads(line)
        idle = {"seconds": time.perf_counter() - since, "busy": time.process_time() - busy}
        answer({**getattr(worker, request.pop("do"))(**request), "idle": idle})
        busy, since = time.process_time(), time.perf_counter()
    answers.flush()
    os._exit(0)  # threads of libraries need not be waited for


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
