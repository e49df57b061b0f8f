"""How the pictures of this project look: their colours, and axes without what says nothing."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["BLUES", "GRID", "INK", "MUTED", "SERIES", "blank", "figure", "head", "legend", "prepare", "whole_numbers"]

INK, MUTED, GRID = "#22272e", "#6b7280", "#e5e7eb"
# Neighbours differ in lightness too, so that they stay apart in grey and for eyes that do not see all hues.
SERIES = ("#3b6fb6", "#d9662b", "#2f9e78", "#b8559b", "#c9a227", "#5b4a9c", "#5fb3d4", "#8a5a3b", "#86a83c", "#7f8794")
BLUES = LinearSegmentedColormap.from_list("blues", ["#f7f9fc", "#a9c3e4", "#3b6fb6", "#12305c"])


def figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches, whose parts keep out of each other's way."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def head(figure: Figure, title: str) -> None:
    """A line above all panels."""
    if title:
        figure.suptitle(title, color=INK, fontsize=12, x=0.012, ha="left", weight="bold")


def prepare(axes: Axes, name: str = "", *, x: str = "", y: str = "") -> None:
    """A panel for lines and points: a title to the left, horizontal lines only, no frame.

    Args:
        axes: the panel.
        name: title.
        x, y: what the axes measure.
    """
    axes.set_title(name, color=INK, fontsize=11, loc="left")
    axes.set_xlabel(x, color=MUTED, fontsize=10)
    axes.set_ylabel(y, color=MUTED, fontsize=10)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, labelsize=9, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def whole_numbers(axes: Axes) -> None:
    """Ticks of the horizontal axis at whole numbers: epochs, steps."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def blank(axes: Axes) -> None:
    """A panel for an image: no ticks, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def legend(figure: Figure) -> None:
    """The names of the curves of all panels, once, beside them: inside a panel they would cover curves."""
    named = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside right upper", labelcolor=INK, fontsize=10, frameon=False)
