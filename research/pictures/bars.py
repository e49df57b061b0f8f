"""Ratios as horizontal bars with their spread: what `docs/benchmarks.md` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from research.pictures import look

__all__ = ["Bar", "ratios"]

Bar = tuple[str, float, float, float, str]  # label, ratio, its lower and upper quartile, what it is compared with

_TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
_BELOW = look.SERIES[1]


def ratios(panels: Mapping[str, Sequence[Bar]], *, title: str = "") -> Figure:
    """Draws how many times faster something is than something else, a panel for each comparison; the axis is logarithmic.

    Args:
        panels: what is compared with what -> bars, from top to bottom. Those below 1 have another colour.
        title: line above the panels.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no bar.

    Example:
        >>> figure = ratios({"ours against theirs": [("small model", 2.0, 1.9, 2.2, "theirs"), ("large model", 0.9, 0.8, 1.1, "theirs")]})
    """
    if not any(panels.values()):
        raise ValueError("There are no ratios to draw.")
    labels = list(dict.fromkeys(bar[0] for bars in panels.values() for bar in bars))
    place = {label: i for i, label in enumerate(labels)}
    figure = look.figure(2.6 + 3.6 * len(panels), 1.2 + 0.27 * len(labels))
    for axes, (name, bars) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        look.prepare(axes, name, x="times as fast")
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=look.GRID, linewidth=0.8)
        axes.set_xscale("log")
        axes.axvline(1, color=look.MUTED, linewidth=1)
        for label, middle, low, high, reference in bars:
            color, at = look.SERIES[0] if middle >= 1 else _BELOW, place[label]
            axes.barh(at, middle - 1, left=1, height=0.62, color=color)
            axes.plot([low, high], [at, at], color=look.INK, linewidth=1.2)
            axes.text(max(high, 1) * 1.06, at, f"{middle:.2f}  {reference}", color=look.MUTED, fontsize=7.5, va="center")
        ends = [end for bar in bars for end in bar[2:4]] or [1.0]
        axes.set_xlim(min(0.8, min(ends) / 1.15), max(2.0, max(ends)) ** 1.05 * 2.2)
        axes.xaxis.set_major_locator(FixedLocator(_TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
        axes.set_xlim(min(0.8, min(ends) / 1.15), max(2.0, max(ends)) ** 1.05 * 2.2)
    axes.set_yticks(range(len(labels)), labels, color=look.INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    look.head(figure, title)
    return figure
