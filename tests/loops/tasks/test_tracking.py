"""The walk over a task's attributes: what it finds, in which order and under which names, and what it leaves alone."""

from __future__ import annotations

import collections
import dataclasses
import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.tasks.tracking import track


class Holder:
    def __init__(self, *parts):
        self.parts = parts


class Slotted:
    __slots__ = ("__hidden", "empty", "part")

    def __init__(self, part):
        self.part = part


@dataclasses.dataclass(frozen=True)
class Data:
    part: object


class Module(tf.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part


class Nested(loops.Task):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def train_step(self, batch):
        return {}


class Model(keras.Model):
    def __init__(self, part=None):
        super().__init__()
        self.part = part
        self.dense = keras.layers.Dense(2)


def inner_layer(part):
    layer = keras.layers.Dense(2)
    layer.part = part
    return keras.Sequential([keras.layers.Dense(2), layer])


def metric(part):
    found = type("Own", (keras.metrics.Mean,), {})()
    found.part = part
    return found


def optimizer(part):
    class Rate(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self):
            self.part = part

        def __call__(self, step):
            return 0.1

    return keras.optimizers.SGD(Rate())


HOLDERS = {
    "attribute": lambda part: part,
    "list of dicts": lambda part: [{"a": part}],
    "deque": lambda part: collections.deque([part]),
    "mapping": lambda part: collections.UserDict(a=part),
    "object": Holder,
    "object in an object": lambda part: Holder(1, Holder(part)),
    "slots": Slotted,
    "dataclass": Data,
    "namespace": lambda part: types.SimpleNamespace(a=part),
    "nested task": Nested,
    "module": Module,
    "module of lists": lambda part: Module([{"a": (part,)}]),
    "module of objects": lambda part: Module(Holder(part)),
    "module in a layer": lambda part: Model(Module([part])),
    "model": Model,
    "layer in a model": inner_layer,
    "object in a model": lambda part: Model(Holder(part)),
    "bound method": lambda part: Holder(part).__init__,
    "partial": lambda part: functools.partial(print, Holder(part)),
    "metric": metric,
    "schedule": optimizer,
    "loss": lambda part: Model(type("Own", (keras.losses.Loss,), {"part": part, "__init__": lambda self: setattr(self, "part", part)})()),
}


def task_with(**attributes):
    task = Nested(None)
    vars(task).update(attributes)
    return task


@pytest.mark.parametrize("holder", HOLDERS)
def test_variables_generators_and_plain_objects_are_found_wherever_they_hang(holder):
    variable, generator, plain = tf.Variable(1.0), tf.random.Generator.from_seed(1), tf.Variable(2.0)
    parts = [variable, generator, Holder(plain)]
    found = task_with(held=HOLDERS[holder](parts)).tracked.all_variables()
    for wanted in (variable, generator.state, plain):
        assert sum(v is wanted for v in found) == 1


@pytest.mark.parametrize("holder", [name for name in HOLDERS if name not in ("metric", "schedule")])
def test_so_are_layers_and_optimizers(holder):
    layer, adam = keras.layers.Dense(1), keras.optimizers.Adam()
    layer.build([None, 2])
    tracked = task_with(held=HOLDERS[holder]([layer, adam])).tracked
    assert any(v is layer.kernel for v in tracked.model_variables())
    assert [one for one in tracked.optimizers.values() if one is adam] == [adam]


def test_names_of_optimizers_are_the_paths_of_their_attributes():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd")
    model.d_optimizer = keras.optimizers.Adam()
    inside = Holder(model)  # comes first, and the model is the task's own all the same
    inside.optimizer = keras.optimizers.Adam()
    task = task_with(helper=inside, model=model, opt=keras.optimizers.Adam(), more={"a": [keras.optimizers.Adam()]}, again=model.optimizer)
    assert list(task.tracked.optimizers) == ["model.optimizer", "opt", "more.a.0", "helper.optimizer", "model.d_optimizer"]
    assert task.tracked.own_layers() == [model]


def test_an_optimizer_inside_another_is_state_and_has_no_rate_of_its_own():
    inner = keras.optimizers.Adam()
    tracked = task_with(opt=keras.optimizers.LossScaleOptimizer(inner)).tracked
    assert list(tracked.optimizers) == ["opt"] and any(v is inner.iterations for v in tracked.optimizer_variables())


def test_metrics_of_helpers_are_metrics_and_unlisted_ones_of_models_are_state_that_nobody_resets():
    class Own(Model):
        @property
        def metrics(self):
            return []

    helper, hidden = keras.metrics.Mean(), keras.metrics.Mean()
    tracked = task_with(helper=Holder(helper), model=Own(hidden)).tracked
    assert tracked.metrics == [helper] and tracked.unlisted_metrics == [hidden]
    assert any(v is hidden.total for v in tracked.metric_variables())


def test_what_is_not_state_is_left_alone_and_no_property_is_called():
    hidden = tf.Variable(1.0)

    class Callback(keras.callbacks.Callback):
        part = None

    class Hook(loops.hooks.Hook):
        part = None

    class Feed(loops.NoFeed):
        part = None

    class Sly:
        part = None

        @property
        def loud(self):
            raise AssertionError("called")

        def __getattr__(self, name):
            raise AssertionError(f"asked for {name}")

    callback, hook, feed, sly = Callback(), Hook(), Feed(1), Sly()
    for one in (callback, hook, feed):
        one.part = hidden
    kind = type("Kind", (), {"v": hidden})
    task = task_with(callback=callback, hook=hook, feed=feed, sly=sly, a_set={Holder(hidden)}, function=lambda: hidden, kind=kind)
    assert task.tracked.all_variables() == []


def test_cycles_depth_and_great_numbers_of_things_are_survived():
    ring = Holder()
    ring.parts = [ring, tf.Variable(1.0)]
    deep, chain = [tf.Variable(2.0)], Holder(tf.Variable(3.0))
    for _ in range(5_000):
        deep, chain = [deep], Holder(chain)
    task = task_with(ring=ring, deep=deep, chain=chain, numbers=list(range(300_000)), arrays=[np.zeros(1)] * 300_000)
    assert [float(v) for v in task.tracked.loose] == [2.0, 1.0, 3.0]


def test_a_walk_over_a_deep_model_asks_each_layer_a_few_things():
    model = keras.Sequential([keras.Input([4]), *(keras.layers.Dense(4) for _ in range(50))])
    asked = collections.Counter()

    class Counting(type(loops.tasks.tracking.Kinds(Nested))):
        def __getitem__(self, kind):
            asked["kinds"] += 1
            return super().__getitem__(kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.tasks.tracking, "Kinds", Counting)
        track(task_with(model=model), Nested)
    assert asked["kinds"] < 50 * 25


def test_what_nobody_can_save_is_noted():
    dataset = tf.data.Dataset.range(3)
    task = task_with(again=iter(dataset), held=Holder((i for i in range(3)), tf.queue.FIFOQueue(3, tf.float32)))
    assert task.tracked.not_saved == ["again", "held.parts.0", "held.parts.1"]
