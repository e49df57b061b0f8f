"""The runs below a folder, as their workdirs tell: what was trained, how far it came, how good it became. It only reads."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from loops.json_values import flattened
from loops.run import outcome_file
from loops.run.workdir_lock import LOCK, is_locked

__all__ = ["RunFolder", "better", "differing", "find", "read"]

CONFIG, HISTORY, SNAPSHOTS = "config.json", "history.csv", "snapshots"
# Folders of a workdir that hold no other runs.
_NOT_SEARCHED = {SNAPSHOTS, "train", "validation", "checkpoints", "plots", "export"}
_SMALLER_IS_BETTER = ("loss", "error", "mse", "mae", "rmse", "mape", "perplexity", "nll", "divergence")
_LARGER_IS_BETTER = ("accuracy", "acc", "auc", "f1", "precision", "recall", "r2", "kappa", "correlation", "iou", "fmeasure", "similarity")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """One run.

    Attributes:
        path: its workdir.
        name: the path below the folder that was searched.
        settings: name -> value of everything in its config, with dots between the names of nested fields, and its seed. Of a run without
            a config: its task, batch size and optimizers.
        state: "running", "finished", "stopped", "failed", "interrupted" (the same command goes on), "killed" (the same), or "begun" if
            nothing was saved.
        reason: why it stopped or failed, or "".
        history: name -> (epochs counted from 0, values).
        epochs, steps: how many are complete.
        steps_per_second: over the whole run, evaluations and hooks included; None if that is unknown.
        nbytes: size of the workdir.
    """

    path: pathlib.Path
    name: str
    settings: Mapping[str, Any]
    state: str
    reason: str
    history: Mapping[str, tuple[list[int], list[float]]]
    epochs: int
    steps: int
    steps_per_second: float | None
    nbytes: int

    def best(self, metric: str, mode: str) -> tuple[int, float] | None:
        """The epoch, counted from 0, and the value where a metric was best; None if it was never finite.

        Args:
            metric: its name in the history.
            mode: "min" or "max".
        """
        epochs, values = self.history.get(metric, ([], []))
        finite = [(value, -epoch) for epoch, value in zip(epochs, values, strict=True) if math.isfinite(value)]
        if not finite:
            return None
        value, epoch = max(finite) if mode == "max" else min(finite, key=lambda pair: (pair[0], -pair[1]))
        return -epoch, value


def find(folder: pathlib.Path) -> list[RunFolder]:
    """All runs in a folder and below it, in the order of their names.

    Args:
        folder: a workdir, or a folder with workdirs at any depth. The parts of a comparison are runs of their own.

    Returns:
        The runs. A folder whose `config.json` cannot be read is none.
    """
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _NOT_SEARCHED and not name.startswith("."))
        here = pathlib.Path(path)
        if CONFIG in files and (run := read(here, name=os.path.relpath(here, folder))) is not None:
            found.append(run)
    return found


def read(path: pathlib.Path, name: str | None = None) -> RunFolder | None:
    """What a workdir tells about its run; None if the folder is no workdir of a run."""
    try:
        written = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        loop, parts = written["loop"], written.get("parts")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if parts is not None:  # a comparison: its parts are in folders of their own
        return None
    settings = {**(flattened(written.get("config") or {}) or _of_loop(loop)), "seed": loop.get("seed")}
    history, outcome, newest = _history(path / HISTORY), outcome_file.read(path), _newest_snapshot(path)
    epochs, steps, seconds = outcome.get("epochs"), outcome.get("step"), outcome.get("seconds")
    if not outcome:  # in progress, or killed
        info = newest.get("info") or {}
        steps, seconds = newest.get("step", 0), info.get("seconds")
        epochs = info.get("epoch", 0) + bool(info.get("epoch_ended"))
    state = "running" if is_locked(path) else outcome.get("outcome") or ("killed" if newest else "begun")
    return RunFolder(
        path=path,
        name=path.name if name in (None, ".") else str(name),
        settings=settings,
        state=state,
        reason=outcome.get("reason") or "",
        history=history,
        epochs=epochs or 0,
        steps=steps or 0,
        steps_per_second=steps / seconds if steps and seconds else None,
        nbytes=sum(_size(file) for file in path.rglob("*")),
    )


def differing(runs: Sequence[RunFolder]) -> list[str]:
    """The settings in which some of the runs differ, or that some do not have; in the order in which they are met."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({json.dumps(run.settings.get(name, ...), default=str) for run in runs}) > 1]


def better(metric: str) -> str | None:
    """Whether a "min" or a "max" of a metric is better, by the last word of its name; None if that cannot be told."""
    last = metric.lower().rpartition("_")[2]
    if last in _SMALLER_IS_BETTER or metric.lower().endswith("loss"):
        return "min"
    return "max" if last in _LARGER_IS_BETTER else None


def _of_loop(loop: Mapping[str, Any]) -> dict[str, Any]:
    settings = {"task": loop.get("task"), "batch_size": (loop.get("data") or {}).get("batch_size"), "clip": loop.get("clip")}
    return {**settings, **flattened(loop.get("optimizer") or {})}


def _history(path: pathlib.Path) -> dict[str, tuple[list[int], list[float]]]:
    columns: dict[str, tuple[list[int], list[float]]] = {}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if name is None or name == "epoch" or not text:
                        continue
                    try:
                        value, epoch = float(text), int(row["epoch"])
                    except (KeyError, TypeError, ValueError):
                        continue  # a vector, or a line that is being written
                    epochs, values = columns.setdefault(name, ([], []))
                    epochs.append(epoch)
                    values.append(value)
    except OSError:
        return {}
    return columns


def _newest_snapshot(path: pathlib.Path) -> Mapping[str, Any]:
    """The manifest of the newest snapshot; empty if there is none."""
    folder = path / SNAPSHOTS
    steps = sorted((int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()), reverse=True) if folder.is_dir() else []
    for step in steps:
        try:
            manifest = json.loads((folder / str(step) / "manifest.json").read_text(encoding="utf-8"))
            return {"step": step, **manifest} if isinstance(manifest, dict) else {}
        except (OSError, ValueError):
            continue  # damaged, or deleted meanwhile
    return {}


def _size(file: pathlib.Path) -> int:
    try:
        return 0 if file.is_dir() or file.name == LOCK else file.stat().st_size
    except OSError:  # deleted meanwhile
        return 0
