"""Pictures of finished runs for `plots/` in a workdir. Needs matplotlib, but no display and no pyplot state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["learning_curves"]

_TRAIN, _VALIDATION, _INK, _MUTED, _GRID = "#3b6fb6", "#d9662b", "#22272e", "#6b7280", "#e5e7eb"
_NOT_CURVES = ("learning_rate", "lr")


def learning_curves(history: Any, *, best: int | None = None, title: str = "") -> Figure:
    """Draws loss and metrics over epochs, training against validation, one panel each.

    Args:
        history: what `TrainLoop.run`, `loops.fit` or `model.fit` returned: `.history` maps names to one value per epoch, `.epoch`
            holds the 0-based epoch indices. `val_NAME` goes into the panel of `NAME`.
        best: position in the lists of the epoch whose weights were kept; it is marked. None marks nothing.
        title: line above the panels.

    Returns:
        The figure.

    Raises:
        ValueError: if the history holds no epoch.
    """
    logs: Mapping[str, Sequence[float]] = {k: v for k, v in history.history.items() if k not in _NOT_CURVES and np.ndim(v) == 1}
    panels = sorted({name.removeprefix("val_") for name in logs}, key=lambda name: (name != "loss", name))
    if not panels or not len(history.epoch):
        raise ValueError("The history holds no finished epoch, so there are no curves to draw.")
    epochs = np.asarray(history.epoch) + 1

    figure = Figure(figsize=(4.8 * len(panels) + 0.4, 4.2), layout="constrained", facecolor="white")
    for panel, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        _prepare(axes, panel)
        for name, label, color in ((panel, "train", _TRAIN), (f"val_{panel}", "validation", _VALIDATION)):
            if name in logs:
                # A history may hold a name for its last epochs only: validation that began late, or a resumed run.
                values = np.asarray(logs[name], float)
                marker = "o" if len(values) == 1 else None
                axes.plot(epochs[-len(values) :], values, color=color, label=label, linewidth=2, marker=marker, solid_capstyle="round")
        shown = logs.get(f"val_{panel}", logs.get(panel, ()))
        if best is not None and best >= len(epochs) - len(shown):
            _mark(axes, int(epochs[best]), float(shown[best - len(epochs)]))
        # A curve that falls leaves room at the top, one that rises at the bottom.
        corner = "upper right" if len(shown) and shown[0] > shown[-1] else "lower right"
        axes.legend(loc=corner, labelcolor=_INK, fontsize=10, facecolor="white", edgecolor="none", framealpha=1)
    if title:
        figure.suptitle(title, color=_INK, fontsize=12, x=0.012, ha="left", weight="bold")
    return figure


def _prepare(axes: Axes, name: str) -> None:
    axes.set_title(name.replace("_", " "), color=_INK, fontsize=11, loc="left")
    axes.set_xlabel("epoch", color=_MUTED, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def _mark(axes: Axes, epoch: int, value: float) -> None:
    axes.axvline(epoch, color=_MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    axes.plot([epoch], [value], "o", color=_VALIDATION, markersize=7, markeredgecolor="white", markeredgewidth=1.5, zorder=3)
    # Above the panel rather than at the point, where it would cover the curves.
    axes.set_title(f"{value:.4g} at the best epoch, {epoch}", color=_MUTED, fontsize=9, loc="right")
