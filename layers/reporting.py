"""What `layers.Layer` and `layers.Model` have in common: `add_metric`, `declare_metric`, `add_loss` and `add_coefficient`."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from layers import _private_api, metric_names
from layers.aggregation import AGGREGATIONS, Aggregate, aggregate
from layers.replicas import replica_index

__all__ = ["Reporting"]

no_autograph: Callable[..., Any] = tf.autograph.experimental.do_not_convert


class Reporting(_private_api.SeparateLosses):
    """Mixin in front of a Keras class."""

    @no_autograph
    def add_metric(self, value: Any, name: str, aggregation: str | None = "mean", sample_weight: Any = None) -> None:
        """Reports a value in the logs of training and evaluation, as `"<layer name>/<name>"`.

        To be called in `call`. The metric counts in float32, is reset at every epoch and evaluation, and joins all replicas. Nothing else
        updates it: a step of your own may call `update_state` of all `self.metrics`. If a model has two of one name, names of the layers
        around are put in front, `"<block name>/<layer name>/<name>"`; a model from a `.keras` file reports under the names that it had.

        Keras 2 had this method; `aggregation="mean"`, repeated calls under one name and nested layers mean what they meant there, and
        `aggregation=None` ("already aggregated") is `"last"`. Different: names begin with the layer's; a mean is one over elements (Keras
        2 took the mean of each example first); there are more aggregations, and weights; in functional models it is called in a layer's
        `call`, not with symbolic tensors from outside. What is rematerialised (`keras.RematScope`) is counted again when the gradient is
        taken, and a cell in `keras.layers.RNN` once more than there are time steps, unless it is unrolled.

        Args:
            value: tensor of any shape and real dtype.
            name: name of the metric, unique within the layer unless the same metric is meant.
            aggregation: over all elements of all calls, batches and replicas: `"mean"`, `"sum"`, `"max"` or `"min"`; or `"last"`, the mean
                over the elements of the latest call.
            sample_weight: weights or a mask whose dimensions are the first ones of `value`. `"max"` and `"min"` leave out what weighs 0.

        Raises:
            TypeError: if `name` is no string, or `value` a symbolic tensor.
            ValueError: if the aggregation is unknown, is not that of the same metric before, or the weights do not fit.
        """
        if keras.utils.is_keras_tensor(value):
            raise TypeError(
                f"add_metric({name!r}) of {self.name!r} was given a symbolic tensor of a functional model; call it in a layer's `call`."  # type: ignore[attr-defined]
            )
        # Where Keras runs `call` on placeholders to find out shapes, it drops all assignments: nothing is counted there.
        self._reported_metric(name, aggregation).add(value, sample_weight)

    def declare_metric(self, name: str, aggregation: str | None = "mean") -> None:
        """Creates a metric in `__init__` or `build` that `call` adds to later.

        A metric that is not declared is created in the first call. That is too late for `tf.train.Checkpoint` to restore its state
        into, and for a log that is to have all its columns from the start.

        Args:
            name: as in `add_metric`.
            aggregation: as in `add_metric`, which has to be given the same.

        Raises:
            TypeError: if `name` is no string.
            ValueError: if the aggregation is unknown, or not that of the same metric before.
        """
        self._reported_metric(name, aggregation)

    def add_loss(self, loss: Any) -> None:
        """Adds scalar losses to `losses`, as Keras does, as `keras.config.floatx()`, and for each replica by itself.

        Keras keeps one list for all replicas, which see and clear each other's losses when a layer communicates within its call.

        Args:
            loss: scalar tensor or a structure of these, computed in float32 or float64.
        """
        super().add_loss(tf.nest.map_structure(lambda x: tf.cast(x, keras.config.floatx()), loss))  # type: ignore[misc]

    def add_coefficient(self, name: str, value: float) -> keras.Variable:
        """A scalar that people schedule (beta, lambda, temperature): assigning it takes effect at the next step and retraces nothing.

        Args:
            name: name of the weight.
            value: initial value.

        Returns:
            Non-trainable weight, float32 (float64 under a float64 policy), never autocast, saved with the layer.
        """
        return self.add_weight(  # type: ignore[attr-defined]
            shape=(),
            initializer=lambda shape, dtype: tf.constant(value, dtype),  # Keras's Constant rounds to float32
            dtype="float64" if self.variable_dtype == "float64" else "float32",  # type: ignore[attr-defined]
            trainable=False,
            autocast=False,
            name=name,
        )

    def _reported_metric(self, name: str, aggregation: str | None) -> Aggregate:
        metrics: dict[str, Aggregate] = self.__dict__.setdefault("_reported_metrics", {})
        if name not in metrics:
            self._create_metric(name, aggregation)
        metric = metrics[name]
        if type(metric) is not AGGREGATIONS.get(aggregation):
            known = next(key for key, kind in AGGREGATIONS.items() if type(metric) is kind)
            raise ValueError(f"Metric {metric.name!r} has aggregation={known!r} and was now given {aggregation!r}; give it the same one.")
        return metric

    def _create_metric(self, name: str, aggregation: str | None) -> None:
        if not isinstance(name, str):
            raise TypeError(f"A metric of layer {self.name!r} needs a string as its name; got {name!r}.")

        def create() -> None:
            metric = aggregate(aggregation, f"{self.name}/{name}")  # type: ignore[attr-defined]
            metric.name = self.__dict__.get("_names_in_file", {}).get(name, metric.name)
            self._track_metric(metric)
            self._show_to_checkpoints(f"metric_{name}", metric.variables)
            self.__dict__["_reported_metrics"][name] = metric

        _apart(create)

    @property
    def metrics(self) -> list[Any]:
        metric_names.settle(_private_api.who_lists_metrics(self))
        return super().metrics  # type: ignore[misc]

    def save_assets(self, dir_path: str) -> None:
        """Called by Keras, beside the saving of weights: writes the names of the metrics."""
        metric_names.save_names(self.__dict__.get("_reported_metrics", {}), dir_path)

    def load_assets(self, dir_path: str | None) -> None:
        """Called by Keras, beside the loading of weights: the metrics get the names that they had."""
        self.__dict__["_names_in_file"] = names = metric_names.load_names(dir_path)
        for name, metric in self.__dict__.get("_reported_metrics", {}).items():
            metric.name = names.get(name, metric.name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if isinstance(value, keras.random.SeedGenerator):
            self._show_to_checkpoints(f"seed_{name}", [value.state])

    def _show_to_checkpoints(self, name: str, variables: list[keras.Variable]) -> None:
        """Lets `tf.train.Checkpoint` find what is no weight: behind modules, which Keras does not look into."""
        if "_beside_weights" not in self.__dict__:
            self._beside_weights = tf.Module()
        holder = tf.Module()
        for variable in variables:
            setattr(holder, variable.name, variable)
        setattr(self._beside_weights, name, holder)

    def _track_metric(self, metric: Aggregate) -> None:
        _private_api.track(self, "metrics", metric)

    def _losses_key(self) -> int:
        return replica_index()


def _apart(create: Callable[[], None]) -> None:
    """Calls `create` where nothing is being traced and no replica runs, but in the strategy's scope.

    That is in a thread of its own. `tf.init_scope` alone would leave it to the `tf.function` that is being traced (which allows new
    variables in its first trace only, and traces again) and to Keras's stateless scope (which puts off making them).
    """

    scope = tf.distribute.get_strategy().scope if tf.distribute.has_strategy() else contextlib.nullcontext

    def call() -> None:
        with scope():
            create()

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        thread.submit(call).result()
