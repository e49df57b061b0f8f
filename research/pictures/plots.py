"""Curves: of one finished run, and of several side by side. Pictures of data are in `research.pictures.figures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.pictures import look

__all__ = ["gradient_norms", "learning_curves", "lines"]

_TRAIN, _VALIDATION = look.SERIES[:2]
_NOT_CURVES = ("learning_rate", "lr")
_PANELS_IN_A_ROW = 4
_POINTS = 60  # of a curve of gradient norms


def learning_curves(history: Any, *, best: int | None = None, title: str = "") -> Figure:
    """Draws loss and metrics over epochs, training against validation, one panel each.

    Args:
        history: what `TrainLoop.run` or `loops.fit` returned. What was logged now and then is drawn at its own epochs. Keras's own, which
            `model.fit` returns, cannot tell them: of it only what was logged in every epoch is drawn. `val_NAME` goes into the panel of
            `NAME`.
        best: position in the lists of the epoch whose weights were kept; it is marked. None marks nothing.
        title: line above the panels.

    Returns:
        The figure.

    Raises:
        ValueError: if the history holds no epoch.
    """
    logs: Mapping[str, Sequence[float]] = {k: v for k, v in history.history.items() if k not in _NOT_CURVES and np.ndim(v) == 1}
    if hasattr(history, "epochs_of"):
        at = {name: np.asarray(history.epochs_of(name)) + 1 for name in logs}
    else:
        logs = {name: values for name, values in logs.items() if len(values) == len(history.epoch)}
        at = dict.fromkeys(logs, np.asarray(history.epoch) + 1)
    panels = sorted({name.removeprefix("val_") for name in logs}, key=lambda name: (name != "loss", name))
    if not panels or not len(history.epoch):
        raise ValueError("The history holds no finished epoch, so there are no curves to draw.")
    kept = None if best is None else history.epoch[best] + 1

    rows = -(-len(panels) // _PANELS_IN_A_ROW)
    columns = -(-len(panels) // rows)
    figure = look.figure(4.8 * columns + 1.4, 3.9 * rows + 0.3)
    places = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for axes in places[len(panels) :]:
        axes.remove()
    for panel, axes in zip(panels, places, strict=False):
        look.prepare(axes, panel.replace("_", " "), x="epoch")
        axes.tick_params(labelbottom=True)
        look.whole_numbers(axes)
        for name, label, color in ((panel, "train", _TRAIN), (f"val_{panel}", "validation", _VALIDATION)):
            if name in logs:
                # Between epochs that lie apart the line says nothing, so it shows where it has values.
                apart = bool(np.any(np.diff(at[name]) > 1))
                _draw(axes, at[name], np.asarray(logs[name], float), label, color, points=apart)
        shown = f"val_{panel}" if f"val_{panel}" in logs else panel
        if kept in at[shown]:
            _mark(axes, kept, float(logs[shown][list(at[shown]).index(kept)]), _TRAIN if shown == panel else _VALIDATION)
    look.legend(figure)
    look.head(figure, title)
    return figure


def lines(
    series: Mapping[str, Sequence[float] | tuple[Sequence[float], Sequence[float]]],
    *,
    x: str = "epoch",
    y: str = "",
    title: str = "",
    log: bool = False,
) -> Figure:
    """Draws several curves in one panel: the same metric of several runs, say.

    Args:
        series: label -> values at 1, 2, 3, ..., or label -> (places, values). At most ten.
        x, y: what the axes measure.
        title: line above the panel.
        log: whether the vertical axis is logarithmic.

    Returns:
        The figure.

    Raises:
        ValueError: if there are none, or more than can be told apart.

    Example:
        >>> figure = lines({"plain": [0.1, 0.5, 0.8], "batch norm": [0.7, 0.8, 0.85]}, y="validation accuracy")
    """
    if not 1 <= len(series) <= len(look.SERIES):
        raise ValueError(f"There is room for 1 to {len(look.SERIES)} curves; got {len(series)}.")
    figure = look.figure(7.2, 4.4)
    axes = figure.subplots()
    look.prepare(axes, y, x=x)
    places: list[float] = []
    for (label, points), color in zip(series.items(), look.SERIES, strict=False):
        at, values = points if isinstance(points, tuple) else (range(1, len(points) + 1), points)
        _draw(axes, np.asarray(at, float), np.asarray(values, float), label, color)
        places += list(at)
    if all(float(place).is_integer() for place in places):
        look.whole_numbers(axes)
    if log:
        axes.set_yscale("log")
    if len(series) > 1:
        # Beside the panel: many curves leave no room inside.
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), labelcolor=look.INK, fontsize=10, frameon=False, borderaxespad=0)
    look.head(figure, title)
    return figure


def gradient_norms(
    norms: Mapping[str, Mapping[str, Sequence[float]]], at: Mapping[str, Sequence[float]], *, x: str = "step", title: str = ""
) -> Figure:
    """Draws how large the gradient of each layer is while a net learns, the layer nearest to the input darkest; one panel a net.

    Both axes are logarithmic, so that the beginning has room. Where norms crowd together, each point is the median of several.

    Args:
        norms: name of the net -> name of the layer, in the order of the layers -> norms.
        at: name of the net -> where on the horizontal axis the norms stand.
        x: what the horizontal axis measures.
        title: line above the panels.

    Returns:
        The figure.

    Raises:
        ValueError: if there is nothing to draw.

    Example:
        >>> figure = gradient_norms({"plain": {"first": [1e-6, 1e-5], "last": [1.0, 0.5]}}, {"plain": [100, 200]})
    """
    if not norms or not all(layers and len(at[name]) for name, layers in norms.items()):
        raise ValueError("There are no gradient norms to draw.")
    figure = look.figure(3.4 * len(norms) + 1.4, 4.2)
    panels = np.atleast_1d(figure.subplots(1, len(norms), sharey=True))
    for (name, layers), axes in zip(norms.items(), panels, strict=True):
        look.prepare(axes, name, x=x)
        axes.set_xscale("log")
        axes.set_yscale("log")
        stretches = _stretches(len(at[name]))
        places = [np.median(np.asarray(at[name], float)[part]) for part in stretches]
        for depth, (layer, values) in enumerate(layers.items()):
            nearness = 1 - 0.75 * depth / max(1, len(layers) - 1)
            # A gradient of exactly 0 has no place on this axis: a gap.
            medians = np.array([np.median(np.asarray(values, float)[part]) for part in stretches])
            shown = np.where(medians > 0, medians, np.nan)
            ends = depth in (0, len(layers) - 1)
            _draw(axes, places, shown, layer if ends else None, look.BLUES(nearness), width=2.2 if ends else 1.1)
    panels[0].set_ylabel("norm of the gradient", color=look.MUTED, fontsize=10)
    panels[-1].legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1),
        labelcolor=look.INK,
        fontsize=10,
        frameon=False,
        borderaxespad=0,
        title="layer",
        alignment="left",
    )
    look.head(figure, title)
    return figure


def _stretches(looks: int) -> list[slice]:
    """Parts of a series that grow with the distance from its beginning: the first ones hold one look each."""
    edges = np.unique(np.geomspace(1, looks + 1, min(_POINTS, looks + 1)).round().astype(int)) - 1
    return [slice(first, last) for first, last in zip(edges[:-1], edges[1:], strict=True)]


def _draw(axes: Axes, at: Any, values: Any, label: str | None, color: Any, width: float = 2, *, points: bool = False) -> None:
    marker = "o" if points or len(values) == 1 else None
    axes.plot(at, values, color=color, label=label, linewidth=width, marker=marker, solid_capstyle="round")


def _mark(axes: Axes, epoch: int, value: float, color: str) -> None:
    axes.axvline(epoch, color=look.MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.plot([epoch], [value], "o", color=color, markersize=7, markeredgecolor="white", markeredgewidth=1.5, zorder=3)
    # Above the panel rather than at the point, where it would cover the curves.
    axes.set_title(f"{value:.4g} at the best epoch, {epoch}", color=look.MUTED, fontsize=9, loc="right")
