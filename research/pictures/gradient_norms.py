"""A hook that keeps how large the gradient of each layer is while a net learns. `research.pictures.plots.gradient_norms` draws it.

For histograms of every gradient use `hooks.TensorBoard(histogram_freq=1)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loops import hooks

if TYPE_CHECKING:
    from loops import TrainLoop, Window

__all__ = ["GradientNorms"]


class GradientNorms(hooks.Hook):
    """Keeps the norm of the gradient of each layer's kernel at the last step of each window, and the mean loss of the window.

    Args:
        every: how often: "50 steps", "1 epoch", or a trigger.

    Attributes:
        layers: names of the layers, in the order of the model's variables.
        steps: the steps at which it looked.
        norms: a row for each look, a number for each layer.
        losses: a number for each look.

    Example:
        >>> import keras, loops
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, name="first"), keras.layers.Dense(1, name="last")])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> norms = GradientNorms(every="2 steps")
        >>> history = loops.TrainLoop(task, loops.ArrayFeed((np.ones([128, 4]), np.ones([128, 1]))), hooks=[norms]).run(epochs=1)
        >>> norms.layers, norms.steps, np.shape(norms.norms)
        (['first', 'last'], [2, 4], (2, 2))
    """

    observes = frozenset({"gradients"})

    def __init__(self, every: Any = "1 epoch"):
        self.every = every
        self._reset()

    def _reset(self) -> None:
        self.layers: list[str] = []
        self.steps: list[int] = []
        self.norms: list[list[float]] = []
        self.losses: list[float] = []

    def by_layer(self) -> dict[str, list[float]]:
        """Name of the layer -> a norm for each look."""
        return {name: [row[i] for row in self.norms] for i, name in enumerate(self.layers)}

    def on_train_begin(self, loop: TrainLoop) -> None:
        if loop.progress.step == 0:
            self._reset()

    def on_window_end(self, loop: TrainLoop, window: Window) -> None:
        gradients = window.observed["gradients"]
        # In the order of the variables: the program hands gradients out by name.
        paths = [v.path for v in loop.task.trainable_variables if v.path in gradients and v.path.endswith("/kernel")]
        self.layers = [path.split("/")[-2] for path in paths]
        self.steps.append(window.last_step)
        self.norms.append([float(np.linalg.norm(gradients[path])) for path in paths])
        self.losses.append(window.mean("loss"))

    def state_dict(self) -> dict[str, Any]:
        return {"layers": list(self.layers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reset()
        self.layers = list(state["layers"])

    def state_arrays(self) -> dict[str, np.ndarray]:
        return {
            "steps": np.array(self.steps, np.int64),
            "norms": np.array(self.norms, np.float64),
            "losses": np.array(self.losses, np.float64),
        }

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.steps, self.norms, self.losses = (arrays[name].tolist() for name in ("steps", "norms", "losses"))
