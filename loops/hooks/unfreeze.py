"""Fine-tuning: makes frozen layers trainable when a metric has reached a value or stopped improving."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras

from loops import _private_api
from loops.choices import At, Direction
from loops.hooks.base import Loop, Phase
from loops.hooks.condition import ConditionHook
from loops.messages import say
from loops.tasks.tracking import layers_of

__all__ = ["Unfreeze"]

NameOrLayer: TypeAlias = str | keras.layers.Layer


class Unfreeze(ConditionHook):
    """Sets `trainable = True` on layers when `monitor` reached `threshold`, or has not improved for `patience` epochs (or evaluations).

    Several arguments are stages: the first is unfrozen when the condition is met, the next when it is met once more. The layers of a list
    are unfrozen together. The training step is then traced again, and the loop says so; optimizers get slots for what was frozen, which
    begin as they do in a new optimizer. The `trainable` flags are part of the run state. Each epoch logs "unfrozen_layers", the number of
    layers that were unfrozen when it began, and the learning rate.

    Freeze layers before training, one by one (`for layer in model.layers[:-1]: layer.trainable = False`).

    Args:
        *stages: layers or their names, or lists of these.
        monitor: name of the metric.
        threshold: value to reach.
        patience: epochs (or evaluations) without improvement. Exactly one of `threshold` and `patience` is given.
        learning_rate_factor: what to multiply all learning rates with at each stage, more than 0; fine-tuning needs small steps.
        mode: "auto", "min" or "max".
        min_delta: smallest change that counts as an improvement.
        at: "epoch", or "evaluation" to look at every evaluation, at any cadence.

    Attributes:
        stage: how many stages were unfrozen.

    Raises:
        ValueError: if an argument is not valid; when training begins, if a layer does not exist or is inside a frozen one, or if a learning
            rate is to be scaled and cannot be.

    References:
        Howard and Ruder 2018, Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146 (gradual unfreezing).

    Example:
        >>> from loops import hooks
        >>> gradually = hooks.Unfreeze("block_3", "block_2", monitor="val_loss", patience=2, learning_rate_factor=0.1)
        >>> at_once = hooks.Unfreeze(["block_3", "block_2"], monitor="val_accuracy", threshold=0.9)
    """

    phase = Phase.DECIDE

    def __init__(
        self,
        *stages: NameOrLayer | Sequence[NameOrLayer],
        monitor: str = "val_loss",
        threshold: float | None = None,
        patience: int | None = None,
        learning_rate_factor: float = 1.0,
        mode: Direction = "auto",
        min_delta: float = 0.0,
        at: At = "epoch",
    ):
        super().__init__(monitor, threshold=threshold, patience=patience, mode=mode, min_delta=min_delta, at=at)
        self.stages = [list(stage) if isinstance(stage, (list, tuple)) else [stage] for stage in stages]
        if not self.stages or not all(self.stages):
            raise ValueError("Unfreeze needs layers to set free: their names, or the layers themselves.")
        for item in (item for stage in self.stages for item in stage):
            if not isinstance(item, (str, keras.layers.Layer)):
                raise ValueError(f"Unfreeze takes layers and names of layers; got {item!r}.")
        if not 0 < learning_rate_factor < float("inf"):
            raise ValueError(f"learning_rate_factor of Unfreeze is a finite number, more than 0; got {learning_rate_factor!r}.")
        self.learning_rate_factor = learning_rate_factor
        self._at_epoch_begin = 0

    @property
    def stage(self) -> int:
        return self.met

    @property
    def done(self) -> bool:
        return self.met >= len(self.stages)

    @property
    def freed(self) -> int:
        """How many layers this hook had unfrozen when the epoch began."""
        return sum(map(len, self.stages[: self._at_epoch_begin]))

    def on_train_begin(self, loop: Loop) -> None:
        super().on_train_begin(loop)
        if self.learning_rate_factor != 1.0:
            loop.learning_rate.make_scalable()
        for stage in self.stages:
            for layer in self._layers(loop, stage):
                self._check_not_inside_frozen(loop, layer)

    def on_epoch_begin(self, loop: Loop) -> None:
        self._at_epoch_begin = self.met

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        # Each `Unfreeze` logs the sum over all of them, so that their order does not matter.
        loop.log("unfrozen_layers", sum(hook.freed for hook in loop.hooks if isinstance(hook, Unfreeze)))
        for name, rate in loop.learning_rate.logs().items():
            loop.log(name, rate)
        super().on_epoch_end(loop, logs)

    def on_condition(self, loop: Loop, reason: str) -> None:
        layers = self._layers(loop, self.stages[self.met - 1])
        for layer in layers:
            layer.trainable = True
        rates = ""
        if self.learning_rate_factor != 1.0:
            loop.learning_rate.scale(self.learning_rate_factor)
            rates = f"; learning rate {', '.join(f'{rate:g}' for _, rate in loop.learning_rate.items())}"
        names = ", ".join(layer.name for layer in layers)
        say(f"\nStep {loop.progress.step:,}, epoch {loop.progress.epoch + 1}: Unfreeze sets {names} free ({reason}){rates}.")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "at_epoch_begin": self._at_epoch_begin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._at_epoch_begin = state["at_epoch_begin"]

    @staticmethod
    def _layers(loop: Loop, stage: Sequence[NameOrLayer]) -> list[keras.layers.Layer]:
        known = _all_layers(loop)
        found = []
        for item in stage:
            matching = [layer for layer in known if layer is item or layer.name == item]
            if not matching:
                name = item if isinstance(item, str) else item.name
                names = [layer.name for layer in known]
                near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
                there = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {', '.join(names)}."
                raise ValueError(f"Unfreeze found no layer {name!r} in the task's models; {there}")
            if len(matching) > 1:
                raise ValueError(f"{len(matching)} layers are named {item!r}; give Unfreeze the layer itself.")
            found.append(matching[0])
        return found

    @staticmethod
    def _check_not_inside_frozen(loop: Loop, layer: keras.layers.Layer) -> None:
        for outer in _all_layers(loop):
            if outer is not layer and not outer.trainable and any(inner is layer for inner in _private_api.layers_within(outer)):
                raise ValueError(
                    f"Unfreeze cannot set {layer.name!r} free while {outer.name!r}, which it is inside of, is frozen as a whole; freeze "
                    f"the layers of {outer.name!r} one by one."
                )


def _all_layers(loop: Loop) -> list[keras.layers.Layer]:
    return layers_of(loop.task.models)
