"""Processes that take turns: starts one for each contender of a row, hands round who works, and bears that one of them ends.

`research.benchmarks.worker` is what runs in them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from research.benchmarks.machine_speed import Turns
from research.benchmarks.registry import Entry, Row

__all__ = ["Ended", "Limits", "Process", "first_steps", "measure", "processes"]

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_EXAMPLES = {"small": 1024, "large": 6_400}  # of an evaluation or a prediction


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds after which a process that does not answer is ended: of imports and compiling, and of a turn."""

    setup: float = 300.0
    turn: float = 60.0


class Ended(Exception):
    """A process takes no more part. The text says how it ended, and the last line that it wrote."""


class Process:
    """A process of `research.benchmarks.worker`.

    Args:
        entry: the contender.
        folder: for what it writes to stderr.
        python: the interpreter.
    """

    def __init__(self, entry: Entry, folder: pathlib.Path, python: str = sys.executable):
        self._stderr = folder / "stderr.txt"
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        entry_json = json.dumps({"make": entry.make, "arguments": dict(entry.arguments), "packages": entry.packages})
        with self._stderr.open("wb") as stderr:
            # In a session of its own: Ctrl-C reaches the benchmark alone, which then ends all processes, and those that they started.
            self._popen = subprocess.Popen(
                [python, "-m", "research.benchmarks.worker", entry_json],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **entry.environment, "PYTHONPATH": path},
                start_new_session=True,
            )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """Has the process do something, and waits for its answer.

        Args:
            limit: seconds to wait.
            request: `do`, and arguments.

        Raises:
            Ended: if the process ended instead, or gave no answer in time.
        """
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # how it ended is seen by reading
            self._popen.stdin.write(json.dumps(request).encode() + b"\n")
            self._popen.stdin.flush()
        return self.answer(limit)

    def answer(self, limit: float) -> dict[str, Any]:
        """The next line of the process; see `ask`."""
        assert self._popen.stdout is not None
        deadline, descriptor = time.monotonic() + limit, self._popen.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.end()
                    raise Ended(f"no answer in {limit:g} s{self._last_words()}")
                if not (data := os.read(descriptor, 1 << 16)):
                    raise Ended(self._how_it_ended())
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        found = json.loads(line)
        if "missing" in found:
            raise Ended(f"not installed: {', '.join(found['missing'])}")
        return found

    def end(self) -> None:
        """Ends the process and all that it started, whatever they do."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._popen.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.end()
            return f"closed its output{self._last_words()}"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return how + self._last_words()

    def _last_words(self) -> str:
        lines = self._stderr.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last[:200]}" if last else ""


@contextlib.contextmanager
def processes(entries: Mapping[str, Entry], python: str = sys.executable) -> Iterator[dict[str, tuple[Process, pathlib.Path]]]:
    """A process and a folder for each contender; none of them is left when the block ends, in whatever way.

    All import at the same time; nobody should be asked for anything before all have said that they are ready.
    """
    with tempfile.TemporaryDirectory() as directory:
        started: dict[str, tuple[Process, pathlib.Path]] = {}
        try:
            for name, entry in entries.items():
                (folder := pathlib.Path(directory, name)).mkdir()
                started[name] = Process(entry, folder, python), folder
            yield started
        finally:
            for process, _ in started.values():
                process.end()


class _Round:
    """Asks those that still take part, one after the other, and notes who ended."""

    def __init__(self, started: Mapping[str, tuple[Process, pathlib.Path]], turns: Turns):
        self.found: dict[str, dict[str, Any]] = {name: {"ended": None} for name in started}
        self._turns = turns
        self._processes = {name: process for name, (process, _) in started.items()}

    def taking_part(self) -> list[str]:
        return [name for name, what in self.found.items() if what["ended"] is None and "not_run" not in what]

    def ask(self, name: str, limit: float, when: str, **request: Any) -> dict[str, Any] | None:
        """The answer, or None if the process ended."""
        process = self._processes[name]
        try:
            answer = process.ask(limit, **request) if request else process.answer(limit)
        except Ended as ended:
            text = str(ended)
            self.found[name]["ended"] = text if text.startswith("not installed") else f"{when}: {text}"
            process.end()
            return None
        for what, seconds in answer.pop("idle", {}).items():
            idle = self.found[name].setdefault("idle", {"seconds": 0.0, "busy": 0.0})
            idle[what] += seconds
        return answer

    def turn(self, name: str, limit: float, when: str, **request: Any) -> dict[str, Any] | None:
        """The answer to something that is timed; see `Turns.take`."""
        return self._turns.take(lambda: self.ask(name, limit, when, **request))


def measure(
    row: Row,
    entries: Mapping[str, Entry],
    *,
    rows: int | None,
    rounds: int,
    seconds: float,
    inference: Sequence[str] = (),
    operations: bool = False,
    limits: Limits = Limits(),
    turns: Turns | None = None,
    python: str = sys.executable,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Sets all contenders up, each in a process of its own, then has them take turns: only one works at any time.

    Args:
        row: what to train.
        entries: name -> contender.
        rows: number of examples, None for that of the row.
        rounds: number of turns of each.
        seconds: shortest duration of a turn; it ends whole epochs.
        inference: the contenders that evaluate and predict after the last round.
        operations: whether to see what the steps of each contender are made of, at the end.
        limits: how long to wait for an answer.
        turns: decides which turns count; all if None.
        python: the interpreter of the processes.
        say: told what goes on.

    Returns:
        "data" (title, examples, and steps of an epoch), and "contenders": name -> what was found. That is "ended" (how its process ended
        too early, else None), or "not_run" (why it does not suit); "rates" (steps a second in each round), "setup_seconds", "mode",
        "memory", "versions", "idle" (the seconds between its turns, and those of a processor that it took in them), and what was asked for
        besides.
    """
    data: dict[str, Any] = {}
    which = {"workload": row.workload, "batch_size": row.batch_size, "source": row.source, "rows": rows or row.rows}
    with processes(entries, python) as started:
        all_of_them = _Round(started, turns or Turns(None))
        found, ask = all_of_them.found, all_of_them.ask
        say(f"{row.name}: importing")
        for name in entries:
            ask(name, limits.setup, "importing")
        for name in all_of_them.taking_part():
            say(f"{row.name}: setting up {name}")
            answer = ask(name, limits.setup, "setting up", do="setup", directory=str(started[name][1]), **which)
            if answer is not None:
                data = answer.get("data", data)
                setup = ("setup_seconds", "epoch_seconds", "mode", "versions")
                found[name] |= answer if "not_run" in answer else {**{key: answer[key] for key in setup}, "rates": []}
        order = all_of_them.taking_part()
        for turn in range(rounds):
            say(f"{row.name}: round {turn + 1} of {rounds}")
            for name in order[turn % len(order) :] + order[: turn % len(order)] if order else []:
                if name not in all_of_them.taking_part():
                    continue
                limit = limits.turn + 10 * (seconds + found[name]["epoch_seconds"])
                if (answer := all_of_them.turn(name, limit, f"round {turn + 1}", do="run", seconds=seconds)) is not None:
                    found[name]["rates"].append(answer["steps"] / answer["seconds"])
        for name in all_of_them.taking_part():
            if (answer := ask(name, limits.turn, "asked for its memory", do="memory")) is not None:
                found[name]["memory"] = answer
        _inference(all_of_them, [name for name in all_of_them.taking_part() if name in inference], rounds, limits, say)
        for name in all_of_them.taking_part() if operations else []:
            if entries[name].environment.get("KERAS_BACKEND") != "tensorflow":  # whose profiler it is
                continue
            if (answer := ask(name, limits.setup, "profiling", do="operations")) is not None:
                found[name]["operations"] = answer["microseconds"]
    return {"data": data, "contenders": found}


def _inference(all_of_them: _Round, names: Sequence[str], rounds: int, limits: Limits, say: Callable[[str], None]) -> None:
    """Adds seconds of `evaluate` and `predict` in each round, for few and for many examples."""
    for what in ("evaluate", "predict"):
        for size, rows in _EXAMPLES.items():
            for turn in range(rounds):
                say(f"{what} {rows:,} examples, round {turn + 1} of {rounds}")
                for name in names:
                    if name not in all_of_them.taking_part():
                        continue
                    calls = 3 if size == "small" else 1
                    answer = all_of_them.turn(name, limits.setup, what, do="inference", what=what, rows=rows, calls=calls)
                    if answer is not None and answer["seconds"] is not None:
                        kept = all_of_them.found[name].setdefault("inference", {}).setdefault(what, {})
                        kept.setdefault(size, {"examples": rows, "seconds": []})["seconds"].append(answer["seconds"])


def first_steps(
    row: Row,
    entries: Mapping[str, Entry],
    *,
    rounds: int,
    fits: int = 2,
    limits: Limits = Limits(),
    turns: Turns | None = None,
    python: str = sys.executable,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Has contenders fit a new model in each round, each twice, taking turns.

    Returns:
        "contenders": name -> "ended", "versions", and "fits": for each round the seconds to the first step and to the end of each fit.
    """
    which = {"workload": row.workload, "batch_size": row.batch_size, "source": row.source, "rows": None}
    with processes(entries, python) as started:
        all_of_them = _Round(started, turns or Turns(None))
        for name in entries:
            all_of_them.ask(name, limits.setup, "importing")
        for turn in range(rounds):
            say(f"{row.name}: fitting, round {turn + 1} of {rounds}")
            for name in all_of_them.taking_part():
                answer = all_of_them.turn(name, limits.setup, f"round {turn + 1}", do="first_step", fits=fits, **which)
                if answer is not None:
                    all_of_them.found[name]["versions"] = answer["versions"]
                    all_of_them.found[name].setdefault("fits", []).append(answer["fits"])
    return {"contenders": all_of_them.found}
