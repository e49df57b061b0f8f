"""Two layers that keep every promise, and the mutations of them that the battery has to catch: class -> property that it breaks."""

from __future__ import annotations

import functools

import keras
import numpy as np
import tensorflow as tf

import layers
from layers.base import full_precision, masked_mean, register
from layers.replicas import replica_seed, sum_over_replicas

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((4, 6, 5)).astype("float32")
MASK = np.arange(6) < np.array([[6], [4], [2], [6]])


@register
class Reference(layers.Layer):
    """y = tanh((x - center) W), center a moving mean; losses on the distance from it and on the size of W without a gradient.

    Mutations replace one of the small methods.
    """

    def __init__(self, *, units=3, pull=0.5, momentum=0.9, **kwargs):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"`units` must be at least 1; got {units!r}.")
        self.units, self.initial_pull, self.momentum = units, pull, momentum
        self.supports_masking = True
        self.make_coefficient()
        self.make_metrics()

    def make_coefficient(self):
        self.pull = self.add_coefficient("pull", self.initial_pull)

    def make_metrics(self):
        self.declare_metric("distance")
        self.declare_metric("farthest", "max")

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")
        self.center = self.add_weight(shape=(input_shape[-1],), initializer="ones", trainable=False, aggregation="mean", name="center")

    def call(self, inputs, mask=None, training=None):
        distance = tf.square(full_precision(inputs) - tf.cast(full_precision(self.center), full_precision(inputs).dtype))
        outputs = self.output_of(inputs - tf.cast(self.center, inputs.dtype))
        self.add_losses(distance, mask)
        self.report(distance, mask)
        self.move(inputs, mask, training)
        return outputs

    def output_of(self, centered):
        return tf.tanh(centered @ tf.cast(self.kernel, centered.dtype))

    def factor(self, dtype):
        return tf.cast(self.pull, dtype)

    def add_losses(self, distance, mask):
        self.add_loss(self.factor(distance.dtype) * masked_mean(distance, mask))
        self.add_loss(tf.reduce_sum(tf.square(tf.stop_gradient(full_precision(self.kernel)))))

    def report(self, distance, mask):
        self.add_metric(distance, "distance", sample_weight=mask)
        self.add_metric(distance, "farthest", "max", sample_weight=mask)

    def learns(self, training):
        return training and self.trainable

    def statistics(self, inputs, mask):
        weight = tf.ones(tf.shape(inputs)[:2]) if mask is None else tf.cast(mask, tf.float32)
        total = tf.einsum("bt,btd->d", weight, tf.cast(inputs, tf.float32))
        return sum_over_replicas(total, tf.reduce_sum(weight))

    def move(self, inputs, mask, training):
        if self.learns(training):
            total, count = self.statistics(inputs, mask)
            old = tf.cast(self.center, tf.float32)
            new = tf.where(count > 0, tf.math.divide_no_nan(total, count), old)
            self.center.assign(tf.cast(self.momentum * old + (1 - self.momentum) * new, self.center.dtype))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "pull": self.initial_pull, "momentum": self.momentum}


@register
class Noisy(layers.Layer):
    """y = x + e when training."""

    def __init__(self, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        pass

    def call(self, inputs, training=None):
        return inputs + self.noise(tf.shape(inputs), inputs.dtype) if self.noisy(training) else tf.identity(inputs)

    def noisy(self, training):
        return training

    def noise(self, shape, dtype):
        return tf.cast(tf.random.stateless_normal(shape, replica_seed(self.seed_generator)), dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def outputs(layer, x, mask=None):
    return np.tanh((x - layer.center.numpy()) @ layer.kernel.numpy())


def distances(layer, x, mask=None):
    distance = (x - layer.center.numpy()) ** 2
    return distance if mask is None else distance[mask]


def losses(layer, x, mask=None):
    return [float(layer.pull.numpy()) * distances(layer, x, mask).mean(), (layer.kernel.numpy() ** 2).sum()]


def metrics(layer, x, mask=None):
    return {"distance": distances(layer, x, mask).mean(), "farthest": distances(layer, x, mask).max()}


def no_kernel(layer):
    layer.kernel.assign(tf.zeros_like(layer.kernel))


REFERENCE = {
    "inputs": INPUTS,
    "call_kwargs": {"mask": MASK},
    "oracle": outputs,
    "losses": 2,
    "loss_oracle": losses,
    "metrics": ["distance", "farthest"],
    "metric_oracle": metrics,
    "coefficients": ["pull"],
    "stop_gradient": [("losses", "kernel")],
    "degenerate": {"no kernel": (no_kernel, lambda layer, x, mask=None: np.zeros([*x.shape[:2], layer.units]))},
    "invalid": [{"units": 0}],
}

NOISY = {"inputs": INPUTS, "oracle": lambda layer, x: x, "stochastic": True}

MUTATIONS: dict[type, tuple[str, ...]] = {}


def mutation(*properties):
    """Lists a mutation and the properties that have to name it."""

    def note(kind):
        MUTATIONS[register(kind)] = properties
        return kind

    return note


@mutation("oracle")
class WrongSign(Reference):
    def output_of(self, centered):
        return -super().output_of(centered)


@mutation("degenerate")
class AddsOne(Reference):
    def output_of(self, centered):
        return super().output_of(centered) + 1


@mutation("loss_oracle")
class WrongReductionAxis(Reference):
    def add_losses(self, distance, mask):
        super().add_losses(tf.reduce_sum(distance, -1), mask)


@mutation("loss_oracle")
class WrongSignOfTheLoss(Reference):
    def factor(self, dtype):
        return -super().factor(dtype)


@mutation("stop_gradient")
class MissingStopGradient(Reference):
    def add_losses(self, distance, mask):
        self.add_loss(self.factor(distance.dtype) * masked_mean(distance, mask))
        self.add_loss(tf.reduce_sum(tf.square(full_precision(self.kernel))))


@mutation("gradient")
class HalfTheGradient(Reference):
    def output_of(self, centered):
        half = 0.5 * super().output_of(centered)
        return half + tf.stop_gradient(half)


@mutation("gradient")
class NoGradientForTheKernel(Reference):
    def output_of(self, centered):
        return tf.tanh(centered @ tf.stop_gradient(tf.cast(self.kernel, centered.dtype)))


@mutation("config", "keras_file", "copies")
class ConfigForgetsAnArgument(Reference):
    def get_config(self):
        config = super().get_config()
        del config["units"]
        return config


@mutation("config")
class ConfigSaysSomethingElse(Reference):
    def get_config(self):
        return {**super().get_config(), "momentum": 0.1}


@mutation("constructor")
class AcceptsNoUnits(Reference):
    def __init__(self, *, units=3, **kwargs):
        super().__init__(units=max(units, 1), **kwargs)


@mutation("constructor")
class ComplainsWithoutTheName(Reference):
    def __init__(self, *, units=3, **kwargs):
        if units < 1:
            raise ValueError("Bad value.")
        super().__init__(units=units, **kwargs)


@mutation("constructor")
class TakesPositionalArguments(Reference):
    def __init__(self, units=3, **kwargs):
        super().__init__(units=units, **kwargs)


class NotRegistered(Reference):
    pass


MUTATIONS[NotRegistered] = ("constructor", "keras_file")


@mutation("build")
class ForgetsToDeclareMetrics(Reference):
    def make_metrics(self):
        pass


@mutation("build")
class WeightsDependOnTheFirstCall(Reference):
    def build(self, input_shape):
        super().build(input_shape)
        if input_shape[0] is not None:
            self.extra = self.add_weight(shape=(1,), name="extra")


@mutation("output_spec")
class AnnouncesAnotherShape(Reference):
    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units + 1)


@mutation("output_spec", "policies")
class OutputInFloat32(Reference):
    def call(self, inputs, mask=None, training=None):
        outputs = tf.cast(super().call(inputs, mask=mask, training=training), tf.float32)
        return outputs if self.compute_dtype != "float32" else tf.cast(outputs, tf.float64)


@mutation("loss_count")
class LossIsNoScalar(Reference):
    def add_losses(self, distance, mask):
        super().add_losses(distance, mask)
        self._losses[0] = self._losses[0][None]


@mutation("loss_count")
class OneLossMore(Reference):
    def add_losses(self, distance, mask):
        super().add_losses(distance, mask)
        self.add_loss(tf.zeros([]))


@mutation("policies")
class LossInHalfPrecision(Reference):
    def add_losses(self, distance, mask):
        self.add_loss(tf.cast(self.pull, self.compute_dtype) * tf.cast(masked_mean(distance, mask), self.compute_dtype))
        self.add_loss(tf.reduce_sum(tf.square(tf.stop_gradient(full_precision(self.kernel)))))


@mutation("function", "export")
class OnlyEagerModeIsRight(Reference):
    def output_of(self, centered):
        return super().output_of(centered) * (1.0 if tf.executing_eagerly() else 1.1)


@mutation("xla")
class PythonInside(Reference):
    def output_of(self, centered):
        return tf.ensure_shape(tf.py_function(super().output_of, [centered], centered.dtype), (*centered.shape[:-1], self.units))


@mutation("unknown_dimensions")
class NeedsTheBatchSize(Reference):
    def output_of(self, centered):
        return tf.reshape(super().output_of(centered), [int(centered.shape[0] or 4), -1, self.units])


@mutation("coefficients")
class CoefficientIsANumber(Reference):
    def make_coefficient(self):
        self.pull = keras.ops.convert_to_tensor(self.initial_pull)


@mutation("coefficients")
class CoefficientIsBakedIn(Reference):
    def factor(self, dtype):
        return tf.constant(self.initial_pull, dtype)


@mutation("coefficients")
class CoefficientLosesPrecision(Reference):
    def make_coefficient(self):
        self.pull = self.add_weight(shape=(), initializer=keras.initializers.Constant(self.initial_pull), trainable=False, name="pull")


@mutation("extremes")
class LogOfZero(Reference):
    def report(self, distance, mask):
        super().report(tf.exp(tf.math.log(distance)) * tf.math.log(tf.reduce_sum(distance) - 20 * 30), mask)


@mutation("masking", "loss_oracle")
class LossCountsPadding(Reference):
    def add_losses(self, distance, mask):
        super().add_losses(distance, None)


@mutation("masking", "metric_values")
class MetricCountsPadding(Reference):
    def report(self, distance, mask):
        super().report(distance, None)


@mutation("masking")
class StateCountsPadding(Reference):
    def statistics(self, inputs, mask):
        return super().statistics(inputs, None)


@mutation("metric_values")
class MetricForgetsEarlierBatches(Reference):
    def make_metrics(self):
        self.declare_metric("distance", "last")
        self.declare_metric("farthest", "max")

    def report(self, distance, mask):
        self.add_metric(distance, "distance", "last", sample_weight=mask)
        self.add_metric(tf.reduce_mean(distance), "farthest", "max")


@mutation("metric_names")
class MetricNameOfItsOwn(Reference):
    def make_metrics(self):
        super().make_metrics()
        self.own = keras.metrics.Mean(name="own")


@mutation("training")
class ReportsInEagerModeOnly(Reference):
    def make_metrics(self):
        pass

    def report(self, distance, mask):
        if tf.executing_eagerly():
            super().report(distance, mask)


@mutation("weights_file", "keras_file", "checkpoint", "inference")
class StateKerasDoesNotKnow(Reference):
    """Counts its calls where nothing that saves can see it, and depends on the count."""

    def build(self, input_shape):
        super().build(input_shape)
        with tf.init_scope():
            self.__dict__["calls"] = tf.Variable(1.0, trainable=False)

    def output_of(self, centered):
        self.__dict__["calls"].assign_add(1.0)
        return super().output_of(centered) * tf.cast(self.__dict__["calls"], centered.dtype)


@mutation("replica_losses")
class LossesCrossReplicas(Reference):
    def add_losses(self, distance, mask):
        super().add_losses(sum_over_replicas(tf.reduce_mean(distance)), None)


@mutation("replica_state")
class EveryReplicaMovesByItself(Reference):
    def build(self, input_shape):
        super().build(input_shape)
        self._untrack_variable(self.center)
        self.center = keras.Variable(
            tf.ones([input_shape[-1]]), trainable=False, aggregation="mean", synchronization="on_read", name="center"
        )

    def statistics(self, inputs, mask):
        weight = tf.cast(mask, tf.float32)
        return tf.einsum("bt,btd->d", weight, tf.cast(inputs, tf.float32)), tf.reduce_sum(weight)


@mutation("replica_metrics")
class OnlyTheFirstReplicaCounts(Reference):
    def report(self, distance, mask):
        first = layers.replicas.replica_index() == 0
        super().report(distance, tf.cast(mask, tf.float32) * (1.0 if first else 0.0))


@mutation("inference")
class MovesAtInference(Reference):
    def learns(self, training):
        return self.trainable


@mutation("frozen")
class MovesWhenFrozen(Reference):
    def learns(self, training):
        return training


@mutation("seeds")
class DrawsUnannouncedNoise(Reference):
    def output_of(self, centered):
        return super().output_of(centered) + tf.cast(tf.random.normal([]), centered.dtype)


@mutation("empty_batch")
class PlainMean(Reference):
    def add_losses(self, distance, mask):
        self.add_loss(self.factor(distance.dtype) * tf.reduce_mean(tf.boolean_mask(distance, mask)))
        self.add_loss(tf.reduce_sum(tf.square(tf.stop_gradient(full_precision(self.kernel)))))


@mutation("single_example")
class MixesExamples(Reference):
    def output_of(self, centered):
        return super().output_of(centered - tf.reduce_mean(centered, 0))


@mutation("replica_noise")
class SameNoiseOnEachReplica(Noisy):
    def noise(self, shape, dtype):
        return tf.cast(keras.random.normal(shape, seed=self.seed_generator), dtype)


@mutation("inference", "oracle")
class NoiseAtInference(Noisy):
    def noisy(self, training):
        return True


@mutation("seeds")
class IgnoresItsSeed(Noisy):
    def noise(self, shape, dtype):
        return tf.cast(tf.random.stateless_normal(shape, [1, self.seed_generator.next()[1]]), dtype)


@mutation("seeds")
class RepeatsItsNoise(Noisy):
    def noise(self, shape, dtype):
        return tf.cast(tf.random.stateless_normal(shape, [self.seed, 0]), dtype)


@mutation("checkpoint")
class SeedsKerasDoesNotSave(Noisy):
    def _show_to_checkpoints(self, name, variables):
        pass


def settings_of(kind):
    """What `check_layer` is told about a mutation."""
    return NOISY if issubclass(kind, Noisy) else REFERENCE


def factory_of(kind):
    """Makes it with an argument that is not the default."""
    return functools.partial(kind, seed=7) if issubclass(kind, Noisy) else functools.partial(kind, units=4)
