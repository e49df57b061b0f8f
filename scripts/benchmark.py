"""Measures training speed side by side: `model.fit`, other libraries, loops written by hand, and `loops`, on the same models and data.

    python scripts/benchmark.py --json=measured.json                     # everything, an hour on an idle machine
    python scripts/benchmark.py --json=measured.json --missing           # the rows that the file does not hold of as many rounds
    python scripts/benchmark.py --workloads=mlp_sgd --sources=arrays --rounds=3    # one workload
    python scripts/benchmark.py --contenders=fit,loops --markdown
    python scripts/benchmark.py --python=~/other/bin/python              # where PyTorch, Lightning, JAX and optax are installed
    python scripts/benchmark.py --batch_sizes=32,128,512                 # each workload in each batch size
    python scripts/benchmark.py --contenders=loops_auto,products         # beside the matrix products alone, in NumPy
    python scripts/benchmark.py --contenders=loops,loops_xla --operations=8        # what a step of each is made of
    python scripts/benchmark.py --first_step                             # instead: seconds from `fit` to its first step, twice
    python scripts/benchmark_report.py measured.json                     # then: the tables and the picture of docs/benchmarks.md

Each contender runs in a process of its own, and one of them at a time: they take turns, round after round, so that a machine that becomes
slower does so for all. A ratio is formed within each round; shown is the median over the rounds. Compiling and first epochs come before the
first round and do not count. Nor does a turn before or after which the machine was slower than at its best: it is taken again, as long as
--patience lasts. A process that crashes or hangs is a line in the table, and the others go on.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import pathlib
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from research import command_line
from research.benchmarks import registry, tables, turns
from research.benchmarks.machine_speed import MachineSpeed, Turns
from research.benchmarks.measurements import Measurements
from research.benchmarks.registry import Row
from research.study import InputError

_FIRST_STEP_ROWS = ("mlp_sgd", "wide_deep", "conv")
_INFERENCE_ROWS = ("mlp_sgd", "conv", "wide_deep")


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_list("workloads", [], "Workloads; all if none is given.", flag_values=values)
    flags.DEFINE_list("sources", [], "arrays, tf.data; both if none is given.", flag_values=values)
    flags.DEFINE_list("batch_sizes", [], "Batch sizes; those that are planned for a workload if none is given.", flag_values=values)
    flags.DEFINE_list("contenders", [], "Contenders; those that are planned for a row if none is given.", flag_values=values)
    flags.DEFINE_integer("rounds", 7, "Rounds; a ratio is the median over them.", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "seconds", 0.35, "Shortest time that a contender runs in a round; it ends whole epochs.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "patience",
        90.0,
        "Seconds that a row may spend on waiting for the full speed of the machine and on turns without it; 0 to count every turn.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer("rows", None, "Examples of every workload, for a quick look.", lower_bound=32, flag_values=values)
    flags.DEFINE_bool("inference", True, "Measure evaluation and prediction too, in some rows.", flag_values=values)
    flags.DEFINE_integer(
        "operations", 0, "Kinds of operations to show of an epoch of each contender, the dearest first.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool(
        "first_step", False, "Measure the time to the first step of a first and a second fit instead of rates.", flag_values=values
    )
    flags.DEFINE_string("python", sys.executable, "Interpreter of the contenders' processes.", flag_values=values)
    flags.DEFINE_float("limit", 300.0, "Seconds after which a process that does not answer is ended.", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("markdown", False, "Print tables in Markdown.", flag_values=values)
    flags.DEFINE_string("json", None, "File for all that was measured, to which the rows are added one by one.", flag_values=values)
    flags.DEFINE_bool("missing", False, "Leave out the rows that the file holds, of no fewer and no shorter rounds.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    file = Measurements(args.json)
    part = "first_step" if args.first_step else "rows"
    rows = _first_step_rows(args) if args.first_step else _rows(args)
    if args.contenders:
        _check(args.contenders, registry.FIRST_STEP if args.first_step else registry.CONTENDERS, "contender")
    done: dict[str, Any] = {}
    print(_machine_line(_machine()), flush=True)
    for row in rows:
        if args.missing and file.holds(part, row.name, args.rounds, args.seconds):
            continue
        found = _first_step(row, args) if args.first_step else _rates(row, args)
        _say("")
        done[row.name] = found["contenders"]
        file.add(part, row.name, found)
        table = tables.first_step_table if args.first_step else tables.row_table
        print(f"\n{row.name}: {found.get('data', {}).get('title', '')}".rstrip(": "))
        print(*table(found["contenders"], args.markdown), sep="\n", flush=True)
        if lines := tables.inference_table(found["contenders"], args.markdown):
            print("", *lines, sep="\n", flush=True)
        for name, what in found["contenders"].items():
            if "operations" in what:
                lines = tables.operations_table(what["operations"], args.operations, args.markdown)
                print(f"\nmicroseconds a step of {name}, by operation", *lines, sep="\n", flush=True)
    if len(done) > 1 and not args.first_step:
        print("\ngeometric mean of the ratios over the rows", *tables.mean_table(done, args.markdown), sep="\n")
    return 0


def _rates(row: Row, args: flags.FlagValues) -> dict[str, Any]:
    names = args.contenders or registry.contenders_of(row)
    evaluating = args.inference and not args.contenders and row.name in [f"{name}@32" for name in _INFERENCE_ROWS]
    run, limits = _run(args), turns.Limits(setup=args.limit, turn=min(args.limit, turns.Limits().turn))
    counted = _turns(args)
    found = turns.measure(
        row,
        {name: registry.CONTENDERS[name] for name in names},
        rows=args.rows,
        rounds=args.rounds,
        seconds=args.seconds,
        inference=registry.INFERENCE if evaluating else (),
        operations=args.operations > 0,
        limits=limits,
        turns=counted,
        python=args.python,
        say=_say,
    )
    return {**found, "row": _described(row), "run": _ended(run, found["contenders"], counted)}


def _first_step(row: Row, args: flags.FlagValues) -> dict[str, Any]:
    names = args.contenders or registry.FIRST_STEP
    run, entries = _run(args), {name: registry.CONTENDERS[name] for name in names}
    limits, counted = turns.Limits(setup=args.limit), _turns(args)
    found = turns.first_steps(row, entries, rounds=args.rounds, limits=limits, turns=counted, python=args.python, say=_say)
    return {**found, "row": _described(row), "run": _ended(run, found["contenders"], counted)}


def _turns(args: flags.FlagValues) -> Turns:
    return Turns(_speed() if args.patience else None, args.patience)


@functools.cache
def _speed() -> MachineSpeed:
    """One for all rows: what is fast is seen once."""
    return MachineSpeed()


def _described(row: Row) -> dict[str, Any]:
    return {"workload": row.workload, "batch_size": row.batch_size, "source": row.source}


def _rows(args: flags.FlagValues) -> list[Row]:
    """The planned rows that were asked for; if batch sizes are given, each workload in each of them."""
    workloads = _check(args.workloads, dict.fromkeys(row.workload for row in registry.PLAN), "workload")
    sources = _check(args.sources, ("arrays", "tf.data"), "source")
    if wrong := [size for size in args.batch_sizes if not size.isdecimal() or int(size) < 1]:
        raise InputError(f"--batch_sizes has {wrong[0]!r}, which is no number of examples.")
    if not args.batch_sizes:
        return [row for row in registry.PLAN if row.workload in workloads and row.source in sources]
    sizes = [int(size) for size in args.batch_sizes]
    return [Row(name, size, source) for source in args.sources or ["arrays"] for size in sizes for name in workloads]


def _first_step_rows(args: flags.FlagValues) -> list[Row]:
    return [Row(name) for name in _check(args.workloads or _FIRST_STEP_ROWS, {row.workload: None for row in registry.PLAN}, "workload")]


def _check(names: Sequence[str], known: Sequence[str] | Mapping[str, Any], what: str) -> list[str]:
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"There is no {what} {unknown[0]!r}; there are {', '.join(known)}.")
    return list(names or known)


# Where and when


def _run(args: flags.FlagValues) -> dict[str, Any]:
    """How a row is measured, for the file."""
    given = [args[name].serialize() for name in args if args[name].present and name not in ("json", "missing", "python")]
    command = " ".join(["python", "scripts/benchmark.py", *given])
    return {"command": command, "date": _now(), "machine": _machine(), "load": _load(), "rounds": args.rounds, "seconds": args.seconds}


def _ended(run: dict[str, Any], contenders: Mapping[str, Mapping[str, Any]], counted: Turns) -> dict[str, Any]:
    versions: dict[str, str] = {}
    for what in contenders.values():
        versions |= what.get("versions", {})
    slow = {"repeated": counted.repeated, "disturbed": counted.disturbed}
    return {**run, "ended": _now(), "load": [run["load"], _load()], "turns": slow, "versions": versions}


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = platform.processor()
    with contextlib.suppress(OSError):
        names = [line for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(": ")[2] if names else processor
    return {
        "cores": cores,
        "processor": processor,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _machine_line(machine: Mapping[str, Any]) -> str:
    return "{cores} cores ({processor}), {system}, Python {python}".format(**machine) + f", load {_load()} at the start"


def _load() -> float:
    return round(os.getloadavg()[0], 2)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")


def _say(text: str) -> None:
    """What goes on, in one line on a terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no process is left then
    sys.exit(command_line.run(main, define_flags, sys.argv))
