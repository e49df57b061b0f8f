"""Pictures of data and of what a model makes of it. Needs matplotlib, but no display and no pyplot state.

Curves are in `research.pictures.plots`; `research.study.Run.picture` decides where a picture is written.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.pictures import look

__all__ = ["confusion_matrix", "image_grid", "pixels", "predictions", "save", "scatter"]

_DPI = 160


def image_grid(
    images: Any, *, columns: int = 10, titles: Sequence[str] = (), limits: tuple[float, float] | None = None, title: str = ""
) -> Figure:
    """Draws images side by side.

    Args:
        images: `[N, height, width]`, `[N, height, width, 1]` (grey) or `[N, height, width, 3]` (colours in 0..1, or uint8).
        columns: images in a row.
        titles: a line above each image; none if empty.
        limits: values that are black and white; the smallest and the largest of all images if None.
        title: line above the grid.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no image, or not a title for each.

    Example:
        >>> figure = image_grid(np.random.rand(20, 8, 8), titles=[str(i) for i in range(20)])
    """
    images = np.asarray(images)
    if images.ndim not in (3, 4) or not len(images):
        raise ValueError(f"A grid takes images [N, height, width] or [N, height, width, channels]; got shape {list(images.shape)}.")
    if len(titles) not in (0, len(images)):
        raise ValueError(f"There are {len(titles)} titles for {len(images)} images; give one for each, or none.")
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    low, high = limits if limits is not None else (float(images.min()), float(images.max()))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    longest = max((len(line) for text in titles for line in text.splitlines()), default=0)
    width = max(0.85, 0.085 * longest)
    above = 0.16 * max((text.count("\n") + 1 for text in titles), default=0)
    figure = look.figure(width * columns + 0.2, (0.85 + above) * rows + (0.45 if title else 0.1))
    cells = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in cells:
        look.blank(axes)
    for axes, image in zip(cells, images, strict=False):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    for axes, text in zip(cells, titles, strict=False):
        axes.set_title(text, color=look.INK, fontsize=8, pad=3)
    look.head(figure, title)
    return figure


def confusion_matrix(labels: Any, predictions: Any, class_names: Sequence[str], *, title: str = "") -> Figure:
    """Draws how often each class was taken for which: a row for each true class, the number of examples in each cell.

    Args:
        labels: true class indices `[N]`.
        predictions: predicted class indices `[N]`.
        class_names: name of each class index.
        title: line above the matrix.

    Returns:
        The figure. Cells are the darker, the larger their share of the row.

    Raises:
        ValueError: if labels and predictions are not of the same length.

    Example:
        >>> figure = confusion_matrix([0, 1, 1], [0, 1, 0], ["cat", "dog"])
    """
    labels, predictions = np.asarray(labels).reshape(-1), np.asarray(predictions).reshape(-1)
    if labels.shape != predictions.shape:
        raise ValueError(f"There are {len(labels)} labels and {len(predictions)} predictions; give one prediction for each label.")
    size = len(class_names)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    side = 0.55 * size + 1.6
    figure = look.figure(side + 0.3, side + (0.3 if title else 0))
    axes = figure.subplots()
    look.blank(axes)
    axes.imshow(shares, cmap=look.BLUES, vmin=0, vmax=1)
    places = np.arange(size)
    axes.set_xticks(places, class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, class_names)
    axes.tick_params(colors=look.INK, labelsize=9, length=0)
    axes.set_xlabel("predicted", color=look.MUTED, fontsize=10)
    axes.set_ylabel("true", color=look.MUTED, fontsize=10)
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.45 else look.INK
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color, fontsize=8.5)
    look.head(figure, title)
    return figure


def scatter(points: Any, labels: Any = None, class_names: Sequence[str] = (), *, x: str = "", y: str = "", title: str = "") -> Figure:
    """Draws points in the plane, a colour for each class: a latent space, say.

    Args:
        points: `[N, 2]`.
        labels: class index of each point, `[N]`; None draws all in one colour. At most ten classes.
        class_names: name of each class index; the index itself if empty.
        x, y: what the axes measure.
        title: line above the panel.

    Returns:
        The figure.

    Raises:
        ValueError: if the points are not in the plane, or there are more classes than can be told apart.

    Example:
        >>> figure = scatter(np.random.randn(100, 2), np.arange(100) % 10)
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"Points in the plane have shape [N, 2]; got {list(points.shape)}. Project them first.")
    labels = np.zeros(len(points), np.int64) if labels is None else np.asarray(labels).reshape(-1)
    classes = np.unique(labels)
    if len(classes) > len(look.SERIES):
        raise ValueError(f"There are {len(classes)} classes, but only {len(look.SERIES)} colours that can be told apart.")
    figure = look.figure(6.4, 5.2)
    axes = figure.subplots()
    look.prepare(axes, x=x, y=y)
    axes.grid(axis="both", color=look.GRID, linewidth=0.8)
    # Small and faint where there are many, so that what lies below shows.
    size = float(np.clip(20_000 / len(points), 3, 30))
    for index, color in zip(classes, look.SERIES, strict=False):
        chosen = points[labels == index]
        name = class_names[index] if len(class_names) else str(index)
        axes.scatter(chosen[:, 0], chosen[:, 1], s=size, color=color, alpha=0.6 if len(points) > 500 else 0.9, linewidths=0, label=name)
    if len(classes) > 1:
        box = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), labelcolor=look.INK, fontsize=10, frameon=False, borderaxespad=0)
        for handle in box.legend_handles:
            handle.set_alpha(1)
            handle.set_sizes([36])
    look.head(figure, title)
    return figure


def predictions(true: Any, predicted: Any, *, unit: str = "", title: str = "") -> Figure:
    """Draws predictions of a number against what is true: on the diagonal they are right.

    Args:
        true, predicted: numbers `[N]`.
        unit: what one of them is, for the axes.
        title: line above the panel.

    Returns:
        The figure.

    Raises:
        ValueError: if there is no number, or not a prediction for each.

    Example:
        >>> figure = predictions([1.0, 2.0, 3.0], [1.1, 1.8, 3.3], unit="$100,000")
    """
    true, predicted = np.ravel(np.asarray(true, float)), np.ravel(np.asarray(predicted, float))
    if not len(true) or len(true) != len(predicted):
        raise ValueError(f"Each true number needs a prediction; got {len(true)} and {len(predicted)}.")
    figure = look.figure(5.4, 5.2)
    axes = figure.subplots()
    suffix = f", {unit}" if unit else ""
    look.prepare(axes, x=f"true{suffix}", y=f"predicted{suffix}")
    axes.grid(axis="both", color=look.GRID, linewidth=0.8)
    lowest, highest = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    axes.plot([lowest, highest], [lowest, highest], color=look.MUTED, linewidth=1, linestyle=(0, (2, 3)), zorder=3)
    # Small and faint where there are many, so that their density shows.
    size, alpha = float(np.clip(4000 / len(true), 3, 24)), float(np.clip(300 / len(true), 0.25, 0.8))
    axes.scatter(true, predicted, s=size, color=look.SERIES[0], alpha=alpha, linewidths=0)
    axes.set_aspect("equal")
    look.head(figure, title)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file, whose ending decides the format; folders are made."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 `[height, width, 3]`, as `save` would write it."""
    before = figure.dpi
    figure.set_dpi(_DPI)
    try:
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3]
    finally:
        figure.set_dpi(before)
