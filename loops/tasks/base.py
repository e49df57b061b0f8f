"""`Task`: the part of a training program that its user writes, one step of learning. It knows no data source, no epoch and no hook."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.feeds.split import batch_size_of
from loops.tasks import gradients, optimizer_slots
from loops.tasks.compile_names import check_loss
from loops.tasks.reductions import to_floats
from loops.tasks.step_context import current, inside_step
from loops.tasks.tracking import LastWalk, Tracked
from loops.tasks.update_arguments import check_gradients, check_minimize

__all__ = ["Task"]

_LAST_WALK = "_tapeloops_walk"


class Task:
    """Base class of tasks: override `train_step`, and `eval_step` and `predict_step` where needed.

    The models, layers, optimizers, metrics, variables and random generators among a task's attributes, also those inside lists, dicts,
    plain objects, `tf.Module`s and other tasks, belong to the state of the run. A step is traced once for each batch signature, in replica
    context; the scalars that it returns are reduced over steps and replicas.

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

    #: Whether AutoGraph turns Python `if` and `while` on tensors in the steps into graph control flow.
    autograph = True

    #: The model whose weights hooks save unless they are given another one; set it as an attribute.
    model: Any = None

    def __init__(self) -> None:
        self._progress: Any = None

    def __repr__(self) -> str:
        tracked = self.tracked
        models = [f"{one.name} ({one.count_params():,} parameters)" if one.built else f"{one.name} (not built)" for one in tracked.layers]
        parts = [*models, *(f"{name} {type(optimizer).__name__}" for name, optimizer in tracked.optimizers.items())]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in _names_of_methods() & vars(cls).keys():
            if not (callable(vars(cls)[name]) or hasattr(vars(cls)[name], "__get__")):
                raise TypeError(_taken(f"{cls.__name__}.{name}", name))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _names_of_methods() and not callable(value):
            raise AttributeError(_taken(f"self.{name}", name))
        super().__setattr__(name, value)

    # What a user overrides.

    def train_step(self, batch: Any) -> Mapping[str, Any]:
        """One step of learning on this replica's part of a batch.

        Returns:
            name -> scalar (reduced to a mean weighted by examples), or `loops.Mean`, `loops.Sum`, `loops.Last`, or a
            `keras.metrics.Metric` that the step updated (the loop reads its result at a look and resets it when an epoch begins). The
            metric's `result()` means the metric; a value computed from results alone counts as it is after the last step.
        """
        raise TypeError(f"{type(self).__name__} defines no train_step(self, batch), so it cannot be trained.")

    def eval_step(self, batch: Any) -> Mapping[str, Any]:
        """One step of evaluation; returns what `train_step` may return, and `loops.Collect(tensor)`."""
        raise TypeError(f"{type(self).__name__} defines no eval_step(self, batch), so it cannot be evaluated.")

    def eval_end(self, collected: dict[str, Any]) -> Mapping[str, Any]:
        """Computes metrics of the whole evaluation set.

        Args:
            collected: name -> array `[N, ...]`, what `eval_step` returned as `loops.Collect`, of all batches.

        Returns:
            name -> value, for the logs of the evaluation.
        """
        return {}

    def predict_step(self, x: Any) -> Any:
        """Outputs `[B, ...]` for a batch, in any structure."""
        raise TypeError(f"{type(self).__name__} defines no predict_step(self, x), so it cannot predict.")

    def batch_size(self, batch: Any) -> Any:
        """What a batch counts for, an integer scalar tensor: its examples, the first dimension of its first tensor, unless overridden.

        Replicas, and scalars that a step returns without a weight, are weighted by it. If losses are means over tokens, return the tokens.
        """
        return tf.convert_to_tensor(batch_size_of(batch))

    def state_dict(self) -> dict[str, Any]:
        """Plain Python state of your own that a resumed run needs, JSON-able. The loop saves variables by itself.

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
        """Restores what `state_dict` gave, when a run is resumed or goes back to an earlier state.

        It is called before the variables are restored, and before hooks get `on_train_begin`: a task whose models grow in training makes
        here the models that it had.

        Example:
            >>> class Growing(Task):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.grow(1)
            ...     def grow(self, depth):
            ...         self.depth = depth
            ...         layers = [keras.layers.Dense(8, "relu", name=f"hidden_{i}") for i in range(depth)]
            ...         self.model = keras.Sequential([keras.Input([3]), *layers, keras.layers.Dense(1)])
            ...         self.optimizer = keras.optimizers.SGD(0.1)
            ...     def state_dict(self):
            ...         return {"depth": self.depth}
            ...     def load_state_dict(self, state):
            ...         if state["depth"] != self.depth:
            ...             self.grow(state["depth"])
        """

    # What a user calls inside a step.

    @property
    def step(self) -> tf.Tensor:
        """Number of completed training steps, int64 scalar tensor. Inside a step, that step does not count."""
        if inside_step():
            return current("Task.step").step
        progress = getattr(self, "_progress", None)
        return tf.constant(progress.step if progress is not None else 0, tf.int64)

    def follow(self, progress: Any) -> None:
        """Gives the task the counters of the loop that trains it; `step` reads them outside of a step."""
        self._progress = progress

    @gradients.no_autograph
    def seed(self, *fold: Any) -> tf.Tensor:
        """A seed pair, int64 `[2]`, for `tf.random.stateless_*`: the same after a restart, in eager mode, in a graph and under XLA.

        It differs in each step, on each replica, at each place of the step, and for all integers that are given. Inside a loop of
        TensorFlow (`tf.range`, `tf.while_loop`, `tf.map_fn`, `tf.scan`) the body is traced once, so the loop's index has to be given.
        After a branch of a tensor `if` that calls this, eager mode may number places otherwise than a graph, which traces all branches.

        Args:
            fold: integers: Python numbers or scalar integer tensors.

        Raises:
            ValueError: in a loop of TensorFlow without an integer that changes from turn to turn (in nested loops: of each of them), or if
                two calls would give the same seed.
            TypeError: for what is no integer.

        Example:
            >>> import loops, tensorflow as tf
            >>> class Noise(Task):
            ...     def train_step(self, batch):
            ...         total = 0.0
            ...         for i in tf.range(4):
            ...             total += tf.random.stateless_normal([], self.seed(i))
            ...         return {"total": total, "one": tf.random.stateless_normal([], self.seed())}
            >>> loop = loops.TrainLoop(Noise(), loops.NoFeed(steps_per_epoch=2))
            >>> sorted(loop.run(epochs=1).history)
            ['one', 'total']
        """
        return current("Task.seed").seed(fold)

    @gradients.no_autograph
    def minimize(self, loss: Any, tape: tf.GradientTape, optimizer: Any, variables: Sequence[Any], *, when: Any = None) -> None:
        """Computes the gradient of `loss` and lets `optimizer` update `variables` with it.

        Under several replicas gradients are averaged, weighted by the examples of each, before they are clipped, transformed and applied.

        Args:
            loss: scalar, the mean over this replica's own examples.
            tape: the tape that recorded the loss.
            optimizer: a Keras optimizer.
            variables: what to update.
            when: scalar bool tensor; where it is False, nothing changes, bit for bit.
        """
        variables = check_minimize(loss, tape, optimizer, variables)
        self._build(optimizer, variables)
        gradients.minimize(loss, tape, optimizer, variables, when)

    @gradients.no_autograph
    def apply_gradients(self, grads: Sequence[Any], variables: Sequence[Any], optimizer: Any, *, when: Any = None) -> None:
        """The second half of `minimize`, for gradients of your own; None for a variable without a gradient."""
        grads, variables = check_gradients(grads, variables, optimizer)
        self._build(optimizer, variables)
        gradients.apply_gradients(grads, variables, optimizer, when)

    def _build(self, optimizer: Any, variables: Sequence[Any]) -> None:
        if not optimizer.built or not all(_private_api.is_built_for(optimizer, v) for v in variables):
            optimizer_slots.build(optimizer, variables, self.tracked.model_variables())

    @gradients.no_autograph
    def compute_loss(self, loss_fn: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor:
        """The mean loss over this replica's own examples: exactly the loss that `compile(loss=loss_fn)` computes.

        So ranks are aligned (`[B]` with `[B, 1]`), masks of the model count, half precision is widened, and weights multiply the losses of
        the examples before these are summed and divided by their number.

        Args:
            loss_fn: a `keras.losses.Loss`, a Keras loss name, or a function `(y, y_pred) -> loss per example or scalar`. A scalar is taken
                for a mean over the examples: a sum would be averaged over several replicas.
            y: targets.
            y_pred: predictions.
            sample_weight: weights per example, `[B]` or as far as the losses go.

        Returns:
            Scalar tensor, unless the loss object has no reduction. Under several replicas Keras divides a mean by their number; in a
            task's own step no Keras loss does that.
        """
        check_loss(loss_fn)
        with _private_api.loss_scaling(by_keras=False):
            return _private_api.compiled_loss(loss_fn, y, y_pred)(y, y_pred, sample_weight=sample_weight)

    @gradients.no_autograph
    def losses_of(self, *layers: Any) -> tf.Tensor:
        """Sum of the losses that `add_loss` and regularizers added in the last call of `layers`; call it in the tape, right after that."""
        found = [tf.cast(loss, keras.config.floatx()) for layer in layers for loss in layer.losses]
        return tf.add_n(found) if found else tf.zeros([], keras.config.floatx())

    @gradients.no_autograph
    def observe(self, name: str, tensor: Any) -> None:
        """Shows hooks a tensor of any shape: one with `name` in its `observes` finds the value at the last step in `window.observed`."""
        context = current("Task.observe")
        if name in context.observes:
            context.observe(name, tensor)

    # What a loop calls.

    @property
    def tracked(self) -> Tracked:
        """Everything that belongs to this task; each access searches the attributes again, if what the last search read has changed."""
        last: LastWalk = vars(self).setdefault(_LAST_WALK, LastWalk())  # not by setattr: a class of the user's may have its own
        return last.over(self, Task)

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
        """Model variables that are trainable now."""
        return [v for v in self.tracked.model_variables() if v.trainable]

    def build(self, spec: Any) -> None:
        """Builds the optimizer before the step is traced: variables that a trace creates would cost a second trace.

        Of several optimizers, each is built when it is first used: only the trace shows which variables it updates. An optimizer that is
        built already gets slots for variables that have become trainable.

        Args:
            spec: type specs of one batch.
        """
        tracked = self.tracked
        variables = [v for v in tracked.own_variables() if v.trainable]
        if len(tracked.optimizers) == 1 and variables and all(getattr(layer, "built", True) for layer in tracked.own_layers()):
            self._build(next(iter(tracked.optimizers.values())), variables)

    def owns(self, method: str) -> bool:
        """Whether `method` is this library's code: an error in it then comes from the model or the data, not from a user's step."""
        return False

    def reset_metrics(self) -> None:
        """Clears all metrics; called when an epoch or an evaluation begins."""
        for metric in self.tracked.metrics:
            metric.reset_state()

    def results(self, kind: str, reduced: dict[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The logs to report: the scalars of the steps, reduced, and the results of the metrics that the steps returned.

        Args:
            kind: "train" or "eval".
            reduced: name -> reduced scalar.
            metrics: name -> metric that the step returned.
        """
        return to_floats({**reduced, **{name: metric.result() for name, metric in metrics.items()}})

    def finalize(self) -> None:
        """Called when training has ended normally: optimizers that keep an average of the weights put it into the model.

        The next `run` takes back what this method has assigned, and snapshots do not have it: training goes on from the weights before.
        """
        for optimizer in self.optimizers.values():
            if optimizer.built:
                optimizer.finalize_variable_values(_private_api.variables_to_update(optimizer))


@functools.cache
def _names_of_methods() -> frozenset[str]:
    """What a task has for its loop and its steps, and what no value may stand in the way of."""
    return frozenset(
        name for name, member in vars(Task).items() if not name.startswith("_") and (callable(member) or isinstance(member, property))
    )


def _taken(given: str, name: str) -> str:
    kind = "property" if isinstance(vars(Task)[name], property) else "method"
    return f"`{given} = ...` would hide the {kind} `{name}` of loops.Task, which the loop uses: give it another name, such as `my_{name}`."
