"""What all estimators share: checked data, seeds, going on, predicting, saving. Subclasses say what is trained, and on which targets."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from loops import hooks
from loops.estimators.arguments import Arguments
from loops.estimators.gpus import refuse_shared_gpus
from loops.estimators.parameters import NestedParameters
from loops.estimators.predictor import Predictor
from loops.estimators.saving import restored, saved
from loops.estimators.seeding import seed_of, seed_of_call, seeded

__all__ = ["LoopsEstimator", "Rows"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Checked data.

    Attributes:
        x: dense or sparse, `[N, ...]`.
        y: targets as numbers, or None.
        weights: `[N]`, or None.
    """

    x: Any
    y: Any
    weights: np.ndarray | None

    def at(self, which: Any) -> Rows:
        """Some of the rows, by indices or a mask."""
        return Rows(*(None if part is None else part[which] for part in (self.x, self.y, self.weights)))

    def parts(self) -> tuple[Any, ...]:
        """What there is of x, y and weights, in this order: a batch of a feed."""
        return tuple(part for part in (self.x, self.y, self.weights) if part is not None)


class LoopsEstimator(NestedParameters):
    """Base class of the estimators. It has no constructor: a subclass names all its parameters in its own, as scikit-learn wants it.

    These are among them: `warm_start`, `random_state`, `early_stopping`, `validation_fraction`, `n_iter_no_change`, `tol`.
    """

    # scikit-learn reads here what `fit` takes beside X and y. It is no name in the signature, as `fit` takes what `loops.fit` takes.
    __metadata_request__fit: ClassVar[dict[str, Any]] = {"sample_weight": None}
    __metadata_request__partial_fit: ClassVar[dict[str, Any]] = {"sample_weight": None}

    #: The attribute that holds what was fitted.
    fitted: ClassVar[str]
    #: Parameters that hold, or make, what is trained.
    held: ClassVar[tuple[str, ...]]

    def fit(self, X: Any, y: Any = None, **fit_kwargs: Any) -> Any:
        """Fits from the beginning, or with `warm_start=True` goes on from where the last fit stood, for `epochs` more.

        Args:
            X: rows `[N, features]` or `[N, ...]`: array, list, pandas data frame, or sparse matrix of SciPy, which is made dense batch by
                batch.
            y: a target for each row.
            **fit_kwargs: `sample_weight` `[N]`, and arguments of training, which win over those of the constructor. Rows of weight 0 are
                left out; other weights multiply the losses of their rows, as in Keras.

        Returns:
            The estimator itself.

        Raises:
            ValueError, TypeError: for data or arguments that cannot be used.
        """
        return self._fit(X, y, fit_kwargs, going_on=bool(self.warm_start) and self.__sklearn_is_fitted__())

    # What a subclass says.

    def _arguments(self, given: dict[str, Any]) -> Arguments:
        """The arguments of training, those of a call over those of the constructor."""
        raise NotImplementedError

    def _learn_target(self, y: Any, classes: Any, *, reset: bool) -> Any:
        """Returns targets as numbers; with `reset` it remembers what they are like."""
        raise NotImplementedError

    def _new(self, rows: Rows) -> Any:
        """Makes what is trained; seeds are set."""
        raise NotImplementedError

    def _train(self, made: Any, rows: Rows, validation: Any, arguments: dict[str, Any], seed: int) -> hooks.History:
        """Trains `made`; `validation` is `Rows`, or what the user gave as `validation_data`, or None."""
        raise NotImplementedError

    def _prediction_task(self) -> Any:
        """A task whose `predict_step` predicts with what was fitted."""
        raise NotImplementedError

    def _groups(self, y: Any) -> Any:
        """Classes whose shares a split for validation keeps; None: there are none."""
        return None

    # What scikit-learn asks.

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, self.fitted)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.three_d_array = True
        return tags

    # Fitting.

    def _fit(self, X: Any, y: Any, given: dict[str, Any], *, going_on: bool, classes: Any = None, epochs: int | None = None) -> Any:
        refuse_shared_gpus()
        given = dict(given)
        weights = given.pop("sample_weight", None)
        arguments = self._arguments({**given, **({} if epochs is None else {"epochs": epochs})})
        if not going_on:
            for name in (self.fitted, "history_", "n_iter_"):
                self.__dict__.pop(name, None)
        rows = self._with_weights(*self._checked(X, y, reset=not going_on), weights)
        rows = dataclasses.replace(rows, y=self._learn_target(rows.y, classes, reset=not going_on))
        if not going_on:
            self._seed, self._calls, self._shape = seed_of(self.random_state), 0, tuple(rows.x.shape[1:])
        validation = arguments.validation
        if epochs is None and (fraction := self._fraction(arguments)):
            rows, validation = self._split(rows, fraction)
        if self._stops_early() and epochs is None:
            arguments.add_hook(hooks.EarlyStopping("val_loss", self.tol, self.n_iter_no_change, restore_best_weights=True))
        if going_on:
            made = getattr(self, self.fitted)
        else:
            with seeded(self._seed):
                made = self._new(rows)
        history = self._train(made, rows, validation, arguments.of_training, seed_of_call(self._seed, self._calls))
        self._calls += 1
        setattr(self, self.fitted, made)
        before = getattr(self, "history_", {})
        self.history_ = {name: [*before.get(name, []), *values] for name, values in history.history.items()}
        self.n_iter_ = getattr(self, "n_iter_", 0) + len(history.epoch)
        self._batch, self._mode = arguments.of_training["batch_size"] or 32, arguments.of_training["compile"]
        self._predictor = Predictor(self._prediction_task(), self._batch, self._mode)
        return self

    def _partial_fit(self, X: Any, y: Any, given: dict[str, Any], classes: Any = None) -> Any:
        if "epochs" in given:
            raise TypeError(
                "partial_fit is one epoch over the rows that it gets; for more epochs call it again, or fit with warm_start=True."
            )
        if self._stops_early():
            raise ValueError("partial_fit is one epoch and cannot stop early: set early_stopping=False.")
        return self._fit(X, y, given, going_on=self.__sklearn_is_fitted__(), classes=classes, epochs=1)

    def _checked(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, Any]:
        """Data as arrays that a feed takes."""
        if self.__sklearn_tags__().target_tags.required:
            return self._validated(X, y, reset=reset, **self._y_checks())
        X = self._validated(X, reset=reset)
        if y is not None:
            y = np.asarray(y)
            check_consistent_length(X, y)
        return X, y

    def _validated(self, *data: Any, **how: Any) -> Any:
        """What scikit-learn's checks return; X in Keras's float type, whatever numbers it holds, so that one model takes them all."""
        floatx = np.dtype(keras.config.floatx())
        with np.errstate(over="ignore", invalid="ignore"):
            found = validate_data(self, *data, accept_sparse="csr", allow_nd=True, dtype=[floatx, *np.typecodes["AllInteger"]], **how)
        x, *y = found if isinstance(found, tuple) else (found,)
        if x.dtype != floatx:
            values: Any = x.data if hasattr(x, "tocsr") else x
            if values.size and max(abs(int(values.min())), abs(int(values.max()))) > (exact := 2 ** (np.finfo(floatx).nmant + 1)):
                raise ValueError(f"X holds whole numbers above {exact:,}, which {floatx} cannot tell apart; number them anew, from 0.")
            x = x.astype(floatx)
        return (x, *y) if y else x

    def _y_checks(self) -> dict[str, Any]:
        return {}

    def _with_weights(self, x: Any, y: Any, weights: Any) -> Rows:
        if weights is None:
            return Rows(x, y, None)
        weights = np.asarray(weights, keras.config.floatx())
        if weights.shape != (x.shape[0],):
            raise ValueError(f"sample_weight has the shape {weights.shape}; one weight for each of the {x.shape[0]} rows was expected.")
        if not (np.isfinite(weights).all() and (weights >= 0).all()):
            raise ValueError("Every sample_weight has to be a finite number, 0 or more.")
        if not weights.any():
            raise ValueError("Every sample_weight is zero: there is nothing to learn from.")
        rows = Rows(x, y, weights)
        return rows if weights.all() else rows.at(weights > 0)

    # Early stopping.

    def _stops_early(self) -> bool:
        if self.early_stopping not in (True, False, "auto"):
            raise ValueError(f'`early_stopping` is True, False or "auto" (with `validation_fraction` only); got {self.early_stopping!r}.')
        return bool(self.validation_fraction) if self.early_stopping == "auto" else bool(self.early_stopping)

    def _fraction(self, arguments: Arguments) -> float:
        """The share of the rows that is held out; 0: none."""
        fraction: Any = self.validation_fraction
        if arguments.has_validation:
            if fraction:
                raise ValueError("Give either validation_fraction, or validation_data or validation_split among the arguments of training.")
            return 0.0
        if fraction in (None, 0):
            return 0.1 if self._stops_early() else 0.0
        if not isinstance(fraction, (float, np.floating)) or not 0 < fraction < 1:
            raise ValueError(f"`validation_fraction` is a share of the rows, between 0 and 1; got {fraction!r}.")
        return float(fraction)

    def _split(self, rows: Rows, fraction: float) -> tuple[Rows, Rows]:
        """Rows to train on and rows to watch, each in their order; which they are depends on the seed."""
        places = np.arange(rows.x.shape[0])
        parts = train_test_split(places, test_size=fraction, random_state=self._seed % 2**32, stratify=self._groups(rows.y))
        return rows.at(np.sort(parts[0])), rows.at(np.sort(parts[1]))

    # Predicting.

    def _outputs(self, X: Any) -> np.ndarray:
        """What was fitted gives for rows that the user hands over."""
        check_is_fitted(self)
        x = self._validated(X, reset=False)
        if tuple(x.shape[1:]) != self._shape:
            raise ValueError(f"X has rows of the shape {list(x.shape[1:])}; this {type(self).__name__} was fitted on {list(self._shape)}.")
        return self._predictor(x)

    # Pickling and copying.

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_predictor", None)
        return {name: saved(value) if name in (*self.held, self.fitted) else value for name, value in state.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: restored(value) for name, value in state.items()})
        if self.__sklearn_is_fitted__():
            self._predictor = Predictor(self._prediction_task(), self._batch, self._mode)
