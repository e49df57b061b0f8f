"""Tables and pictures of many runs, and their removal: what `scripts/runs.py` does with the workdirs that `run_folders` reads."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from loops.errors import WorkdirInUse
from loops.run.workdir_lock import WorkdirLock
from research import run_folders
from research.run_folders import RunFolder
from research.study import InputError

__all__ = ["as_text", "best_run", "compare_runs", "list_runs", "remove_runs", "size"]

FORMATS = ("text", "csv", "json")


def list_runs(folder: str, *, metric: str | None, mode: str | None, sort: str | None, format: str) -> int:
    """Prints a table of all runs below a folder.

    Args:
        folder: where to look.
        metric: by which the best epoch is found; None takes "val_loss", or "loss" where that is missing.
        mode: "min" or "max"; None goes by the name of the metric.
        sort: name of a column, or of the metric, by which the best comes first; "-" before it turns the order round. None sorts by name.
        format: "text", "csv" or "json".

    Returns:
        The exit code.
    """
    runs = _runs(folder)
    metric = metric or _common_metric(runs)
    mode = _mode(metric, mode, runs)
    rows = _rows(runs, metric, mode)
    if sort is not None:
        column, largest_first = sort.removeprefix("-"), sort.startswith("-")
        if column == metric:
            column, largest_first = f"best {metric}", largest_first != (mode == "max")
        if column not in rows[0]:
            raise InputError(f"There is no column {column!r} to sort by; there are {', '.join(rows[0])}.")
        known = [row for row in rows if row[column] not in (None, "")]
        known.sort(key=lambda row: _sortable(row[column]), reverse=largest_first)
        rows = known + [row for row in rows if row[column] in (None, "")]
    print(_formatted(rows, format))
    return 0


def best_run(folder: str, *, metric: str | None, mode: str | None) -> int:
    """Prints the run whose metric became best, and how it differs from the others; returns the exit code."""
    runs = _runs(folder)
    metric = metric or _common_metric(runs)
    mode = _mode(metric, mode, runs)
    reached = {run.name: found for run in runs if (found := run.best(metric, mode)) is not None}
    if not reached:
        raise InputError(f"No run below {folder!r} has a finite {metric!r}.")
    name = (min if mode == "min" else max)(reached, key=lambda name: reached[name][1])
    run, (epoch, value) = next(run for run in runs if run.name == name), reached[name]
    print(f"{run.path}: {metric} {value:.6g} in epoch {epoch + 1} of {run.epochs}, the {mode}imum of {len(reached)} runs")
    for setting in run_folders.differing(runs):
        print(f"  {setting}: {_cell(run.settings.get(setting))}")
    weights = run.path / "checkpoints" / "best.weights.h5"
    if weights.exists():
        print(f"  weights: {weights}")
    return 0


def compare_runs(workdirs: Sequence[str], *, metric: str | None, mode: str | None, out: str) -> int:
    """Prints in what runs differ and how good they became, and draws their curves into one picture; returns the exit code."""
    runs = []
    for workdir in workdirs:
        found = run_folders.read(pathlib.Path(workdir), name=workdir)
        if found is None:
            raise InputError(f"{workdir!r} is no workdir of a run.")
        runs.append(found)
    metric = metric or _common_metric(runs)
    print(as_text(_rows(runs, metric, _mode(metric, mode, runs))))
    curves = {}
    for run in runs:
        if metric in run.history:
            epochs, values = run.history[metric]
            curves[run.name] = [epoch + 1 for epoch in epochs], values
    if not curves:
        raise InputError(f"None of these runs has logged {metric!r}; they have {', '.join(_metrics(runs)) or 'no history'}.")
    from research.pictures import plots  # matplotlib takes a second to import

    try:
        plots.lines(curves, x="epoch", y=metric, title=metric).savefig(out, dpi=120)
    except (OSError, ValueError) as error:
        raise InputError(f"The picture cannot be written to {out!r} ({error}).") from error
    print(f"Curves: {out}")
    return 0


def remove_runs(workdirs: Sequence[str], *, yes: bool, ask: Callable[[str], str] = input) -> int:
    """Deletes runs with all that is in their workdirs, after a question; one that is running is left alone.

    Args:
        workdirs: folders of runs, or of comparisons.
        yes: whether to delete without asking.
        ask: asks the user.

    Returns:
        0 if all were deleted, else 1.
    """
    given = [pathlib.Path(workdir) for workdir in workdirs]
    for path in given:
        if not _is_ours(path):
            raise InputError(f"{str(path)!r} is no workdir of a run, so it is not removed.")
    kept = 0
    for path in given:
        inside = run_folders.find(path)
        told = f"{path} ({len(inside)} run{'' if len(inside) == 1 else 's'}, {size(sum(run.nbytes for run in inside))})"
        with contextlib.ExitStack() as locks:
            try:
                for run in inside:
                    locks.enter_context(WorkdirLock(run.path))
            except WorkdirInUse as error:
                print(f"Not removed: {error}")
                kept += 1
                continue
            if not yes and ask(f"Remove {told} for good? [y/N] ").strip().lower() not in ("y", "yes"):
                print(f"Kept: {path}")
                kept += 1
                continue
            shutil.rmtree(path)
        print(f"Removed: {told}")
    return int(kept > 0)


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same columns as an aligned table; columns of numbers are aligned to the right."""
    names = list(rows[0])
    cells = [[_cell(row[name], name) for name in names] for row in rows]
    right = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)]
    lines = [[*names], *cells]
    return "\n".join(
        "  ".join(text.rjust(width) if r else text.ljust(width) for text, width, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def size(nbytes: int) -> str:
    """A number of bytes in words."""
    found, unit = next(((nbytes / of, unit) for of, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")) if nbytes >= of), (nbytes, "B"))
    return f"{found:.3g} {unit}"


def _runs(folder: str) -> list[RunFolder]:
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise InputError(f"There is no folder {folder!r}.")
    runs = run_folders.find(path)
    if not runs:
        raise InputError(f"There are no runs below {folder!r}; scripts/train.py --workdir=... makes one.")
    return runs


def _rows(runs: Sequence[RunFolder], metric: str, mode: str) -> list[dict[str, Any]]:
    differing, rows = run_folders.differing(runs), []
    for run in runs:
        best = run.best(metric, mode)
        row = {"run": run.name, **{name: run.settings.get(name) for name in differing}}
        row |= {"epochs": run.epochs, f"best {metric}": best and best[1], "in epoch": best and best[0] + 1}
        row |= {"steps/s": run.steps_per_second, "state": run.state, "size": run.nbytes}
        rows.append(row)
    return rows


def _formatted(rows: list[dict[str, Any]], format: str) -> str:
    if format == "json":
        return json.dumps(rows, indent=1, default=str)
    if format == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    return as_text(rows)


def _cell(value: Any, column: str = "") -> str:
    if value is None:
        return ""
    if column == "size":
        return size(value)
    if column == "steps/s":
        return f"{value:,.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sortable(value: Any) -> tuple[bool, Any]:
    """Numbers before words."""
    return (False, value) if isinstance(value, int | float) else (True, str(value))


def _metrics(runs: Sequence[RunFolder]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.history))


def _common_metric(runs: Sequence[RunFolder]) -> str:
    return "val_loss" if any("val_loss" in run.history for run in runs) else "loss"


def _mode(metric: str, mode: str | None, runs: Sequence[RunFolder]) -> str:
    """ "min" or "max"."""
    known = _metrics(runs)
    if known and metric not in known:
        raise InputError(f"No run has logged {metric!r}; there are {', '.join(known)}.")
    found = mode or run_folders.better(metric)
    if found is None:
        raise InputError(f"It cannot be told whether a small or a large {metric!r} is better: give --mode=min or --mode=max.")
    return found


def _is_ours(path: pathlib.Path) -> bool:
    """Whether a folder is the workdir of a run or a comparison."""
    try:
        return "loop" in json.loads((path / run_folders.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False
