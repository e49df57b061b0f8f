"""Hooks observe and steer a training loop from outside, one hook a file. Write your own on `Hook`.

`Phase` orders the hooks at a boundary; `Loop` lists what a hook may ask of the loop. A hook knows neither programs nor the reading of data.
The module of a hook is loaded when the hook is first asked for: most runs use a few of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loops.hooks.base import Hook, Loop, Phase

if TYPE_CHECKING:
    from loops.hooks.condition import ConditionHook
    from loops.hooks.csv_logger import CSVLogger
    from loops.hooks.early_stopping import EarlyStopping
    from loops.hooks.evaluate import Evaluate
    from loops.hooks.history import History
    from loops.hooks.keras_callbacks import KerasCallbacks
    from loops.hooks.lambda_hook import LambdaHook
    from loops.hooks.learning_rate_scheduler import LearningRateScheduler
    from loops.hooks.load_weights import LoadWeights
    from loops.hooks.loss_spike import LossSpike
    from loops.hooks.mlflow import MLflow
    from loops.hooks.model_checkpoint import ModelCheckpoint
    from loops.hooks.monitor import MonitorHook
    from loops.hooks.notify import Notify
    from loops.hooks.profile import Profile
    from loops.hooks.progress_bar import ProgressBar
    from loops.hooks.reduce_lr_on_plateau import ReduceLROnPlateau
    from loops.hooks.remote_monitor import RemoteMonitor
    from loops.hooks.report import Report
    from loops.hooks.snapshot import Snapshot
    from loops.hooks.tensorboard import TensorBoard
    from loops.hooks.terminate_on_nan import TerminateOnNaN
    from loops.hooks.unfreeze import Unfreeze
    from loops.hooks.wandb import WandB

__all__ = [
    "CSVLogger",
    "ConditionHook",
    "EarlyStopping",
    "Evaluate",
    "History",
    "Hook",
    "KerasCallbacks",
    "LambdaHook",
    "LearningRateScheduler",
    "LoadWeights",
    "Loop",
    "LossSpike",
    "MLflow",
    "ModelCheckpoint",
    "MonitorHook",
    "Notify",
    "Phase",
    "Profile",
    "ProgressBar",
    "ReduceLROnPlateau",
    "RemoteMonitor",
    "Report",
    "Snapshot",
    "TensorBoard",
    "TerminateOnNaN",
    "Unfreeze",
    "WandB",
]

# Where each of the others is; as the imports for type checkers say.
_MODULES = {
    "ConditionHook": "condition",
    "CSVLogger": "csv_logger",
    "EarlyStopping": "early_stopping",
    "Evaluate": "evaluate",
    "History": "history",
    "KerasCallbacks": "keras_callbacks",
    "LambdaHook": "lambda_hook",
    "LearningRateScheduler": "learning_rate_scheduler",
    "LoadWeights": "load_weights",
    "LossSpike": "loss_spike",
    "MLflow": "mlflow",
    "ModelCheckpoint": "model_checkpoint",
    "MonitorHook": "monitor",
    "Notify": "notify",
    "Profile": "profile",
    "ProgressBar": "progress_bar",
    "ReduceLROnPlateau": "reduce_lr_on_plateau",
    "RemoteMonitor": "remote_monitor",
    "Report": "report",
    "Snapshot": "snapshot",
    "TensorBoard": "tensorboard",
    "TerminateOnNaN": "terminate_on_nan",
    "Unfreeze": "unfreeze",
    "WandB": "wandb",
}

if not TYPE_CHECKING:  # else a name that does not exist would pass

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = hook = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        return hook

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
