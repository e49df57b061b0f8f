"""The objects that the last steps trained. A hook may put others into the task at a look; what is saved then are still the trained ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from loops.tasks.base import Task
from loops.tasks.tracking import Tracked, layers_of

__all__ = ["Trained"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a task held when its steps were traced.

    Attributes:
        model: the task's `model`, or None.
        tracked: its models, optimizers, metrics and variables.
        layers: the layers of the models, those inside others included.
    """

    model: Any
    tracked: Tracked
    layers: tuple[Any, ...]

    @classmethod
    def of(cls, task: Task) -> Trained:
        """What the task holds now."""
        tracked = task.tracked
        return cls(task.model, tracked, tuple(layers_of(tracked.layers)))

    @property
    def intact(self) -> bool:
        """Whether the models still have the layers that were trained: a hook may have changed a model itself."""
        now = layers_of(self.tracked.layers)
        return len(now) == len(self.layers) and all(a is b for a, b in zip(now, self.layers, strict=True))

    @property
    def weights(self) -> list[Any]:
        """The weights of `model`, else of the whole task, without seed generators and metrics: these are not learned."""
        # The order of `weights` does not depend on `trainable` flags.
        return list(self.model.weights) if isinstance(self.model, keras.layers.Layer) else self.tracked.weights()
