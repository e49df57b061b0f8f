"""The classifier around a Keras model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.class_weight import compute_sample_weight

from loops.estimators import classes as labels
from loops.estimators.base import Rows
from loops.estimators.model_estimator import ModelEstimator

__all__ = ["LoopsClassifier"]


class LoopsClassifier(ClassifierMixin, ModelEstimator):
    """A Keras model as a classifier of scikit-learn, trained by `loops.fit`.

    Args:
        model: a compiled `keras.Model`, or a function `(X, y, **model_kwargs)` that returns one. A given model is copied for each fit and
            stays as it is: with new weights, or with `warm_start=True` with its own. The function gets one-hot labels `[N, classes]`.
        warm_start: whether `fit` goes on with the model of the last fit.
        model_kwargs: arguments of the function; single ones are set and searched as `model_kwargs__NAME`.
        fit_kwargs: further arguments of `loops.fit`, such as `steps_per_epoch`; `class_weight` is a dict from labels or "balanced".
        batch_size, epochs, verbose, shuffle, callbacks, hooks, compile, clip, on_nonfinite: as in `loops.fit`. Hooks and callbacks are
            copied for each fit.
        early_stopping: whether to stop when the loss on rows held out has not become smaller by more than `tol` in `n_iter_no_change`
            epochs; the weights of the best epoch stay. "auto": where `validation_fraction` is given.
        validation_fraction: the share of the rows that is held out, the same share of each class; None: 0.1 if `early_stopping` is True,
            else nothing is. With `early_stopping=False` they are only watched.
        n_iter_no_change, tol: see `early_stopping`.
        random_state: seed of the weights, random layers, the order of the rows and the rows held out; an integer gives the weights that
            `keras.utils.set_random_seed` gives.

    Attributes:
        model_: the fitted model.
        classes_: the labels, sorted, `[classes]`.
        n_features_in_: the second dimension of X.
        feature_names_in_: names of the columns, if X was a data frame whose columns have text as names.
        history_: name -> values by epoch, all fits since the last one from the beginning.
        n_iter_: epochs that it was trained.

    What the labels become follows from the model: one output unit gets 0 and 1; a sparse loss (or one with `sparse` in its name) gets class
    indices; else one-hot rows.

    Example:
        >>> import keras
        >>> from sklearn.datasets import load_iris
        >>> def make(X, y, units=16, rate=0.01):
        ...     layers = [keras.layers.Dense(units, "relu"), keras.layers.Dense(y.shape[1], "softmax")]
        ...     model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
        ...     model.compile(keras.optimizers.Adam(rate), "categorical_crossentropy")
        ...     return model
        >>> classifier = LoopsClassifier(make, model_kwargs={"units": 32}, epochs=20, compile="graph", random_state=0)
        >>> x, y = load_iris(return_X_y=True)
        >>> classifier.fit(x, y).score(x, y) > 0.9
        True
        >>> classifier.set_params(model_kwargs__rate=0.1).model_kwargs
        {'units': 32, 'rate': 0.1}
    """

    def partial_fit(self, X: Any, y: Any, classes: Any = None, **fit_kwargs: Any) -> Any:
        """Trains for one epoch on some rows, going on from where the last call or fit stood, optimizer included.

        Args:
            X, y, fit_kwargs: as in `fit`.
            classes: all labels that there will be; needed in the first call, and only there.

        Returns:
            The estimator itself.

        Raises:
            ValueError: without `classes` in the first call, or for other ones later.
        """
        labels.check_known(self.classes_ if self.__sklearn_is_fitted__() else None, classes)
        return self._partial_fit(X, y, fit_kwargs, classes)

    def predict(self, X: Any) -> np.ndarray:
        """The most likely label of each row, `[N]`."""
        outputs = self._outputs(X)
        return np.asarray(self.classes_[labels.most_likely(outputs, len(self.classes_), logits=self._gives_logits())])

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, `[N, classes]`, in the order of `classes_`.

        Raises:
            ValueError: if the outputs are no probabilities, and no logits of a loss with `from_logits=True`.
        """
        return labels.probabilities(self._outputs(X), len(self.classes_), logits=self._gives_logits())

    def _learn_target(self, y: Any, classes: Any, *, reset: bool) -> np.ndarray:
        y = labels.checked_labels(y)
        if reset:
            self.classes_ = labels.found_in(y, classes)
        return labels.codes_of(y, self.classes_)

    def _groups(self, y: Any) -> Any:
        return y

    def _shown_target(self, y: Any) -> np.ndarray:
        return labels.one_hot(y, len(self.classes_))

    def _target(self, y: Any, model: keras.Model) -> np.ndarray:
        return labels.target_for(y, len(self.classes_), self._units, model.loss)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # how good it becomes is up to the model that it was given
        return tags

    def _gives_logits(self) -> bool:
        return labels.with_logits(self.model_.loss)

    def _train(self, made: Any, rows: Rows, validation: Any, arguments: dict[str, Any], seed: int) -> Any:
        if (balance := arguments.get("class_weight")) is not None:
            if isinstance(balance, dict) and (unknown := [label for label in balance if label not in self.classes_]):
                raise ValueError(f"`class_weight` names {unknown[0]!r}, which is none of the classes {list(self.classes_)!r}.")
            factors = compute_sample_weight(balance, self.classes_[rows.y]).astype(keras.config.floatx())
            rows = dataclasses.replace(rows, weights=factors if rows.weights is None else rows.weights * factors)
        return super()._train(made, rows, validation, {**arguments, "class_weight": None}, seed)
