"""Contenders for tests of the benchmark, in processes that import neither TensorFlow nor Keras."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from research.benchmarks.contender import Contender, Timed
from research.benchmarks.registry import Entry

STEPS = 10  # of an epoch


@dataclasses.dataclass
class Data:
    title: str = "nothing"
    rows: int = 10
    steps: int = STEPS

    def resized(self, rows, source):
        return dataclasses.replace(self, rows=rows)

    def data(self):
        return list(range(self.rows)), list(range(self.rows))


@dataclasses.dataclass
class Fake(Contender):
    """Says that it did steps at these rates, one after the other; the first is that of its setup.

    Attributes:
        rates: steps a second.
        fault: "abort", "raise" or "hang", at the second turn of the rounds; "unsuitable".
        log: file to which the beginning and the end of each turn are written, and the ids of its process and of one that it starts.
    """

    rates: list[float]
    fault: str = ""
    log: str = ""
    turns: int = -1

    def workload(self, **_: Any) -> Any:
        return Data()

    def unsuitable(self, workload: Any) -> str | None:
        return "cannot do it" if self.fault == "unsuitable" else None

    def setup(self, workload: Any, directory: pathlib.Path) -> None:
        print("a library prints what it likes")
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) if self.fault == "hang" else None
        self._write("pids", os.getpid(), child.pid if child else os.getpid())

    def run(self, epochs: int) -> Timed:
        begun = time.monotonic()
        if self.turns == 1 and self.fault == "abort":
            print("what it said last", file=sys.stderr, flush=True)
            os.abort()
        if self.turns == 1 and self.fault == "raise":
            raise ValueError("the weights are gone")
        if self.turns == 1 and self.fault == "hang":
            time.sleep(600)
        time.sleep(0.01)
        self.turns += 1
        self._write("turn", begun, time.monotonic())
        return Timed(epochs * STEPS, epochs * STEPS / self.rates[self.turns % len(self.rates)])

    @property
    def mode(self) -> str | None:
        return "graph"

    def evaluate(self, x: Any, y: Any) -> None:
        assert len(x) == len(y)

    def _write(self, *what: Any) -> None:
        if self.log:
            with open(self.log, "a") as file:
                print(*what, file=file)


def fake(rates: Any = (100.0,), fault: str = "", log: Any = "") -> Entry:
    packages = ("no_such_package",) if fault == "missing" else ()
    arguments = {"rates": list(rates), "fault": fault, "log": str(log)}
    return Entry("tests.research.benchmarks.fakes:Fake", arguments, packages, {})
