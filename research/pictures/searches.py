"""Pictures of a hyper-parameter search: its course, each parameter by itself, all of them together, and how much each matters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from research.pictures import look

__all__ = ["Point", "Scale", "history", "importances", "parallel_coordinates", "slices"]

_PANELS_IN_A_ROW = 4
_ROOM = 4.0  # the picture ends so many times as far from the best value as the median is


@dataclasses.dataclass(frozen=True)
class Point:
    """A trial that has ended.

    Attributes:
        number: its number, from 0.
        params: name -> value of what was suggested.
        value: what it reached; None of a trial that was given up.
    """

    number: int
    params: Mapping[str, Any]
    value: float | None


@dataclasses.dataclass(frozen=True)
class Scale:
    """Where the values of a parameter are on an axis.

    Attributes:
        log: whether factors count, not differences.
        whole: whether the values are whole numbers.
        choices: the values of a parameter that is no range, in order.

    Example:
        >>> Scale(choices=("sgd", "adam")).place("adam"), Scale(log=True).place(100.0)
        (1.0, 2.0)
    """

    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] | None = None

    def place(self, value: Any) -> float:
        """A number that is proportional to the distance on the axis."""
        if self.choices is not None:
            return float(self.choices.index(value))
        return math.log10(value) if self.log else float(value)


def history(points: Sequence[Point], metric: str, mode: str, *, default: float | None = None) -> Figure:
    """Draws what each trial reached, the best so far, and what the config reaches as it was before the search.

    Args:
        points: the trials, by number; those that were given up are ticks below the panel's upper edge.
        metric: name of the values.
        mode: "min" or "max": which of them is best.
        default: a value to compare with; None shows none.

    Returns:
        The figure.

    Raises:
        ValueError: if no trial has a value.

    Example:
        >>> figure = history([Point(0, {}, 0.7), Point(1, {}, None), Point(2, {}, 0.5)], "val_loss", "min", default=0.6)
    """
    done = _completed(points)
    figure = look.figure(7.6, 4.2)
    axes = figure.subplots()
    look.prepare(axes, _beyond(axes, done, mode, default, metric), x="trial")
    at, values = [p.number for p in done], np.array([p.value for p in done])
    best = (np.minimum if mode == "min" else np.maximum).accumulate(values)
    last = max(p.number for p in points)
    axes.plot(at, values, "o", color=look.SERIES[0], alpha=0.75, markersize=6, markeredgewidth=0, label="trial", clip_on=True)
    axes.step([*at, last], [*best, best[-1]], where="post", color=look.SERIES[1], linewidth=2, label="best so far")
    if default is not None:
        axes.axhline(default, color=look.MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label="default")
    _given_up(axes, [float(p.number) for p in points if p.value is None], "given up early")
    look.whole_numbers(axes)
    look.legend(figure)
    return figure


def slices(points: Sequence[Point], scales: Mapping[str, Scale], metric: str, mode: str) -> Figure:
    """Draws what trials reached over each parameter, one panel each, later trials darker; what was given up is a tick at the upper edge.

    Args:
        points: the trials, by number.
        scales: name -> axis of each parameter.
        metric, mode: as in `history`.

    Returns:
        The figure.

    Raises:
        ValueError: if there are no parameters, or no trial has a value.
    """
    done = _completed(points)
    if not scales:
        raise ValueError("The search has no parameters, so there are no slices to draw.")
    rows = -(-len(scales) // _PANELS_IN_A_ROW)
    columns = -(-len(scales) // rows)
    figure = look.figure(2.9 * columns + 1.2, 2.8 * rows + 0.3)
    places = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes in places[len(scales) :]:
        axes.remove()
    panels = places[: len(scales)]
    said = _beyond(panels[0], done, mode, None, metric)
    latest = max(p.number for p in points)
    for (name, scale), axes in zip(scales.items(), panels, strict=True):
        look.prepare(axes, name)
        if scale.choices is not None:
            axes.set_xticks(range(len(scale.choices)), [str(choice) for choice in scale.choices])
            axes.set_xlim(-0.5, len(scale.choices) - 0.5)
        elif scale.log:
            axes.set_xscale("log")
            _plain_log_ticks(axes, [p.params[name] for p in points if name in p.params])
        elif scale.whole:
            look.whole_numbers(axes)
        found = [p for p in done if name in p.params]
        shades = look.BLUES([0.25 + 0.75 * p.number / max(latest, 1) for p in found])
        axes.scatter([_at(p, name, scale) for p in found], [p.value for p in found], c=shades, s=28, linewidths=0)
        _given_up(axes, [_at(p, name, scale) for p in points if p.value is None and name in p.params], None)
    for axes in panels[::columns]:
        axes.set_ylabel(metric, color=look.MUTED, fontsize=10)
    look.head(figure, f"{said}; later trials are darker, ticks above were given up early")
    return figure


def parallel_coordinates(points: Sequence[Point], scales: Mapping[str, Scale], metric: str, mode: str) -> Figure:
    """Draws each trial as a line through its parameters to what it reached, the best darkest; those given up are grey and end before it.

    Args:
        points: the trials; those that lack a parameter are left out.
        scales: name -> axis of each parameter.
        metric, mode: as in `history`.

    Returns:
        The figure.

    Raises:
        ValueError: if there are no parameters, or no trial has a value.
    """
    shown = [p for p in points if set(scales) <= set(p.params)]
    done = sorted(_completed(shown), key=lambda p: -_badness(p, mode))
    if not scales:
        raise ValueError("The search has no parameters, so there are no coordinates to draw.")
    figure = look.figure(1.35 * (len(scales) + 1) + 0.8, 4.6)
    look.head(figure, f"{metric}: the best trials are darkest, grey ones were given up early")
    axes = figure.subplots()
    look.blank(axes)
    axes.set_xlim(-0.25, len(scales) + 0.45)
    axes.set_ylim(-0.03, 1.03)
    columns = {name: [scale.place(p.params[name]) for p in shown] for name, scale in scales.items()}
    spans = {name: _span(scale, columns[name]) for name, scale in scales.items()}
    low, high = _limits(done, mode, None)
    ends = (low, high) if mode == "max" else (high, low)  # the best at the top

    def line(point: Point) -> list[tuple[float, float]]:
        path = [(i, _share(scale.place(point.params[name]), *spans[name])) for i, (name, scale) in enumerate(scales.items())]
        return path if point.value is None else [*path, (len(scales), min(1.0, max(0.0, _share(point.value, *ends))))]

    given_up = [line(p) for p in shown if p.value is None]
    axes.add_collection(LineCollection(given_up, colors=look.GRID, linewidths=0.8))
    shades = look.BLUES(np.linspace(0.2, 1, len(done)))
    axes.add_collection(LineCollection([line(p) for p in done], colors=shades, linewidths=np.linspace(1, 2.2, len(done))))
    for i, (name, scale) in enumerate(scales.items()):
        _axis(axes, i, name, _marks(scale, spans[name]), i % 2 == 1)
    _axis(axes, len(scales), metric, [(0.0, f"{ends[0]:.4g}"), (1.0, f"{ends[1]:.4g}")], len(scales) % 2 == 1)
    return figure


def importances(shares: Mapping[str, float]) -> Figure:
    """Draws how much of the differences between trials each parameter explains.

    Args:
        shares: name -> share, the largest first.

    Returns:
        The figure.

    Raises:
        ValueError: if there are none.

    Example:
        >>> figure = importances({"learning_rate": 0.8, "units": 0.2})
    """
    if not shares:
        raise ValueError("There are no importances to draw.")
    figure = look.figure(6.4, 0.38 * len(shares) + 0.9)
    axes = figure.subplots()
    look.prepare(axes, "share of the differences that a parameter explains")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    names = list(shares)[::-1]
    bars = axes.barh(names, [shares[name] for name in names], color=look.SERIES[0], height=0.62)
    axes.bar_label(bars, fmt="%.2f", padding=4, color=look.INK, fontsize=9)
    axes.tick_params(axis="y", labelcolor=look.INK)
    return figure


def _completed(points: Sequence[Point]) -> list[Point]:
    done = [p for p in points if p.value is not None]
    if not done:
        raise ValueError("No trial was completed, so there is nothing to draw.")
    return done


def _badness(point: Point, mode: str) -> float:
    value = point.value if point.value is not None else math.nan
    return value if mode == "min" else -value


def _limits(done: Sequence[Point], mode: str, default: float | None) -> tuple[float, float]:
    """The values that are shown: a few trials that went astray would leave no room for the others."""
    values = np.array([_badness(p, mode) for p in done])
    best = float(values.min())
    worst = min(float(values.max()), best + _ROOM * float(np.median(values) - best))
    if default is not None:
        worst, best = max(worst, default if mode == "min" else -default), min(best, default if mode == "min" else -default)
    worst = worst if worst > best else best + (abs(best) or 1) * 1e-3
    return (best, worst) if mode == "min" else (-worst, -best)


def _beyond(axes: Axes, done: Sequence[Point], mode: str, default: float | None, metric: str) -> str:
    """Sets the limits of the vertical axis; returns a title that says how many trials are beyond."""
    low, high = _limits(done, mode, default)
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin * 1.6)
    outside = sum(not low <= p.value <= high for p in done if p.value is not None)
    return f"{metric} ({outside} worse than shown)" if outside else metric


def _given_up(axes: Axes, at: Sequence[float], label: str | None) -> None:
    axes.plot(at, [0.985] * len(at), "|", color=look.MUTED, markersize=8, transform=axes.get_xaxis_transform(), label=label)


def _at(point: Point, name: str, scale: Scale) -> float:
    return scale.place(point.params[name]) if scale.choices is not None else float(point.params[name])


def _plain_log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Few ticks, so that their labels keep apart: powers of ten where there are two of them, else the ends."""
    low, high = min(values), max(values)
    if math.floor(math.log10(high)) - math.ceil(math.log10(low)) >= 1:
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
    else:
        axes.set_xticks(sorted({low, high}), [f"{value:.3g}" for value in sorted({low, high})])
    axes.xaxis.set_minor_locator(NullLocator())


def _span(scale: Scale, places: Sequence[float]) -> tuple[float, float]:
    return (0.0, len(scale.choices) - 1.0) if scale.choices is not None else (min(places), max(places))


def _share(place: float, low: float, high: float) -> float:
    return (place - low) / (high - low) if high != low else 0.5


def _marks(scale: Scale, span: tuple[float, float]) -> list[tuple[float, str]]:
    if scale.choices is not None:
        return [(_share(float(i), *span), str(choice)) for i, choice in enumerate(scale.choices)]
    return [(_share(place, *span), f"{10**place if scale.log else place:.3g}") for place in sorted(set(span))]


def _axis(axes: Axes, x: int, name: str, marks: Sequence[tuple[float, str]], low: bool) -> None:
    """A vertical line with its name below; every second name is lower, so that long ones keep apart."""
    axes.axvline(x, color=look.MUTED, linewidth=1, ymin=0.028, ymax=0.972, zorder=3)
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    for at, text in marks:
        axes.text(x + 0.05, at, text, color=look.INK, fontsize=9, va="center", bbox=box, zorder=4)
    axes.annotate(
        name, (x, 0), (0, -24 if low else -10), textcoords="offset points", color=look.INK, fontsize=10, ha="center", va="top",
        annotation_clip=False,
    )  # fmt: skip
