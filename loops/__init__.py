"""Training loops around a step that you own: `fit`, `TrainLoop`, hooks, feeds."""

import importlib
from typing import TYPE_CHECKING, Any

import keras

__version__ = "0.1.0"  # setup.cfg and docs read it here

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"loops needs Keras on the TensorFlow backend, but it runs on {keras.config.backend()!r}: set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is imported."
    )

from loops import _private_api

if unsupported := _private_api.unsupported():
    raise ImportError(unsupported)

from loops import hooks, triggers
from loops.api import evaluate, fit, predict, profile
from loops.engine.nonfinite import OnNonFinite
from loops.engine.progress import Progress
from loops.engine.rows import Window
from loops.engine.timing import Timing
from loops.errors import MismatchError, NonFiniteError, Preempted, SaveError, WorkdirInUse, WorkerFailed, WorkerLost
from loops.feeds import ArrayFeed, Block, DatasetFeed, Feed, FeedSchedule, GeneratorFeed, NoFeed, Position, PyDatasetFeed
from loops.run.eval_loop import EvalLoop, PredictLoop
from loops.tasks.base import Task
from loops.tasks.clipping import ClipByGlobalNorm, ClipByNorm, ClipByValue
from loops.tasks.keras import KerasTask, SupervisedTask
from loops.tasks.learning_rates import LearningRates
from loops.tasks.reductions import Collect, Last, Mean, Sum
from loops.train_loop import TrainLoop

if TYPE_CHECKING:
    from loops.cluster.strategy import multi_worker_strategy
    from loops.run.choose_mode import choose_mode

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
    "FeedSchedule",
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
    "WorkerFailed",
    "WorkerLost",
    "choose_mode",
    "evaluate",
    "fit",
    "hooks",
    "multi_worker_strategy",
    "predict",
    "profile",
    "triggers",
]

# Loaded when they are first asked for, which few programs do; as the imports for type checkers say.
_MODULES = {"choose_mode": "loops.run.choose_mode", "multi_worker_strategy": "loops.cluster.strategy"}

if not TYPE_CHECKING:  # else a name that does not exist would pass

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(importlib.import_module(_MODULES[name]), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
