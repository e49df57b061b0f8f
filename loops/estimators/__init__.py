"""scikit-learn estimators around Keras models and tasks, trained by this library.

`import loops` does not import this room, so that only its users need scikit-learn (the extra `research`).
"""

try:
    import sklearn.utils.validation

    sklearn.utils.validation.validate_data  # noqa: B018
except (ImportError, AttributeError) as error:
    raise ImportError('loops.estimators needs scikit-learn 1.6 or newer: pip install "tapeloops[research]".') from error

from loops.estimators.classifier import LoopsClassifier
from loops.estimators.regressor import LoopsRegressor
from loops.estimators.task_estimator import TaskEstimator

__all__ = ["LoopsClassifier", "LoopsRegressor", "TaskEstimator"]
