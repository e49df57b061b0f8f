"""What a search found: a table of the best trials, pictures, and the command that trains the best point in full."""

from __future__ import annotations

import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from loops.json_values import flattened
from research.run_tables import as_text
from research.search.trials import Search
from research.study import PLOTS

__all__ = ["command_of", "draw", "table", "told"]

_SHOWN = 5
_PICTURES = ("history", "slices", "parallel_coordinates", "importances")


def table(search: Search, metrics: Sequence[str], default: Mapping[str, Any] | None) -> str:
    """The best trials (of several objectives: those that no other beats in all of them), and the config as it was before the search."""
    rows = [_row(trial.number, trial.values or (), trial.params, trial.user_attrs, metrics) for trial in _best(search)]
    if default is not None:
        rows.append(_row("default", default["values"], {}, default, metrics))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return as_text([{name: row.get(name) for name in names} for row in rows]) if rows else "No trial was completed."


def told(search: Search) -> list[str]:
    """What became of the trials, how many steps pruning has saved, and which parameters mattered."""
    trials = search.finished()
    counts = {name: [t for t in trials if t.state.name == name] for name in ("COMPLETE", "PRUNED", "FAIL")}
    lines = [f"{len(trials)} trials: {len(counts['COMPLETE'])} completed, {len(counts['PRUNED'])} pruned, {len(counts['FAIL'])} failed."]
    full = [t.user_attrs["steps"] for t in counts["COMPLETE"]]
    if counts["PRUNED"] and full:
        done = sum(t.user_attrs["steps"] for t in counts["PRUNED"])
        would = len(counts["PRUNED"]) * sum(full) / len(full)
        saved = 1 - (done + sum(full)) / (would + sum(full))
        lines.append(f"Pruning saved {saved:.0%} of the steps, had the pruned trials been as long as the others on average.")
    for reason in dict.fromkeys(t.user_attrs.get("reason") for t in counts["FAIL"]):
        lines.append(f"Failed: {reason}")
    if importances := _importances(search):
        lines.append("Importance: " + ", ".join(f"{name} {share:.2f}" for name, share in importances.items()))
    return lines


def command_of(config: Mapping[str, Any], best: Mapping[str, Any], config_name: str, folder: pathlib.Path) -> str:
    """The command that trains a point by itself.

    Args:
        config: the config as its file has it.
        best: the config of the point, as JSON has it.
        config_name: what `--config` takes.
        folder: workdir of the search.
    """
    before = flattened(json.loads(json.dumps(config, default=str)))
    changed = {name: tuple(v) if isinstance(v, list) else v for name, v in flattened(best).items() if v != before.get(name)}
    flags = "".join(f" --config.{name}={value}" for name, value in changed.items())
    return f"python scripts/train.py --config={config_name}{flags} --workdir={folder / 'best'}"


def draw(search: Search) -> list[pathlib.Path]:
    """Writes the pictures into `plots/`; those that need more trials, or one objective, are left out."""
    from optuna.visualization import matplotlib as pictures

    folder, written = search.folder / PLOTS, []
    folder.mkdir(parents=True, exist_ok=True)
    kinds = (
        pictures.plot_optimization_history,
        pictures.plot_slice,
        pictures.plot_parallel_coordinate,
        pictures.plot_param_importances,
    )
    for name, kind in zip(_PICTURES, kinds, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls its pictures experimental
            try:
                axes = kind(search.study)
            except (ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or several objectives
                continue
            figure = (axes if not hasattr(axes, "flat") else axes.flat[0]).figure
            figure.set_size_inches(max(figure.get_size_inches()[0], 8), 5)
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        written.append(folder / f"{name}.png")
    return written


def best_number(search: Search) -> int | None:
    """The number of the best trial, the first of several; None if none was completed."""
    best = _best(search)
    return best[0].number if best else None


def _best(search: Search) -> list[optuna.trial.FrozenTrial]:
    completed = [t for t in search.finished() if t.state == optuna.trial.TrialState.COMPLETE]
    if len(search.study.directions) > 1:
        return search.study.best_trials[:_SHOWN] if completed else []
    down = search.study.direction == optuna.study.StudyDirection.MINIMIZE
    return sorted(completed, key=lambda t: ((t.value or 0.0) * (1 if down else -1), t.number))[:_SHOWN]


def _row(name: Any, values: Sequence[float], params: Mapping[str, Any], notes: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    row = {"trial": name, **dict(zip(metrics, values, strict=False))}
    row |= {f"test {metric}": value for metric, value in (notes.get("test") or {}).items()}
    return {**row, "epochs": notes.get("epochs"), **params}


def _importances(search: Search) -> dict[str, float]:
    if len(search.study.directions) > 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(search.study))
        except (ValueError, RuntimeError):  # too few trials
            return {}
