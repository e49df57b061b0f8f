"""The regressor around a Keras model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from sklearn.base import RegressorMixin

from loops.estimators import numbers
from loops.estimators.model_estimator import ModelEstimator

__all__ = ["LoopsRegressor"]


class LoopsRegressor(RegressorMixin, ModelEstimator):
    """A Keras model as a regressor of scikit-learn, trained by `loops.fit`.

    Args:
        model: a compiled `keras.Model`, or a function `(X, y, **model_kwargs)` that returns one, as in `LoopsClassifier`. The function gets
            targets `[N, outputs]`; the model has to have as many output units.
        warm_start, model_kwargs, fit_kwargs: as in `LoopsClassifier`; `class_weight` is for classifiers.
        batch_size, epochs, verbose, shuffle, callbacks, hooks, compile, clip, on_nonfinite: as there.
        early_stopping, validation_fraction, n_iter_no_change, tol, random_state: as there.

    Attributes:
        model_: the fitted model.
        n_features_in_: the second dimension of X.
        feature_names_in_: names of the columns, if X was a data frame whose columns have text as names.
        history_: name -> values by epoch, all fits since the last one from the beginning.
        n_iter_: epochs that it was trained.

    Example:
        >>> import keras, numpy as np
        >>> def make(X, y, rate=0.1):
        ...     model = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Dense(y.shape[1])])
        ...     model.compile(keras.optimizers.Adam(rate), "mse")
        ...     return model
        >>> x = np.random.default_rng(0).normal(size=[200, 3])
        >>> regressor = LoopsRegressor(make, epochs=20, compile="graph", random_state=0).fit(x, x @ [1, 2, 3])
        >>> round(regressor.score(x, x @ [1, 2, 3]), 2)
        1.0
    """

    def partial_fit(self, X: Any, y: Any, **fit_kwargs: Any) -> Any:
        """Trains for one epoch on some rows, going on from where the last call or fit stood, optimizer included.

        Args:
            X, y, fit_kwargs: as in `fit`.

        Returns:
            The estimator itself.
        """
        return self._partial_fit(X, y, fit_kwargs)

    def predict(self, X: Any) -> np.ndarray:
        """Predictions for each row, float64 `[N]`, or `[N, outputs]` if it was fitted on such targets."""
        return numbers.predicted(self._outputs(X), self._width)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.regressor_tags.poor_score = True  # how good it becomes is up to the model that it was given
        return tags

    def _y_checks(self) -> dict[str, Any]:
        return {"multi_output": True, "y_numeric": True}

    def _learn_target(self, y: Any, classes: Any, *, reset: bool) -> np.ndarray:
        y = numbers.checked_numbers(y)
        if reset:
            self._width = tuple(y.shape[1:])
        return numbers.of_width(y, self._width)

    def _shown_target(self, y: Any) -> np.ndarray:
        return np.asarray(y.reshape(len(y), -1))

    def _target(self, y: Any, model: keras.Model) -> np.ndarray:
        numbers.check_width(self._units, self._width)
        return self._shown_target(y)
