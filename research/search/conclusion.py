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

__all__ = ["best_number", "command_of", "draw", "table", "told"]

_SHOWN = 5
_ENOUGH = 10  # completed trials, for importances to mean something


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
    if counts["PRUNED"] and counts["COMPLETE"]:
        done, would = _steps(counts["COMPLETE"], counts["PRUNED"])
        lines.append(f"Pruning saved {1 - done / would:.0%} of {would:,.0f} steps, had pruned trials run for as many epochs as the others.")
    if begun := search.begun():
        lines.append(f"Begun and not ended: {begun}, by other processes, or in other workdirs, which go on by the same command there.")
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


def draw(search: Search, metrics: Sequence[str], default: Mapping[str, Any] | None) -> list[pathlib.Path]:
    """Writes the pictures into `plots/`; those that need more trials, or one objective, are left out."""
    from research.pictures import searches  # matplotlib takes a second to import

    done = [t for t in search.finished() if t.state != optuna.trial.TrialState.FAIL]
    if len(metrics) > 1 or not _best(search):
        return []
    points = [searches.Point(t.number, t.params, t.value if t.state == optuna.trial.TrialState.COMPLETE else None) for t in done]
    scales = {name: _scale(d) for trial in done for name, d in trial.distributions.items()}
    kind = (metrics[0], search.study.direction.name.lower()[:3])
    pictures = {"history": searches.history(points, *kind, default=default["values"][0] if default is not None else None)}
    if scales:
        pictures["slices"] = searches.slices(points, scales, *kind)
    if len(scales) > 1 and any(set(scales) <= set(p.params) for p in points if p.value is not None):
        pictures["parallel_coordinates"] = searches.parallel_coordinates(points, scales, *kind)
    if shares := _importances(search):
        pictures["importances"] = searches.importances(shares)
    folder = search.folder / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)
    return [folder / f"{name}.png" for name in pictures]


def _scale(distribution: Any) -> Any:
    from research.pictures import searches

    choices, whole = getattr(distribution, "choices", None), isinstance(distribution, optuna.distributions.IntDistribution)
    return searches.Scale(log=getattr(distribution, "log", False), whole=whole, choices=None if choices is None else tuple(choices))


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


def _steps(completed: Sequence[optuna.trial.FrozenTrial], pruned: Sequence[optuna.trial.FrozenTrial]) -> tuple[float, float]:
    """The steps that were done, and those that there would have been if pruned trials had as many epochs as completed ones on average."""
    epochs = sum(t.user_attrs["epochs"] for t in completed) / len(completed)
    full = sum(t.user_attrs["steps"] for t in completed)
    done = sum(t.user_attrs["steps"] for t in pruned)
    return full + done, full + sum(epochs * t.user_attrs["steps"] / t.user_attrs["epochs"] for t in pruned)


def _importances(search: Search) -> dict[str, float]:
    completed = [t for t in search.finished() if t.state == optuna.trial.TrialState.COMPLETE]
    if len(search.study.directions) > 1 or len(completed) < _ENOUGH or len(completed[0].params) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(search.study))
        except (ValueError, RuntimeError):  # trials that are all alike
            return {}
