"""Keras callbacks that write files or draw: of several worker processes those of the chief act, and stand-ins elsewhere do nothing."""

from __future__ import annotations

from typing import Any

import keras

from loops import _private_api
from loops.cluster import Cluster

__all__ = ["left_to_chief"]

_kc = keras.callbacks
_WRITING = (_kc.ModelCheckpoint, _kc.CSVLogger, _kc.TensorBoard, _kc.RemoteMonitor, _kc.ProgbarLogger)
_METHODS = [name for name in dir(_kc.Callback) if name.startswith("on_")]


def left_to_chief(callback: Any, cluster: Cluster) -> Any:
    """The callback itself, or what stands for it in a worker that does not write.

    Raises:
        ValueError: for a callback that would bring back a state on one worker only.
    """
    if not cluster.several or not isinstance(callback, _kc.Callback):
        return callback
    if isinstance(callback, _kc.BackupAndRestore):
        raise ValueError(
            "keras.callbacks.BackupAndRestore would restore each of several workers from what it finds by itself. Give a `workdir`: "
            "the chief saves the state of all workers there, and all go on from it."
        )
    return callback if cluster.is_chief or not isinstance(callback, _WRITING) else _StandIn(callback)


class _StandIn(keras.callbacks.Callback):
    """Does nothing, and looks when its callback would look: all workers have to pause at the same steps."""

    def __init__(self, callback: keras.callbacks.Callback):
        super().__init__()
        for name in _METHODS:
            if not _private_api.does_nothing(getattr(callback, name)):
                setattr(self, name, _nothing)


def _nothing(*arguments: Any, **named: Any) -> None:
    pass
