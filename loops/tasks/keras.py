"""A compiled `keras.Model` as a task: the same numbers as `model.fit`, with an overridden `train_step` or `test_step` respected."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.tasks.base import Task
from loops.tasks.compile_names import check_compile_names, optimizer_named
from loops.tasks.compiled_metrics import MetricCalls
from loops.tasks.reductions import Last, to_floats
from loops.tasks.step_context import current
from loops.tasks.step_logs import StepLogs, flat_logs
from loops.user_errors.tracebacks import shortened

__all__ = ["KerasTask", "PredictionTask", "SupervisedTask"]


class KerasTask(Task):
    """Trains a compiled model.

    The model's own `train_step` and `test_step` are used where they are overridden. The loop reads the results of its metrics at a look;
    each step reports only its loss, and the running metrics too when a hook observes "metrics".

    Args:
        model: a compiled `keras.Model`.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if it is not compiled.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> KerasTask(model).model is model
        True
    """

    autograph = False

    @shortened
    def __init__(self, model: keras.Model):
        super().__init__()
        _check_model(model, "; for other models write a loops.Task")
        if not model.compiled:
            raise ValueError("The model is not compiled: call model.compile(optimizer=..., loss=...) first.")
        self.model = model
        self._follow_model()
        self._reports = {"train": StepLogs(), "eval": StepLogs()}

    def begin_again(self) -> None:
        """Looks at the model anew: it may have been compiled again, or its methods replaced, since the last run.

        Raises:
            ValueError: if it is not compiled as a task needs it.
        """
        calls = vars(self).pop("_metric_calls")
        self._follow_model()
        if calls.model is self.model:
            self._metric_calls = calls

    def check_functions(self, *names: str) -> None:
        """Refuses a model that overrides one of the methods `make_..._function`.

        Raises:
            ValueError: for such a model.
        """
        if names := tuple(name for name in names if _overridden(self.model, name)):
            raise ValueError(
                f"{type(self.model).__name__} overrides {names[0]}, whose function does steps in a loop of its own. loops compiles "
                f"the loop around the step: override {names[0].removeprefix('make_').removesuffix('_function')}_step instead."
            )

    def _follow_model(self) -> None:
        """Looks at the model again if a hook has replaced it."""
        if (calls := getattr(self, "_metric_calls", None)) is None or calls.model is not self.model:
            if not self.model.compiled:
                raise ValueError(f"The task's new model {self.model.name!r} is not compiled: call model.compile(...) before you assign it.")
            check_compile_names(self.model)
            self._metric_calls = MetricCalls(self.model)
            self._trained: tuple[weakref.ref[Any], ...] = ()  # no part of the task: they may be gone from the model
            self._own_train_step = _overridden(self.model, "train_step")
            self._own_test_step = _overridden(self.model, "test_step")

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        self.check_functions("make_train_function")
        self._follow_model()
        if self._own_train_step:
            if tf.distribute.get_strategy().num_replicas_in_sync == 1 and current("train_step").transforms:
                raise ValueError("`clip` cannot reach into the model's own train_step; clip there, or by the optimizer (clipnorm=...).")
            self._build_for_freed_weights()
            with _private_api.loss_scaling(by_keras=True):
                logs = self.model.train_step(batch)
            return self._reported("train", logs, logs.get("loss"))
        model = self.model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        with tf.GradientTape() as tape:
            y_pred, loss = self._forward(x, y, sample_weight, training=True)
        if model.trainable_weights:
            self.minimize(loss, tape, model.optimizer, model.trainable_weights)
        logs = model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return self._reported("train", logs, loss)

    def _build_for_freed_weights(self) -> None:
        """Gives the model's optimizer slots for weights that train since the last trace of the model's own step; Keras builds it once only.

        An own step may leave weights to other optimizers, so those that it did not update before are no reason.
        """
        weights, optimizer = self.model.trainable_weights, getattr(self.model, "optimizer", None)
        freed = [w for w in weights if not any(w is before() for before in self._trained)] if self._trained else []
        self._trained = tuple(map(weakref.ref, weights))
        if freed and isinstance(optimizer, keras.optimizers.Optimizer) and optimizer.built:
            self._build(optimizer, [*_private_api.variables_to_update(optimizer), *freed])

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        self.check_functions("make_test_function")
        self._follow_model()
        as_in_keras = tf.distribute.get_strategy().num_replicas_in_sync == 1 and not current("eval_step").xla
        if self._own_test_step or as_in_keras:
            with _private_api.loss_scaling(by_keras=True):
                logs = self.model.test_step(batch)
            return self._reported("eval", logs, None)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        y_pred, _ = self._forward(x, y, sample_weight, training=False)
        return self._reported("eval", self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight), None)

    def predict_step(self, x: Any) -> Any:
        return self.model.predict_step(x if isinstance(x, tuple) else (x,))

    def _forward(self, x: Any, y: Any, sample_weight: Any, *, training: bool) -> tuple[Any, tf.Tensor]:
        """Returns the prediction and the mean loss over this replica's own examples, and updates the model's loss tracker."""
        model = self.model
        y_pred = model(x, training=training) if _private_api.takes_training(model) else model(x)
        first = next(leaf for leaf in tf.nest.flatten(x) if leaf is not None)
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        hidden = current("eval_step").xla and tf.nest.is_nested(y_pred)
        if hidden:
            y_pred = tf.nest.map_structure(_of_unknown_size, y_pred)
        uncounted = several and (hidden or first.shape[0] is None)
        sums, tracked = _inverse_share if several else None, _by_share if uncounted else None
        with _private_api.loss_scaling(by_keras=False, sums=sums, tracked=tracked):
            loss = _private_api.loss_in_step(model, x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if several:
            # The mean loss of a replica without examples is NaN: make it 0.
            loss = tf.where(tf.equal(current("eval_step").examples, 0), tf.zeros_like(loss), loss)
        _private_api.loss_tracker(model).update_state(loss, sample_weight=tf.shape(first)[0])
        return y_pred, loss

    def _reported(self, kind: str, logs: Any, loss: Any) -> Mapping[str, Any]:
        """The scalars to carry out of the program. As in Keras, logs other than the metrics' results are those of the last batch."""
        if not isinstance(logs, Mapping):
            raise TypeError(f"The model's own {kind} step returned {type(logs).__name__}; it has to return a dict of logs.")
        reports = self._reports[kind]
        reports.are_results = set(logs) == set(self.model.get_metrics_result())
        if not reports.are_results:
            return {name: Last(value, weight=1.0) for name, value in reports.packed(logs).items()}  # Keras's mean over replicas has none
        rows: dict[str, Any] = {}
        if kind == "train" and loss is not None:
            loss = loss if not self._own_train_step or tf.convert_to_tensor(loss).shape.rank == 0 else tf.reduce_mean(loss)
            rows["loss"] = Last(loss, weight=1.0) if self._own_train_step else loss
        if "metrics" in current("train_step").observes:
            values = flat_logs(logs)
            rows.update({name: Last(value) for name, value in values.items() if name != "loss" and value.shape.rank == 0})
        return rows

    def owns(self, method: str) -> bool:
        return not (self._own_train_step if method == "train_step" else self._own_test_step)

    def build(self, spec: Any) -> None:
        self._follow_model()
        if not self._own_train_step:  # only the trace of an own step shows which variables it updates
            super().build(spec)
        # With one replica, tracing creates all variables. With several, those of metrics cannot be created in replica context.
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            shapes = tf.nest.map_structure(lambda s: None if s is None else tf.TensorSpec([None, *s.shape[1:]], s.dtype), spec)
            _private_api.build_by_shapes(self.model, shapes)

    def reset_metrics(self) -> None:
        self._follow_model()
        self._metric_calls.reset()

    def results(self, kind: str, reduced: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        if not self._reports[kind].are_results:
            return self._reports[kind].unpacked(reduced)
        logs = to_floats(self._metric_calls.results())
        tracker = _private_api.loss_tracker(self.model)
        if kind == "train" and self._own_train_step and "loss" in reduced and tracker is not None and not float(tracker.count.numpy()):
            logs["loss"] = reduced["loss"]  # the model's own step returned a loss without updating the tracker
        return logs

    def finalize(self) -> None:
        if isinstance(self.model.optimizer, keras.optimizers.Optimizer):
            self.model.optimizer.finalize_variable_values(self.model.trainable_weights)


class SupervisedTask(KerasTask):
    """Trains a model to predict targets from inputs; a batch is `(x, y)` or `(x, y, sample_weight)`.

    Args:
        model: a `keras.Model`; the constructor compiles it with the arguments below.
        loss: loss, its name, or a structure of these, one for each output.
        optimizer: optimizer or its name.
        metrics: metrics as `keras.Model.compile` takes them.
        weighted_metrics: metrics that sample weights apply to.
        loss_weights: weights of the losses of several outputs.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, activation="softmax")])
        >>> task = SupervisedTask(model, loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    """

    @shortened
    def __init__(
        self,
        model: keras.Model,
        *,
        loss: Any,
        optimizer: Any = "adam",
        metrics: Any = None,
        weighted_metrics: Any = None,
        loss_weights: Any = None,
    ):
        if _private_api.is_model(model):
            model.compile(
                optimizer=optimizer_named(optimizer),
                loss=loss,
                metrics=metrics,
                weighted_metrics=weighted_metrics,
                loss_weights=loss_weights,
                jit_compile=False,
            )
        super().__init__(model)


class PredictionTask(KerasTask):
    """Predicts with a model, which need not be compiled."""

    def __init__(self, model: keras.Model):
        _check_model(model)
        super(KerasTask, self).__init__()
        self.model = model

    def owns(self, method: str) -> bool:
        return True

    def begin_again(self) -> None:
        """Does nothing: predicting needs nothing that is compiled."""

    def build(self, spec: Any) -> None:
        """Does nothing: there is no optimizer, and tracing builds the model."""


def _check_model(model: Any, advice: str = "") -> None:
    if isinstance(model, type):
        raise TypeError(f"Expected a keras.Model, got the class {model.__name__}: write {model.__name__}(...), with its arguments.")
    if not _private_api.is_model(model):
        raise TypeError(f"Expected a keras.Model, got {type(model).__name__}{advice}.")


def _inverse_share() -> tf.Tensor:
    """What makes a sum over this replica's examples one over all examples, once it is weighted by the replica's share of them."""
    return tf.math.reciprocal_no_nan(current("train_step").example_share())


def _of_unknown_size(y_pred: tf.Tensor) -> tf.Tensor:
    """The same output with an unknown first dimension: Keras's metrics of single outputs weight by it where they know it.

    In a graph, as in `model.fit`, they do not.
    """
    if not isinstance(y_pred, tf.Tensor) or not y_pred.shape.rank:
        return y_pred
    return tf.raw_ops.PlaceholderWithDefault(input=y_pred, shape=[None, *y_pred.shape[1:]])


def _by_share(loss: tf.Tensor) -> tf.Tensor:
    """The loss of an output for Keras's metric of it, which counts every batch of unknown size as one: here, one on each replica."""
    context = current("train_step")
    part = loss * tf.cast(context.example_share() * context.replicas, loss.dtype)
    return tf.where(tf.equal(context.examples, 0), tf.zeros_like(loss), part)


def _overridden(model: keras.Model, method: str) -> bool:
    return getattr(getattr(model, method), "__func__", None) is not getattr(keras.Model, method)
