"""Pictures of data and of what a model makes of it, for `plots/` and TensorBoard. Needs matplotlib, but no display and no pyplot state.

Curves of finished runs are in `research.plots`; where a picture is written is the business of `research.study.Run.picture`.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["pixels", "save"]

_DPI = 160


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file, whose ending decides the format; folders are made."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)


def pixels(figure: Figure) -> np.ndarray:
    """The figure as uint8 `[height, width, 3]`, as `save` would write it."""
    canvas: Any = FigureCanvasAgg(figure)
    before = figure.dpi
    try:
        figure.set_dpi(_DPI)
        canvas.draw()
        return np.array(canvas.buffer_rgba())[..., :3]
    finally:
        figure.set_dpi(before)
