"""Pictures of studies, drawn once and small, learning curves not at all: drawing takes most of the time of a short run.

How pictures look to users is tested in `pictures/`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from research.pictures import figures, look, plots


def _pixels(figure: Figure) -> np.ndarray:
    figure.set_layout_engine("none")
    figure.set_dpi(20)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


@pytest.fixture(autouse=True, scope="module")
def sketches():
    """Every artist of a figure is drawn, so one that cannot be drawn fails here too; of a grid of images only the first three."""
    whole_grid = figures.image_grid
    with pytest.MonkeyPatch.context() as patched:
        drawn: dict[int, tuple[Figure, np.ndarray]] = {}

        def save(figure: Figure, path: Any) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn.clear()
            drawn[id(figure)] = figure, _pixels(figure)
            imsave(path, drawn[id(figure)][1])

        def image_grid(images: Any, *, titles: Any = (), **how: Any) -> Figure:
            assert len(titles) in (0, len(images))
            return whole_grid(images[:3], titles=titles[:3], **how)

        patched.setattr(figures, "image_grid", image_grid)
        patched.setattr(plots, "learning_curves", lambda history, **_: look.figure(1, 1))
        patched.setattr(figures, "save", save)
        patched.setattr(figures, "pixels", lambda figure: drawn[id(figure)][1])
        yield
