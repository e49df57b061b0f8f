"""Keeps the trained weights where `keras.callbacks.SwapEMAWeights` drops them.

With `swap_on_epoch` the callback leaves averages in the model at the end of an epoch, and the trained weights where the averages were. In
the epoch that it takes for the last it overwrites these, too: Keras has no further run that would go on from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from loops.engine.backup import Backup
from loops.tasks.replicas import local_variables

__all__ = ["SwappedAverages"]


class SwappedAverages:
    """The trained weights behind the averages in the model.

    Args:
        callbacks: Keras callbacks; only `SwapEMAWeights` matter.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]):
        self._callbacks = [callback for callback in callbacks if isinstance(callback, keras.callbacks.SwapEMAWeights)]
        self._trained: dict[int, Any] = {}

    def before_last_epoch_ends(self, model: Any, epoch: int) -> dict[int, Any]:
        """The state that the callbacks would leave if this epoch were not the last; call it right before their `on_epoch_end`.

        Returns:
            Place of a variable -> its value, to be given to `after_last_epoch_ended`.
        """
        swapping = [callback for callback in self._callbacks if callback.swap_on_epoch]
        if not swapping:
            return {}
        variables = _variables(model)
        before = Backup(variables)
        for callback in swapping:
            given, callback.params = callback.params, {**callback.params, "epochs": 0}
            callback.on_epoch_end(epoch)
            callback.params = given
        swapped = Backup(variables).values
        for callback in swapping:
            callback.on_test_end()
        before.restore()
        return dict(enumerate(swapped))

    def after_last_epoch_ended(self, model: Any, swapped: dict[int, Any]) -> None:
        """Remembers what is not in the model or its optimizer any more."""
        values = Backup(_variables(model)).values if swapped else ()
        self._trained = {i: swapped[i] for i, now in enumerate(values) if not np.array_equal(np.asarray(now), np.asarray(swapped[i]))}

    def put_back(self, model: Any) -> None:
        """Undoes what made the last epoch differ from others; the callbacks can swap again."""
        variables = _variables(model) if self._trained else []
        for i, value in self._trained.items():
            variables[i].assign(value)
        self._trained = {}

    def swap_back(self, model: Any, *, in_epochs: bool) -> None:
        """Puts the trained weights into the model.

        Args:
            model: the model.
            in_epochs: False leaves alone callbacks that swap back by themselves when the next epoch begins.
        """
        self.put_back(model)
        for callback in self._callbacks:
            if in_epochs or not callback.swap_on_epoch:
                callback.on_test_end()

    def arrays(self) -> dict[str, np.ndarray]:
        """What is remembered."""
        return {f"trained/{i}": np.array(value) for i, value in self._trained.items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Restores what `arrays` gave."""
        self._trained = {int(name.split("/")[1]): array for name, array in arrays.items() if name.startswith("trained/")}


def _variables(model: Any) -> list[Any]:
    return local_variables([*model.variables, *model.optimizer.variables])
