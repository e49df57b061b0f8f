"""Training loops around a step that you own: `fit`, `TrainLoop`, hooks, feeds."""

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"loops needs Keras on the TensorFlow backend, but it runs on {keras.config.backend()!r}: set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is imported."
    )

from loops import hooks, triggers
from loops.accounting import Timing
from loops.api import evaluate, fit, predict
from loops.eval_loop import EvalLoop, PredictLoop
from loops.feeds import ArrayFeed, Block, DatasetFeed, Feed, GeneratorFeed, NoFeed, Position, PyDatasetFeed
from loops.gradients import ClipByGlobalNorm, ClipByNorm, ClipByValue
from loops.hooks.profile import profile
from loops.interrupts import Preempted
from loops.keras_task import KerasTask
from loops.logs import Collect, Last, Mean, Sum, Window
from loops.nonfinite import NonFiniteError, OnNonFinite
from loops.progress import Progress
from loops.run_folder import SaveError
from loops.runstate import MismatchError
from loops.schedules import LearningRates
from loops.supervised import SupervisedTask
from loops.task import Task
from loops.train_loop import TrainLoop
from loops.workdir_lock import WorkdirInUse

__all__ = [
    "ArrayFeed",
    "Block",
    "ClipByGlobalNorm",
    "ClipByNorm",
    "ClipByValue",
    "Collect",
    "DatasetFeed",
    "EvalLoop",
    "Feed",
    "GeneratorFeed",
    "KerasTask",
    "Last",
    "LearningRates",
    "Mean",
    "MismatchError",
    "NoFeed",
    "NonFiniteError",
    "OnNonFinite",
    "Position",
    "PredictLoop",
    "Preempted",
    "Progress",
    "PyDatasetFeed",
    "SaveError",
    "Sum",
    "SupervisedTask",
    "Task",
    "Timing",
    "TrainLoop",
    "Window",
    "WorkdirInUse",
    "evaluate",
    "fit",
    "hooks",
    "predict",
    "profile",
    "triggers",
]
