"""Measures training speed side by side: `model.fit`, loops written by hand, and `loops`, on the same models and data.

    python scripts/benchmark.py                                          # everything, half an hour on an idle machine
    python scripts/benchmark.py --workloads=mlp_sgd --rounds=3           # one workload
    python scripts/benchmark.py --contenders=fit,loops --markdown
    python scripts/benchmark.py --peers=torch,lightning,jax              # those that are installed join
    python scripts/benchmark.py --batch_sizes=32,128,512                 # each workload in each batch size
    python scripts/benchmark.py --contenders=loops_xla,products          # beside the matrix products alone, in NumPy
    python scripts/benchmark.py --contenders=loops,loops_xla --operations=8    # what a step of each is made of
    python scripts/benchmark.py --first_step                             # instead: seconds from `fit` to its first step, twice

Contenders take turns, round after round, so that a machine that becomes slower does so for all. A ratio is formed within each round; shown
is the median over the rounds. Compiling and a first epoch come before the first round and do not count.
"""

from __future__ import annotations

import gc
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from research import command_line
from research.study import InputError

if TYPE_CHECKING:
    from research.benchmarks.contenders import Contender
    from research.benchmarks.workloads import Workload

Rates = dict[str, list[float]]  # contender -> steps per second in each round
Fits = list[tuple[float, float]]  # of each fit of a model the seconds to its first step, and to its end

GRAPH_FITS = ("fit", "fit_50", "fit_200")
FITS = (*GRAPH_FITS, "fit_50_xla")
DEFAULT_CONTENDERS = (*FITS, "eager", "while", "while_xla", "loops", "loops_hooks", "loops_xla", "loops_xla_hooks")
PAIRS = (
    ("loops", "while"),
    ("loops_xla", "while_xla"),
    ("loops_guarded", "loops"),
    ("loops_buffer_guarded", "loops_buffer"),
    ("loops_hooks", "loops"),
    ("loops_xla_hooks", "loops_xla"),
    ("loops_snapshots", "loops_hooks"),
)
PEERS = ("torch", "lightning", "jax")
COLUMNS = {"vs fit": ("fit",), "vs best graph fit": GRAPH_FITS, "vs best fit": FITS, "vs best peer": PEERS}


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_list("workloads", [], "Workloads; all if none is given.", flag_values=values)
    flags.DEFINE_list("contenders", list(DEFAULT_CONTENDERS), "Contenders.", flag_values=values)
    flags.DEFINE_list("peers", [], "torch, lightning, jax: joined by those that are installed.", flag_values=values)
    flags.DEFINE_list("batch_sizes", [], "Batch sizes; that of the workload if none is given.", flag_values=values)
    flags.DEFINE_integer("rounds", 7, "Rounds; a ratio is the median over them.", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "seconds", 2.0, "Shortest time that a contender runs in a round; it ends whole epochs.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer("rows", None, "Examples of every workload, for a quick look.", lower_bound=32, flag_values=values)
    flags.DEFINE_integer(
        "operations", 0, "Kinds of operations to show of an epoch of each contender, the dearest first.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_bool(
        "first_step", False, "Measure the time to the first step of a first and a second fit instead of rates.", flag_values=values
    )
    flags.DEFINE_bool("markdown", False, "Print tables in Markdown.", flag_values=values)
    flags.DEFINE_string("json", None, "File for all that was measured.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    with command_line.quiet_tensorflow():
        from research.benchmarks.contenders import CONTENDERS
        from research.benchmarks.limit import Products
        from research.benchmarks.workloads import WORKLOADS

    workloads = _sized(_chosen(args.workloads, WORKLOADS, "workload"), args.batch_sizes, args.rows)
    if args.first_step:
        return _first_steps(workloads, args)
    contenders = _chosen(args.contenders, {**CONTENDERS, "products": Products}, "contender")
    if args.peers:
        from research.benchmarks import peers

        contenders |= _installed(_chosen(args.peers, peers.PEERS, "peer"))
    print(_machine_line(machine := _machine()), flush=True)
    measured: dict[str, Rates] = {}
    for name, workload in workloads.items():
        profiles: dict[str, dict[str, float]] = {}
        measured[name] = measure(
            workload, contenders, rounds=args.rounds, seconds=args.seconds, profiles=profiles if args.operations else None
        )
        print(f"\n{name}: {workload.title}", *table(measured[name], args.markdown), sep="\n", flush=True)
        for contender, spent in profiles.items():
            print(f"\nmicroseconds a step of {contender}, by operation", *operations_table(spent, args.operations, args.markdown), sep="\n")
    if len(measured) > 1:
        print("\ngeometric mean of the ratios over the workloads", *mean_table(measured, args.markdown), sep="\n")
    if args.json:
        settings = {"rounds": args.rounds, "seconds": args.seconds, "rows": args.rows}
        _write_json(pathlib.Path(args.json), {"machine": machine, "settings": settings, "workloads": summaries(measured)})
    return 0


def _first_steps(workloads: Mapping[str, Workload], args: flags.FlagValues) -> int:
    from research.benchmarks import first_step

    print(_machine_line(machine := _machine()), flush=True)
    measured: dict[str, dict[str, list[Fits]]] = {}
    for name, workload in workloads.items():
        _say(f"fitting {name}")
        measured[name] = {
            contender: [[(one.first_step, one.whole) for one in fits] for fits in rounds]
            for contender, rounds in first_step.measure(workload, args.rounds).items()
        }
        _say("")
        print(f"\n{name}: {workload.title}", *first_step_table(measured[name], args.markdown), sep="\n", flush=True)
    if args.json:
        _write_json(pathlib.Path(args.json), {"machine": machine, "settings": {"rounds": args.rounds}, "first_step": measured})
    return 0


# Measuring


def measure(
    workload: Workload,
    contenders: Mapping[str, Any],
    *,
    rounds: int,
    seconds: float,
    profiles: dict[str, dict[str, float]] | None = None,
) -> Rates:
    """Sets all contenders up, then has them take turns.

    Args:
        workload: what to train.
        contenders: name -> function that makes a contender.
        rounds: number of turns of each.
        seconds: shortest duration of a turn.
        profiles: filled after the last round with what the steps of each contender are made of, if it is given.

    Returns:
        contender -> steps per second in each round. Without those that do not fit the workload.
    """
    rates: Rates = {}
    with tempfile.TemporaryDirectory() as directory:
        ready: dict[str, tuple[Contender, int]] = {}
        for name, make in contenders.items():
            contender = make()
            if contender.stock_xla and workload.convolutions:
                continue
            _say(f"setting up {name}")
            (folder := pathlib.Path(directory, name)).mkdir()
            contender.setup(workload, folder)
            ready[name] = contender, max(1, math.ceil(seconds / contender.run(1).seconds))
            rates[name] = []
        turns = list(ready)
        for turn in range(rounds):
            _say(f"round {turn + 1} of {rounds}")
            gc.collect()
            for name in turns[turn % len(turns) :] + turns[: turn % len(turns)]:
                contender, epochs = ready[name]
                rates[name].append(contender.run(epochs).rate)
        if profiles is not None:
            from research.benchmarks.profile import operations

            found = ((name, operations(contender)) for name, (contender, _) in ready.items())
            profiles.update((name, spent) for name, spent in found if spent)
        _say("")
    return rates


# Ratios


def best(rates: Rates, names: Sequence[str]) -> str | None:
    """The contender among `names` with the highest median, None if none of them ran."""
    return max((name for name in names if name in rates), key=lambda name: statistics.median(rates[name]), default=None)


def ratio(rates: Rates, name: str, reference: str | None) -> float | None:
    """Median over the rounds of how many times faster `name` was than `reference` in that round."""
    if reference is None or name not in rates or reference not in rates:
        return None
    return statistics.median(mine / other for mine, other in zip(rates[name], rates[reference], strict=True))


def ratios(rates: Rates) -> dict[str, dict[str, float | None]]:
    """Column -> contender -> ratio; the columns of the table that have something to be compared with, and one for each pair."""
    references = {title: reference for title, names in COLUMNS.items() if (reference := best(rates, names)) is not None}
    columns = {title: {name: ratio(rates, name, reference) for name in rates} for title, reference in references.items()}
    partner = dict(PAIRS)
    return {**columns, "vs its like": {name: ratio(rates, name, partner.get(name)) for name in rates}}


# Showing


def table(rates: Rates, markdown: bool = False) -> list[str]:
    """Lines of the table of one workload."""
    columns = ratios(rates)
    rows = [
        [name, f"{statistics.median(values):,.0f}", f"{_spread(values):.0%}", *(_times(column[name]) for column in columns.values())]
        for name, values in rates.items()
    ]
    return _aligned([["contender", "steps/s", "spread", *columns], *rows], markdown) + _legend(rates)


def first_step_table(measured: Mapping[str, list[Fits]], markdown: bool = False) -> list[str]:
    """Lines of the table of first steps: medians over the rounds, in milliseconds.

    Args:
        measured: contender -> for each round the seconds to the first step and to the end, of the first and of the second fit.
        markdown: whether to print Markdown.
    """
    rows = []
    for name, rounds in measured.items():
        cells = [statistics.median(fits[fit][what] for fits in rounds) for fit in (0, 1) for what in (0, 1)]
        rows.append([name, *(f"{1000 * seconds:,.0f}" for seconds in cells)])
    titles = ["contender", "1st fit: first step, ms", "all of it", "2nd fit: first step, ms", "all of it"]
    return _aligned([titles, *rows], markdown)


def mean_table(measured: Mapping[str, Rates], markdown: bool = False) -> list[str]:
    """Lines of the table of geometric means; a contender's mean is over the workloads in which it has the ratio."""
    by_workload = [ratios(rates) for rates in measured.values()]
    names = list(dict.fromkeys(name for rates in measured.values() for name in rates))
    rows = []
    for name in names:
        means = []
        for column in by_workload[0]:
            values = [value for r in by_workload if (value := r.get(column, {}).get(name)) is not None]
            means.append(_times(statistics.geometric_mean(values) if values else None))
        rows.append([name, str(sum(name in rates for rates in measured.values())), *means])
    return _aligned([["contender", "workloads", *by_workload[0]], *rows], markdown)


def operations_table(spent: Mapping[str, float], most: int, markdown: bool = False) -> list[str]:
    """Lines of the table of what a step is made of: `most` kinds of operations, and the rest."""
    rows = [[kind, f"{microseconds:,.1f}"] for kind, microseconds in list(spent.items())[:most]]
    rest = sum(list(spent.values())[most:])
    return _aligned([["operation", "µs"], *rows, ["all others", f"{rest:,.1f}"]], markdown)


def summaries(measured: Mapping[str, Rates]) -> dict[str, Any]:
    """All that was measured, for the JSON file."""
    return {
        workload: {
            "rates": rates,
            "medians": {name: statistics.median(values) for name, values in rates.items()},
            "best graph fit": best(rates, GRAPH_FITS),
            "best fit": best(rates, FITS),
            "ratios": ratios(rates),
        }
        for workload, rates in measured.items()
    }


def _legend(rates: Rates) -> list[str]:
    partners = [f"{mine} vs {like}" for mine, like in PAIRS if mine in rates and like in rates]
    notes = [f"best graph fit: {best(rates, GRAPH_FITS)}; best fit: {best(rates, FITS)}"] if best(rates, FITS) else []
    notes += [f"best peer: {best(rates, PEERS)}"] if best(rates, PEERS) else []
    return notes + ([f"its like: {', '.join(partners)}"] if partners else [])


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _spread(values: Sequence[float]) -> float:
    """How far the slowest and the fastest round are apart, as a part of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def _aligned(rows: list[list[str]], markdown: bool) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))] for row in rows]
    if not markdown:
        return ["  ".join(row).rstrip() for row in cells]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return ["| " + " | ".join(row) + " |" for row in [cells[0], rule, *cells[1:]]]


def _machine() -> dict[str, Any]:
    import keras
    import tensorflow as tf

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    return {"cores": cores, "system": f"{platform.system()} {platform.machine()}", **versions, "load": round(os.getloadavg()[0], 2)}


def _machine_line(machine: Mapping[str, Any]) -> str:
    return "{cores} cores, {system}, Python {python}, TensorFlow {tensorflow}, Keras {keras}, load {load} at the start".format(**machine)


def _chosen(names: Sequence[str], known: Mapping[str, Any], what: str) -> dict[str, Any]:
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"There is no {what} {unknown[0]!r}; there are {', '.join(known)}.")
    return {name: known[name] for name in names or known}


def _sized(workloads: Mapping[str, Workload], batch_sizes: Sequence[str], rows: int | None) -> dict[str, Workload]:
    """The workloads in all batch sizes, named by both if there are any."""
    if wrong := [size for size in batch_sizes if not size.isdecimal() or int(size) < 1]:
        raise InputError(f"--batch_sizes has {wrong[0]!r}, which is no number of examples.")
    if not batch_sizes:
        return {name: workload.resized(rows=rows) for name, workload in workloads.items()}
    return {f"{name}@{size}": w.resized(rows=rows, batch_size=int(size)) for name, w in workloads.items() for size in batch_sizes}


def _installed(peers: Mapping[str, Any]) -> dict[str, Any]:
    from importlib.util import find_spec

    present = {name: make for name, make in peers.items() if find_spec(name)}
    if missing := sorted(set(peers) - set(present)):
        print(f"Not installed, left out: {', '.join(missing)}.")
    return present


def _say(text: str) -> None:
    """What goes on, in one line on a terminal that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from error


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
