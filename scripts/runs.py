"""Looks at runs: which there are and how good they became, what their snapshots hold, and in what two of them differ.

    python scripts/runs.py list runs --sort=val_loss                   # one line a run: what differs in their configs, state, best epoch
    python scripts/runs.py best runs --metric=val_accuracy
    python scripts/runs.py compare runs/first runs/second              # a table, and their curves in one picture
    python scripts/runs.py remove runs/first                           # asks first; never one that is running
    python scripts/runs.py snapshots runs/first                        # verifies each, and says what it holds
    python scripts/runs.py diff runs/first runs/second                 # the newest whole one of each
    python scripts/runs.py diff runs/first/snapshots/900 runs/first/snapshots/1800 --all

Exit codes: `snapshots` 0 if all are whole, 1 if one is damaged; `diff` 0 if the two are equal, bit for bit, 1 if not; `remove` 1 if a run
was kept; 2 if something could not be found out. All but `remove` only read, and may be used while a run goes on.
"""

from __future__ import annotations

import datetime
import importlib.util
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

if __name__ == "__main__" and (loops := importlib.util.find_spec("loops")):
    # Only the package's own search path: what its __init__ imports would start TensorFlow, which takes seconds and is not needed here.
    sys.modules["loops"] = importlib.util.module_from_spec(loops)

from loops.snapshots.diff import compare
from loops.snapshots.files import verify
from loops.snapshots.manifest import MANIFEST, TENSORS
from loops.snapshots.store import DamagedSnapshot, Manifest, Retention, SnapshotStore
from research import command_line, run_tables
from research.study import InputError

SNAPSHOTS = "snapshots"

# Of two runs with the same numbers, this may differ.
_INCIDENTAL = re.compile(
    r"array 'trace/|state\['(trace|looks)'\]|state\['progress'\]\['seconds'\]|state\S*\['(in_flight|kept)'\]"
    r"|state\['hooks'\]\['(TensorBoard|ProgressBar)"
)
COMMANDS = {
    "list": ["FOLDER"],
    "best": ["FOLDER"],
    "compare": ["A", "B", "..."],
    "remove": ["A", "..."],
    "snapshots": ["WORKDIR"],
    "diff": ["A", "B"],
}


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("metric", None, "Which metric makes a run good. Default: val_loss, else loss.", flag_values=values)
    flags.DEFINE_enum("mode", None, ["min", "max"], "Whether a small or a large metric is good; told by its name.", flag_values=values)
    flags.DEFINE_string("sort", None, "list: the column to sort by, with a - in front the other way round.", flag_values=values)
    flags.DEFINE_enum("format", "text", run_tables.FORMATS, "list: how the table is written.", flag_values=values)
    flags.DEFINE_string("out", "compare.png", "compare: where the picture goes.", flag_values=values)
    flags.DEFINE_bool("yes", False, "remove: does not ask.", flag_values=values)
    flags.DEFINE_bool("all", False, "diff: say everything that differs, not only what is first.", flag_values=values)
    flags.DEFINE_bool(
        "incidental",
        False,
        "diff: compare also what depends on the clock and the folder, and decides no number: times, who has looked when, event files.",
        flag_values=values,
    )


def program(argv: Sequence[str]) -> int:
    """Does what a command line says.

    Args:
        argv: the program's name, a command, its arguments, and flags anywhere between them.

    Returns:
        The exit code.
    """
    words = [word for word in argv[1:] if not word.startswith("-")]

    def main(args: flags.FlagValues) -> int:
        if not words or words[0] not in COMMANDS:
            said = f"There is no command {words[0]!r}: say" if words else "Say what to do:"
            *ways, last = (" ".join([name, *takes]) for name, takes in COMMANDS.items())
            raise InputError(f"{said} {', '.join(ways)} or {last}; see --help.")
        command, *given = words
        takes = [name for name in COMMANDS[command] if name != "..."]
        if len(given) < len(takes) or (len(given) > len(takes) and takes == COMMANDS[command]):
            raise InputError(f"{command} takes {' '.join(COMMANDS[command])}; got {' '.join(given) or 'nothing'}.")
        try:
            return _done(command, given, args)
        except (DamagedSnapshot, OSError, ValueError) as error:
            raise InputError(str(error)) from error

    return command_line.run(main, define_flags, [argv[0], *(word for word in argv[1:] if word.startswith("-"))])


def _done(command: str, given: list[str], args: flags.FlagValues) -> int:
    """Does a command and returns the exit code."""
    by = {"metric": args.metric, "mode": args.mode}
    if command == "list":
        return run_tables.list_runs(*given, sort=args.sort, format=args.format, **by)
    if command == "best":
        return run_tables.best_run(*given, **by)
    if command == "compare":
        return run_tables.compare_runs(given, out=args.out, **by)
    if command == "remove":
        return run_tables.remove_runs(given, yes=args.yes)
    if command == "snapshots":
        return snapshots(*given)
    return diff(*given, every=args.all, incidental=args.incidental)


def snapshots(workdir: str) -> int:
    """Prints a table of the snapshots in a workdir; returns 1 if one is damaged, else 0."""
    store = _store(pathlib.Path(workdir))
    found: dict[int, Manifest | DamagedSnapshot] = {}
    for step in store.steps():
        try:
            found[step] = store.verify(step)
        except FileNotFoundError:
            continue  # a run that goes on has deleted it meanwhile
        except DamagedSnapshot as error:
            if error.directory.exists():
                found[step] = error
    whole = {step: manifest for step, manifest in found.items() if isinstance(manifest, Manifest)}
    kept: dict[int, list[str]] = {}
    if whole:
        retention = Retention.from_dict(whole[max(whole)].retention)
        best = retention.best
        kept = retention.kept({step: best.value(whole[step].info) if best and step in whole else None for step in found})
    rows = [["step", "epoch", "written", "size", "kept as", "metrics"]]
    rows += [[f"{step:,}", *_described(store, step, what, kept.get(step, []))] for step, what in found.items()]
    print(_table(rows))
    aside = sorted(path for path in store.directory.iterdir() if re.fullmatch(r"damaged-\d+(-\d+)?", path.name))
    for path in aside:
        print(f"Set aside: {path.name} ({_state_of(path)})")
    print(f"{len(found)} in {store.directory}: {len(whole)} whole, {len(found) - len(whole)} damaged, {len(aside)} set aside.")
    return int(len(whole) < len(found))


def diff(a: str, b: str, *, every: bool, incidental: bool) -> int:
    """Prints the first difference between two snapshots, or every one; returns 1 if there is one, else 0."""
    pair = []
    for name, given in (("A", a), ("B", b)):
        path, manifest = _snapshot(pathlib.Path(given))
        print(f"{name}: {path} (step {manifest.step:,}, {run_tables.size(manifest.nbytes)})")
        pair.append((path, manifest))
    comparison = compare(*pair) if incidental else compare(*pair).without(_INCIDENTAL)
    if comparison.differences:
        print("\n".join(comparison.differences if every else [f"First: {comparison.differences[0]}."]))
    print(comparison.summary())
    return int(bool(comparison.differences))


def _store(path: pathlib.Path) -> SnapshotStore:
    """The snapshots of a workdir, or those of the folder that they are in."""
    if not path.is_dir():
        raise InputError(f"There is no folder {str(path)!r}.")
    store = SnapshotStore(path / SNAPSHOTS if (path / SNAPSHOTS).is_dir() else path)
    if not store.steps():
        raise InputError(f"There are no snapshots in {str(store.directory)!r}; give the workdir of a run that has saved some.")
    return store


def _snapshot(path: pathlib.Path) -> tuple[pathlib.Path, Manifest]:
    """The snapshot that a path means: itself, or the newest whole one of a workdir."""
    if any((path / name).exists() for name in (MANIFEST, TENSORS)):
        return path, verify(path, None)
    store = _store(path)
    for step in reversed(store.steps()):
        try:
            return store.path(step), store.verify(step)
        except DamagedSnapshot as error:
            print(f"{error} The one before is compared.", file=sys.stderr)
    raise InputError(f"None of the snapshots in {str(store.directory)!r} is whole.")


def _described(store: SnapshotStore, step: int, what: Manifest | DamagedSnapshot, kept: list[str]) -> list[str]:
    """The cells behind the step."""
    if isinstance(what, DamagedSnapshot):
        return ["", "", "", "", f"DAMAGED: {what.reason}"]
    when = what.info.get("time") or (store.path(step) / MANIFEST).stat().st_mtime
    logs = what.info.get("logs") or {}
    metrics = [f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, int | float)]
    return [
        str(what.info["epoch"] + 1 if "epoch" in what.info else ""),
        f"{datetime.datetime.fromtimestamp(when):%Y-%m-%d %H:%M:%S}",
        run_tables.size(what.nbytes),
        ", ".join(kept),
        ", ".join(metrics),
    ]


def _state_of(path: pathlib.Path) -> str:
    try:
        manifest = verify(path, int(path.name.split("-")[1]))
    except DamagedSnapshot as error:
        return error.reason
    return f"whole, {run_tables.size(manifest.nbytes)}"


def _table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned: list[Any] = [str.rjust, str.rjust, str.ljust, str.rjust, str.ljust, str.ljust]
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(program(sys.argv))
