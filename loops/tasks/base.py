"""What one step of learning is: the part of a training program that its user owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.tasks import gradients, replicas
from loops.tasks.reductions import to_floats
from loops.tasks.step_context import current, inside_step
from loops.tasks.tracking import Tracked, track, trainable_superset

__all__ = ["Task"]


class Task:
    """Base class of tasks: override `train_step`, and `eval_step` and `predict_step` where needed.

    Models, layers, optimizers, metrics, variables and seed generators are found by attribute, through lists and dicts, and belong to
    the state of the run. A step is traced once for each batch signature, in replica context; what it returns is joined over steps and
    replicas.

    Example:
        >>> import keras, tensorflow as tf
        >>> class Regression(Task):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        ...         self.optimizer = keras.optimizers.SGD(0.1)
        ...     def train_step(self, batch):
        ...         x, y = batch
        ...         with tf.GradientTape() as tape:
        ...             loss = self.compute_loss("mse", y, self.model(x, training=True))
        ...         self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        ...         return {"loss": loss}
        >>> import loops, numpy as np
        >>> x = np.ones([64, 3], "float32")
        >>> loop = loops.TrainLoop(Regression(), loops.ArrayFeed((x, x[:, :1])))
        >>> loop.run(epochs=2).epoch
        [0, 1]
    """

    #: Whether Python `if` and `while` on tensors in the steps are turned into graph control flow.
    autograph = True

    #: Model that weights are saved from when a hook is not told otherwise; any attribute of that name will do.
    model: Any = None

    def __init__(self) -> None:
        self._progress: Any = None

    # What a user overrides.

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        """One step of learning on this replica's part of a batch.

        Returns:
            name -> scalar (joined as a mean weighted by examples), or `loops.Mean`, `loops.Sum`, `loops.Last`, or a
            `keras.metrics.Metric` that the step updated (its result is read when somebody looks, and it is reset at every epoch).
        """
        raise TypeError(f"{type(self).__name__} defines no train_step(self, batch), so it cannot be trained.")

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        """One step of evaluation; returns what `train_step` may return, and `loops.Collect(tensor)`."""
        raise TypeError(f"{type(self).__name__} defines no eval_step(self, batch), so it cannot be evaluated.")

    def eval_end(self, collected: dict[str, Any]) -> Mapping[str, Any]:
        """Metrics of the whole set from what `eval_step` collected: name -> array `[N, ...]`."""
        return {}

    def predict_step(self, x: Any) -> Any:
        """Outputs `[B, ...]` for a batch, in any structure."""
        raise TypeError(f"{type(self).__name__} defines no predict_step(self, x), so it cannot predict.")

    def batch_size(self, batch: Any) -> Any:
        """Examples in a batch, an integer scalar tensor: the first dimension of its first tensor, unless overridden."""
        return tf.convert_to_tensor(replicas.batch_size_of(batch))

    def state_dict(self) -> dict[str, Any]:
        """Plain Python state of your own that decides how a run goes on, JSON-able; variables need not be in it.

        Example:
            >>> class Curriculum(Task):
            ...     level = 0
            ...     def state_dict(self):
            ...         return {"level": self.level}
            ...     def load_state_dict(self, state):
            ...         self.level = state["level"]
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave, when a run is resumed."""

    # What a user calls inside a step.

    @property
    def step(self) -> tf.Tensor:
        """Completed steps, int64 scalar tensor; inside a step, those before it."""
        if inside_step():
            return current("Task.step").step
        progress = getattr(self, "_progress", None)
        return tf.constant(progress.step if progress is not None else 0, tf.int64)

    def follow(self, progress: Any) -> None:
        """Takes the counters of the loop that trains this task, for `step` outside of steps."""
        self._progress = progress

    def seed(self) -> tf.Tensor:
        """A seed pair for `tf.random.stateless_*`: another in every step, at every call, on every replica; the same after a restart."""
        return current("Task.seed").seed()

    @gradients.no_autograph
    def minimize(self, loss: Any, tape: tf.GradientTape, optimizer: Any, variables: Sequence[Any], *, when: Any = None) -> None:
        """Updates `variables` by `optimizer` against the gradient of `loss`.

        Under several replicas gradients are averaged, weighted by the examples of each, before they are clipped, transformed and applied.

        Args:
            loss: scalar, the mean over this replica's own examples.
            tape: the tape that recorded it.
            optimizer: a Keras optimizer.
            variables: what to update.
            when: scalar bool tensor; where it is False, nothing changes, bit for bit.
        """
        self._build(optimizer, variables)
        gradients.minimize(loss, tape, optimizer, variables, when)

    @gradients.no_autograph
    def apply_gradients(self, grads: Sequence[Any], variables: Sequence[Any], optimizer: Any, *, when: Any = None) -> None:
        """The second half of `minimize`, for gradients that were computed by other means (None where there is none)."""
        self._build(optimizer, variables)
        gradients.apply_gradients(grads, variables, optimizer, when)

    def _build(self, optimizer: Any, variables: Sequence[Any]) -> None:
        if not optimizer.built:
            # An exponential moving average overwrites variables in the order of building, so there the choice has to be exact.
            exact = getattr(optimizer, "inner_optimizer", optimizer).use_ema
            with tf.init_scope(), keras.name_scope(optimizer.name, caller=optimizer):
                optimizer.build(list(variables) if exact else trainable_superset(self.tracked.layers, list(variables)))

    @gradients.no_autograph
    def compute_loss(self, loss_fn: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """The mean loss over this replica's own examples.

        Args:
            loss_fn: a `keras.losses.Loss`, a Keras loss name, or a function `(y, y_pred) -> loss per example or scalar`.
            y: targets.
            y_pred: predictions.
            sample_weight: weights per example.

        Returns:
            Scalar tensor. Keras divides mean losses by the number of replicas; here that is undone.
        """
        loss = keras.losses.get(loss_fn)
        if isinstance(loss, keras.losses.Loss):
            value = loss(y, y_pred, sample_weight=sample_weight)
            count = tf.distribute.get_strategy().num_replicas_in_sync
            if count > 1 and loss.reduction in ("mean", "sum_over_batch_size", "mean_with_sample_weight"):
                value *= count
            return value
        per_example = loss(y, y_pred)
        if sample_weight is not None:
            per_example = per_example * tf.cast(sample_weight, per_example.dtype)
        return tf.reduce_mean(per_example)

    @gradients.no_autograph
    def losses_of(self, *layers: Any) -> tf.Tensor:
        """Sum of what `add_loss` and regularizers left in `layers` in their last call; ask in the tape, right after that call."""
        found = [tf.cast(loss, keras.config.floatx()) for layer in layers for loss in layer.losses]
        return tf.add_n(found) if found else tf.zeros([], keras.config.floatx())

    @gradients.no_autograph
    def observe(self, name: str, tensor: Any) -> None:
        """Hands out a tensor of any shape; a hook that lists `name` in `observes` finds the last step's in `window.observed`."""
        context = current("Task.observe")
        if name in context.observes:
            context.observed[name] = tensor

    # What a loop asks.

    @property
    def tracked(self) -> Tracked:
        """Everything that belongs to this task, found anew at each call."""
        return track(self)

    @property
    def models(self) -> list[Any]:
        """Models and layers, in attribute order."""
        return self.tracked.layers

    @property
    def optimizers(self) -> dict[str, Any]:
        """Attribute path -> optimizer."""
        return self.tracked.optimizers

    @property
    def trainable_variables(self) -> list[Any]:
        """Model variables that training may change now."""
        return [v for v in self.tracked.model_variables() if v.trainable]

    @property
    def non_trainable_variables(self) -> list[Any]:
        """Model variables that gradients do not change."""
        return [v for v in self.tracked.model_variables() if not v.trainable]

    def build(self, spec: Any) -> None:
        """Called before the first step is traced, with the type specs of a batch; builds what need not wait for it.

        Variables made while tracing would cost a second trace. Of several optimizers, each is built when it is first used.
        """
        tracked = self.tracked
        variables = self.trainable_variables
        if len(tracked.optimizers) == 1 and variables and all(getattr(layer, "built", True) for layer in tracked.layers):
            self._build(next(iter(tracked.optimizers.values())), variables)

    def owns(self, method: str) -> bool:
        """Whether `method` is the library's code, so that an error in it is one of the model or the data."""
        return False

    def reset_metrics(self) -> None:
        """Clears all metrics; called when an epoch or an evaluation begins."""
        for metric in self.tracked.metrics:
            metric.reset_state()

    def results(self, kind: str, reduced: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The logs to report: what steps returned, joined, and the results of the metrics that they named.

        Args:
            kind: "train" or "eval".
            reduced: name -> joined scalar.
            metrics: name -> metric that the step returned.
        """
        return to_floats({**reduced, **{name: metric.result() for name, metric in metrics.items()}})

    def finalize(self) -> None:
        """Called when training has ended normally: optimizers that keep an average of the weights put it into the model."""
        for optimizer in self.optimizers.values():
            if optimizer.built:
                optimizer.finalize_variable_values(_private_api.variables_to_update(optimizer))
