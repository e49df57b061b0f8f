"""Hooks observe and steer a training loop from outside, one hook a file. Write your own on `Hook`.

`Phase` orders the hooks at a boundary; `Loop` lists what a hook may ask of the loop. A hook knows neither programs nor the reading of data.
"""

from __future__ import annotations

from loops.hooks.base import Hook, Loop, Phase
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
