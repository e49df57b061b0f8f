"""Small tasks put together at random: where variables are held, what a step does and in which order it says what it did.

Each is also trained by a loop written by hand, which has nothing of `loops` but the class itself: Keras's optimizers, a tape, NumPy.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops

EXAMPLES, FEATURES = 22, 3
SEED = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a random task is made of.

    Attributes:
        holder: what holds the model, the extra variable and the metric.
        optimizer: name of the optimizer.
        loss: name of a Keras loss, how it is given, and the shapes of targets and weights.
        control: how the update is done.
        noise: where random numbers are drawn.
        logs: the names that a step returns, in order.
        clip: bound of the global norm, or None.
        batch_size, source: the data.
        seed: of the initial weights and the data.
    """

    holder: str = "attribute"
    optimizer: str = "sgd"
    loss: str = "mse"
    given: str = "name"
    target: str = "[B, 1]"
    weights: str = "none"
    control: str = "plain"
    noise: str = "none"
    logs: tuple[str, ...] = ("loss",)
    clip: float | None = None
    batch_size: int = 4
    source: str = "arrays"
    seed: int = 0


HOLDERS = ("attribute", "list", "dict", "object", "slots", "dataclass", "namespace", "task", "module", "deep")
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.02),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01),
    "accumulates": lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=2),
    "clips": lambda: keras.optimizers.SGD(0.05, global_clipnorm=0.5),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.7)),
}
LOSSES = {
    "mse": keras.losses.MeanSquaredError,
    "mae": keras.losses.MeanAbsoluteError,
    "huber": keras.losses.Huber,
    "log_cosh": keras.losses.LogCosh,
    "hinge": keras.losses.Hinge,
}
GIVEN = ("name", "object", "called", "function", "by hand")
CONTROLS = ("plain", "loop", "if", "when", "apply")
NOISES = ("none", "seed", "in loop", "both")
LOGS = ("loss", "count", "last", "metric", "result", "derived", "mean")
SOURCES = ("arrays", "tf.data", "generator")


@dataclasses.dataclass
class Held:
    model: Any
    extra: Any
    metric: Any


class Slotted:
    __slots__ = ("extra", "metric", "model")

    def __init__(self, model, extra, metric):
        self.model, self.extra, self.metric = model, extra, metric


class Holder(loops.Task):
    """A task that only holds something."""

    def __init__(self, model, extra, metric):
        super().__init__()
        self.model, self.extra, self.metric = model, extra, metric


class Module(tf.Module):
    def __init__(self, model, extra, metric):
        super().__init__()
        self.model, self.extra, self.metric = model, extra, metric


class RandomTask(loops.Task):
    def __init__(self, plan: Plan):
        super().__init__()
        keras.utils.set_random_seed(plan.seed)
        self.plan = plan
        model = keras.Sequential([keras.Input([FEATURES]), keras.layers.Dense(2, "tanh"), keras.layers.Dense(1)])
        extra, metric = tf.Variable([0.0, 0.0], trainable=False), keras.metrics.MeanAbsoluteError()
        self.held = self.hold(plan.holder, model, extra, metric)
        self.optimizer = OPTIMIZERS[plan.optimizer]()
        self.turns = tf.Variable(2, trainable=False)

    @staticmethod
    def hold(holder, model, extra, metric):
        if holder == "list":
            return [model, [extra, metric]]
        if holder == "dict":
            return {"b": extra, "a": {"metric": metric, "model": model}}
        if holder == "deep":
            return [{"x": types.SimpleNamespace(inside=Slotted(model, extra, metric))}]
        kinds = {"object": Holder, "slots": Slotted, "dataclass": Held, "task": Holder, "module": Module}
        return kinds.get(holder, lambda *parts: types.SimpleNamespace(**dict(zip(("model", "extra", "metric"), parts, strict=True))))(
            model, extra, metric
        )

    @property
    def parts(self):
        held = self.held
        if isinstance(held, list):
            if isinstance(held[0], dict):
                held = held[0]["x"].inside
            else:
                return held[0], held[1][0], held[1][1]
        if isinstance(held, dict):
            return held["a"]["model"], held["b"], held["a"]["metric"]
        return held.model, held.extra, held.metric

    def variables(self):
        model, extra, metric = self.parts
        return [*model.variables, extra, *metric.variables, *self.optimizer.variables]

    def loss_of(self, y, y_pred, weights):
        plan, cls = self.plan, LOSSES[self.plan.loss]
        if plan.given == "name":
            return self.compute_loss(plan.loss, y, y_pred, weights)
        if plan.given == "object":
            return self.compute_loss(cls(), y, y_pred, weights)
        if plan.given == "called":
            return cls()(y, y_pred, sample_weight=weights)
        if plan.given == "function":
            return self.compute_loss(keras.losses.get(plan.loss), y, y_pred, weights)
        values = keras.losses.get(plan.loss)(tf.reshape(y, [-1, 1]), y_pred)
        return tf.reduce_mean(values if weights is None else values * tf.reshape(weights, [-1]))

    def update(self, x, y, weights, extra_loss, when=None):
        model, _, _ = self.parts
        with tf.GradientTape() as tape:
            loss = self.loss_of(y, model(x, training=True), weights) + extra_loss
        if self.plan.control == "apply":
            variables = model.trainable_variables
            self.apply_gradients(tape.gradient(loss, variables), variables, self.optimizer)
        else:
            self.minimize(loss, tape, self.optimizer, model.trainable_variables, when=when)
        return loss

    def noise(self, x):
        plan, total = self.plan, tf.zeros([])
        if plan.noise in ("seed", "both"):
            total += tf.random.stateless_uniform([], self.seed())
        if plan.noise in ("in loop", "both"):
            for i in tf.range(self.turns):
                total += tf.random.stateless_uniform([], self.seed(i)) + 10.0 * tf.random.stateless_uniform([], self.seed(3, i))
            total += tf.random.stateless_uniform([], self.seed())
        return total

    def train_step(self, batch):
        x, y, *rest = batch
        weights = rest[0] if rest else None
        model, extra, metric = self.parts
        drawn = self.noise(x)
        extra.assign_add(tf.stack([1.0, drawn]))
        loss = tf.constant(0.0)
        if self.plan.control == "loop":
            for _ in tf.range(self.turns):
                loss = self.update(x, y, weights, 0.0 * drawn)
        elif self.plan.control == "if":
            if self.step % 2 == 0:
                loss = self.update(x, y, weights, 0.0 * drawn)
        elif self.plan.control == "when":
            loss = self.update(x, y, weights, 0.0 * drawn, when=self.step % 3 != 1)
        else:
            loss = self.update(x, y, weights, 0.0 * drawn)
        metric.update_state(tf.reshape(y, [-1, 1]), model(x))
        logs = {
            "loss": loss,
            "count": loops.Sum(tf.cast(tf.shape(x)[0], tf.float32)),
            "last": loops.Last(extra[0]),
            "metric": metric,
            "result": metric.result(),
            "derived": tf.sqrt(metric.result()),
            "mean": loops.Mean(x[0, 0], weight=tf.abs(x[0, 0])),
        }
        return {name: logs[name] for name in self.plan.logs}


class ByHand(RandomTask):
    """The same step, with Keras's own update and loss."""

    def __init__(self, plan):
        super().__init__(plan)
        self.steps = 0

    @property
    def step(self):
        return tf.constant(self.steps, tf.int64)

    def compute_loss(self, loss_fn, y, y_pred, sample_weight=None):
        wrapped = LOSSES[self.plan.loss]()  # what compile(loss=...) makes of a name and of a function
        return wrapped(y, y_pred, sample_weight=sample_weight)

    def minimize(self, loss, tape, optimizer, variables, *, when=None):
        if when is None or bool(when):
            self.apply_gradients(tape.gradient(loss, variables), variables, optimizer)

    def apply_gradients(self, grads, variables, optimizer, *, when=None):
        if self.plan.clip is not None:
            grads, _ = tf.clip_by_global_norm(grads, self.plan.clip)
        optimizer.apply_gradients(zip(grads, variables, strict=True))


def arrays(plan: Plan):
    rng = np.random.default_rng(plan.seed + 100)
    x = rng.normal(size=[EXAMPLES, FEATURES]).astype("float32")
    y = np.sign(x @ rng.normal(size=[FEATURES])).astype("float32")
    y = y if plan.target == "[B]" else y[:, None]
    if plan.weights == "none":
        return x, y
    weights = rng.uniform(0.5, 2.0, EXAMPLES).astype("float32")
    return x, y, weights if plan.weights == "[B]" else weights[:, None]


def batches(plan: Plan):
    data = arrays(plan)
    return [tuple(a[i : i + plan.batch_size] for a in data) for i in range(0, EXAMPLES, plan.batch_size)]


def feed(plan: Plan):
    data = arrays(plan)
    if plan.source == "arrays":
        return loops.ArrayFeed(data, plan.batch_size)
    if plan.source == "tf.data":
        return loops.DatasetFeed(tf.data.Dataset.from_tensor_slices(data).batch(plan.batch_size))
    return loops.GeneratorFeed(lambda: iter(batches(plan)))


def trained_by_hand(plan: Plan, epochs: int) -> tuple[dict[str, list[float]], list[np.ndarray]]:
    """History and variables after a loop that a careful person would write."""
    task, history = ByHand(plan), {name: [] for name in plan.logs}
    _, _, metric = task.parts
    for _ in range(epochs):
        metric.reset_state()
        rows = []
        for batch in batches(plan):
            batch = tuple(tf.constant(a) for a in batch)
            logs = task.train_step(batch)
            rows.append((len(batch[0]), {name: _number(value) for name, value in logs.items()}, abs(float(batch[0][0, 0]))))
            task.steps += 1
        sizes, values, weights = zip(*rows, strict=True)
        for name in plan.logs:
            column = [v[name] for v in values]
            if name == "loss":
                history[name].append(np.average(column, weights=sizes))
            elif name == "mean":
                history[name].append(np.average(column, weights=weights))
            elif name == "count":
                history[name].append(np.sum(column))
            else:
                history[name].append(column[-1])
    return history, [np.asarray(v) for v in task.variables()]


def _number(value: Any) -> float:
    if isinstance(value, keras.metrics.Metric):
        return float(value.result())
    return float(value.value if isinstance(value, (loops.Sum, loops.Last, loops.Mean)) else value)
