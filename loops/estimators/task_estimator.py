"""The estimator around a task: whatever `train_step` does, with scikit-learn's `fit`, `predict` and `score`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import ClassifierTags, RegressorTags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from loops import hooks
from loops.estimators import classes as labels
from loops.estimators import numbers
from loops.estimators.arguments import OF_TASKS, OWN, Arguments
from loops.estimators.base import LoopsEstimator, Rows
from loops.estimators.parameters import keywords_of
from loops.feeds import ArrayFeed
from loops.hooks.progress_bar import ProgressBar
from loops.run.eval_loop import EvalLoop
from loops.tasks.base import Task
from loops.tasks.checks import check_task
from loops.train_loop import TrainLoop

__all__ = ["TaskEstimator"]

_KINDS = (None, "classifier", "regressor")


def _classifies(estimator: TaskEstimator) -> bool:
    return estimator.kind == "classifier"


class TaskEstimator(LoopsEstimator):
    """A `loops.Task` as an estimator of scikit-learn, trained by `loops.TrainLoop`.

    Args:
        task: a function `(X, y, **task_kwargs)` that returns a new `loops.Task`, with a `predict_step`.
        kind: "classifier": the task gets class indices `[N]` as y, and `predict_step` gives a probability for each class (or one, for the
            second of two). "regressor": it gets numbers `[N]` or `[N, outputs]` and gives as many. None: y is what the user gives, or
            nothing, and what `predict_step` gives is returned as it is.
        task_kwargs: arguments of the function; single ones are set and searched as `task_kwargs__NAME`.
        warm_start: whether `fit` goes on with the task of the last fit.
        fit_kwargs: further arguments of `loops.TrainLoop`: `steps_per_epoch`, `workdir`, `resume`, `strategy`, `config`.
        batch_size, epochs, verbose, shuffle, callbacks, hooks: as in `loops.fit`. Hooks and callbacks are copied for each fit.
        compile, clip, on_nonfinite: as in `loops.TrainLoop`.
        early_stopping, validation_fraction, n_iter_no_change, tol: as in `LoopsClassifier`; they need an `eval_step` that gives `loss`.
        random_state: as in `LoopsClassifier`.

    Attributes:
        task_: the fitted task.
        classes_: of a classifier: the labels, sorted.
        n_features_in_, feature_names_in_, history_, n_iter_: as in `LoopsClassifier`.

    A batch is `x`, `(x, y)`, or `(x, y, sample_weight)` where weights are given.

    Example:
        >>> import keras, loops, numpy as np, tensorflow as tf
        >>> class Autoencoder(loops.Task):
        ...     def __init__(self, X, y, code=2):
        ...         super().__init__()
        ...         layers = [keras.layers.Dense(code), keras.layers.Dense(X.shape[1])]
        ...         self.model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
        ...         self.optimizer = keras.optimizers.Adam(0.05)
        ...     def loss(self, x):
        ...         return self.compute_loss("mse", x, self.model(x))
        ...     def train_step(self, x):
        ...         with tf.GradientTape() as tape:
        ...             loss = self.loss(x)
        ...         self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        ...         return {"loss": loss}
        ...     def eval_step(self, x):
        ...         return {"loss": self.loss(x)}
        ...     def predict_step(self, x):
        ...         return self.model(x)
        >>> x = np.random.default_rng(0).normal(size=[64, 2]) @ np.random.default_rng(1).normal(size=[2, 5])
        >>> estimator = TaskEstimator(Autoencoder, task_kwargs={"code": 2}, epochs=100, compile="graph", random_state=0)
        >>> estimator.fit(x).predict(x).shape, estimator.score(x) > -0.1
        ((64, 5), True)
    """

    nested = ("task_kwargs", "fit_kwargs")
    fitted = "task_"
    held = ()

    def __init__(
        self,
        task: Callable[..., Task],
        kind: str | None = None,
        *,
        task_kwargs: Mapping[str, Any] | None = None,
        warm_start: bool = False,
        fit_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = 0,
        shuffle: bool = True,
        callbacks: Any = None,
        hooks: Any = None,
        compile: str = "auto",
        clip: Any = None,
        on_nonfinite: Any = "raise",
        early_stopping: bool | str = "auto",
        validation_fraction: float | None = None,
        n_iter_no_change: int = 10,
        tol: float = 0.0,
        random_state: Any = None,
    ):
        self.task = task
        self.kind = kind
        self.task_kwargs = task_kwargs
        self.warm_start = warm_start
        self.fit_kwargs = fit_kwargs
        self.batch_size = batch_size
        self.epochs = epochs
        self.verbose = verbose
        self.shuffle = shuffle
        self.callbacks = callbacks
        self.hooks = hooks
        self.compile = compile
        self.clip = clip
        self.on_nonfinite = on_nonfinite
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.random_state = random_state

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_kwargs: Any) -> Any:
        """Trains for one epoch on some rows, going on from where the last call or fit stood, optimizers included.

        Args:
            X, y, fit_kwargs: as in `fit`.
            classes: of a classifier: all labels that there will be; needed in the first call, and only there.

        Returns:
            The estimator itself.
        """
        if self.kind == "classifier":
            labels.check_known(getattr(self, "classes_", None) if self.__sklearn_is_fitted__() else None, classes)
        return self._partial_fit(X, y, fit_kwargs, classes)

    def predict(self, X: Any) -> np.ndarray:
        """What `predict_step` gives for each row, as labels of a classifier, and float64 numbers of a regressor."""
        outputs = self._outputs(X)
        if self.kind == "classifier":
            return np.asarray(self.classes_[labels.most_likely(outputs, len(self.classes_), logits=False)])
        return numbers.predicted(outputs, self._width) if self.kind == "regressor" else outputs

    @available_if(_classifies)
    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, `[N, classes]`, in the order of `classes_`; of classifiers only."""
        return labels.probabilities(self._outputs(X), len(self.classes_), logits=False)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The share of right labels of a classifier, R2 of a regressor, else minus the `loss` that `eval_step` returns."""
        if self.kind is not None:
            measure = accuracy_score if self.kind == "classifier" else r2_score
            return float(measure(y, self.predict(X), sample_weight=sample_weight))
        check_is_fitted(self)
        rows = self._with_weights(*self._checked(X, y, reset=False), sample_weight)
        logs = EvalLoop(self.task_, compile="eager" if self._mode == "eager" else "graph").run(_feed(rows, self._batch))
        if "loss" not in logs:
            raise ValueError(f"eval_step of {type(self.task_).__name__} returns no `loss` to score by, but {', '.join(logs) or 'nothing'}.")
        return -float(logs["loss"])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = self.kind
        tags.target_tags.required = self.kind is not None
        if self.kind == "classifier":
            tags.classifier_tags = ClassifierTags(poor_score=True)  # how good it becomes is up to the task
        elif self.kind == "regressor":
            tags.regressor_tags, tags.target_tags.multi_output = RegressorTags(poor_score=True), True
        return tags

    def _entries_of(self, holder: str) -> Collection[str] | None:
        return OF_TASKS if holder == "fit_kwargs" else keywords_of(self.task, without=("X", "y"))

    def _arguments(self, given: dict[str, Any]) -> Arguments:
        if self.kind not in _KINDS:
            raise ValueError(f'`kind` is "classifier", "regressor" or None; got {self.kind!r}.')
        defaults = {name: parameter.default for name, parameter in inspect.signature(TaskEstimator).parameters.items()}
        return Arguments({name: getattr(self, name) for name in OWN}, defaults, self.fit_kwargs, given, OF_TASKS)

    def _y_checks(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True} if self.kind == "regressor" else {}

    def _learn_target(self, y: Any, classes: Any, *, reset: bool) -> Any:
        if self.kind == "classifier":
            y = labels.checked_labels(y)
            if reset:
                self.classes_ = labels.found_in(y, classes)
            return labels.codes_of(y, self.classes_)
        if self.kind == "regressor":
            y = numbers.checked_numbers(y)
            if reset:
                self._width = tuple(y.shape[1:])
            return numbers.of_width(y, self._width)
        return y

    def _groups(self, y: Any) -> Any:
        return y if self.kind == "classifier" else None

    def _new(self, rows: Rows) -> Task:
        if self.task_kwargs is not None and not isinstance(self.task_kwargs, Mapping):
            raise TypeError(f"`task_kwargs` is a dict of arguments of the function, or None; got {self.task_kwargs!r}.")
        if not callable(self.task):
            raise TypeError(f"`task` is a function (X, y, **task_kwargs) that returns a loops.Task; got {self.task!r}.")
        made = self.task(X=rows.x, y=rows.y, **(self.task_kwargs or {}))
        check_task(made, "train_step")
        return made

    def _train(self, made: Any, rows: Rows, validation: Any, arguments: dict[str, Any], seed: int) -> hooks.History:
        of_loop = dict(arguments)
        epochs, verbose, size, shuffle = (of_loop.pop(name) for name in ("epochs", "verbose", "batch_size", "shuffle"))
        given = [*of_loop.pop("callbacks"), *of_loop.pop("hooks")]
        if verbose and not any(isinstance(hook, ProgressBar) for hook in given):
            given.append(ProgressBar(verbose=1 if verbose == "auto" else int(verbose)))
        evaluate = {} if validation is None else {"val": _feed(validation, size or 32)}
        feed = _feed(rows, size or 32, shuffle=bool(shuffle), seed=seed)
        loop = TrainLoop(made, feed, given, evaluate=evaluate, seed=seed, **of_loop)
        history: hooks.History = loop.run(epochs=epochs)
        if loop.outcome == "interrupted":
            raise KeyboardInterrupt
        return history

    def _prediction_task(self) -> Task:
        task: Task = self.task_
        return task


def _feed(rows: Rows, size: int, *, shuffle: bool = False, seed: int = 0) -> ArrayFeed:
    if rows.weights is not None and rows.y is None:
        raise ValueError("sample_weight needs y: a batch with weights is (x, y, sample_weight).")
    parts = rows.parts()
    return ArrayFeed(parts if len(parts) > 1 else parts[0], size, shuffle=shuffle, seed=seed)
