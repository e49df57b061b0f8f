"""What the last walk over a task found stands for the next one only as long as that would find the same."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import pickle
import types

import keras
import pytest
import tensorflow as tf

import loops
from loops.hooks import Hook
from loops.tasks import tracking
from tests.loops import tiny
from tests.loops.tasks.test_tracking import Holder, Model, Module, Nested, Slotted, inner_layer, metric, optimizer, task_with


@pytest.fixture
def walks(monkeypatch):
    """Counts walks."""
    made = []
    over = tracking._Walk.over

    def counted(walk, root):
        made.append(root)
        return over(walk, root)

    monkeypatch.setattr(tracking._Walk, "over", counted)
    return made


def parts_of(tracked):
    """What was found, by identity."""

    def known(value):
        if isinstance(value, dict):
            return [(name, id(item)) for name, item in value.items()]
        return sorted(value) if isinstance(value, set) else [item if isinstance(item, str) else id(item) for item in value]

    found = {field.name: known(getattr(tracked, field.name)) for field in dataclasses.fields(tracked)}
    return {**found, "inner layers": known(tracking.layers_of(tracked.layers))}


def compiled():
    model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2), inner_layer(None)])
    model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
    return model


class OwnMetrics(Model):
    listed = ()

    @property
    def metrics(self):
        return list(self.listed)


def replaced(name, value):
    return lambda held: setattr(held, name, value())


def keyword(held):
    held.keywords["part"] = keras.layers.Dense(1)


# What a task holds, and what happens to it.
CHANGES = {
    "attribute": (Holder, replaced("part", lambda: keras.layers.Dense(1))),
    "number becomes a variable": (lambda: Holder(1, 2), replaced("parts", lambda: [tf.Variable(1.0)])),
    "item of a list": (lambda: [keras.layers.Dense(1), 2], lambda held: held.__setitem__(1, tf.Variable(1.0))),
    "list grows": (lambda: [1, [2]], lambda held: held[1].append(tf.Variable(1.0))),
    "list shrinks": (lambda: [tf.Variable(1.0), tf.Variable(2.0)], lambda held: held.pop(0)),
    "order of a list": (lambda: [tf.Variable(1.0), tf.Variable(2.0)], lambda held: held.reverse()),
    "key of a dict": (lambda: {"a": keras.optimizers.SGD()}, lambda held: held.update(b=held.pop("a"))),
    "deque": (lambda: collections.deque([tf.Variable(1.0), tf.Variable(2.0)]), lambda held: held.rotate()),
    "mapping": (lambda: collections.UserDict(a=1), lambda held: held.update(a=tf.Variable(1.0))),
    "slot": (lambda: Slotted(1), replaced("part", lambda: tf.Variable(1.0))),
    "slot filled": (lambda: Slotted(1), replaced("empty", lambda: tf.Variable(1.0))),
    "partial": (lambda: functools.partial(print, part=1), keyword),
    "namespace": (types.SimpleNamespace, replaced("a", lambda: tf.Variable(1.0))),
    "nested task": (lambda: Nested(None), replaced("part", lambda: tf.Variable(1.0))),
    "module": (lambda: Module([1]), replaced("part", lambda: tf.Variable(1.0))),
    "layer in a model": (compiled, lambda held: held.add(keras.layers.Dense(4))),
    "layer taken away": (compiled, lambda held: held.pop()),
    "layer in a layer in a model": (lambda: Model(Model()), lambda held: setattr(held.part, "inner", keras.layers.Dense(1))),
    "something beside the layers": (compiled, lambda held: setattr(held.layers[0], "beside", Holder(tf.Variable(1.0)))),
    "deep beside the layers": (lambda: Model(Holder([1])), lambda held: held.part.parts[0].append(tf.Variable(1.0))),
    "compiled again": (compiled, lambda held: held.compile("sgd", "mse")),
    "optimizer of a model": (compiled, replaced("optimizer", keras.optimizers.SGD)),
    "metrics of a model's own": (lambda: OwnMetrics(), replaced("listed", lambda: [keras.metrics.Mean()])),
    "metric of a layer": (lambda: Model(None), replaced("mean", keras.metrics.Mean)),
    "part of a metric": (lambda: metric(None), replaced("part", lambda: tf.Variable(1.0))),
    "schedule": (lambda: optimizer(1), lambda held: setattr(held._learning_rate, "part", tf.Variable(1.0))),
    "rate": (lambda: keras.optimizers.SGD(0.1), lambda held: setattr(held, "learning_rate", optimizer(tf.Variable(1.0))._learning_rate)),
    "inner optimizer": (
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
        replaced("inner_optimizer", keras.optimizers.Adam),
    ),
    "state of a generator": (lambda: keras.random.SeedGenerator(1), replaced("state", lambda: tf.Variable([1, 2]))),
    "iterator": (Holder, replaced("part", lambda: iter(tf.data.Dataset.range(3)))),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("within", [lambda held: held, lambda held: Holder([held])], ids=["held", "within"])
def test_every_change_is_found_as_by_a_walk(change, within):
    make, happens = CHANGES[change]
    held = make()
    task = task_with(first=keras.layers.Dense(1), held=within(held), last=tf.Variable(0.0))
    before = task.tracked
    known = parts_of(before)
    assert task.tracked is before
    happens(held)
    assert parts_of(task.tracked) == parts_of(tracking.track(task, loops.Task)) != known


def test_numbers_and_arrays_may_change_without_another_walk(walks):
    task = task_with(model=compiled(), count=0, held=[1, Holder(2, tf.Variable(1.0))])
    before = task.tracked
    task.count, task.held[0], task.model.stop_training = 7, 8, True
    task.model.layers[0].kernel.assign_add(tf.ones([3, 2]))
    assert task.tracked is before and len(walks) == 1


def test_what_a_walk_ignores_is_not_kept_alive():
    class Data:
        __module__ = "numpy.data"

    task = task_with(data=Data())
    gone = __import__("weakref").ref(task.data)
    assert task.tracked.layers == []
    task.data = None
    assert gone() is None


def test_copies_of_a_task_have_walks_of_their_own():
    task = tiny.Classifier()
    before = task.tracked
    shallow, deep = copy.copy(task), copy.deepcopy(task)
    shallow.model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    assert shallow.tracked.layers == [shallow.model] and deep.tracked.layers == [deep.model]
    assert parts_of(task.tracked) == parts_of(before)
    assert pickle.loads(pickle.dumps(tracking.LastWalk())).over(task, loops.Task).layers == [task.model]


class _Counts(Hook):
    """Notes how many walks there were at the end of each epoch."""

    phase = loops.hooks.Phase.SAVE

    def __init__(self, walks):
        self.walks, self.counts = walks, []

    def on_epoch_end(self, loop, logs):
        self.counts.append(len(self.walks))
        assert loop.learning_rate.logs()


def test_an_epoch_with_many_hooks_makes_no_walk(walks, tmp_path):
    counts = _Counts(walks)
    every = [
        loops.hooks.EarlyStopping("loss", patience=99),
        loops.hooks.ModelCheckpoint(str(tmp_path / "best.weights.h5"), "loss", save_best_only=True, save_weights_only=True),
        loops.hooks.TensorBoard(tmp_path, update_freq="batch"),
        loops.hooks.CSVLogger(tmp_path / "history.csv"),
        counts,
    ]
    loop = loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed(tiny.data(32), 16), every, compile="graph")
    loop.run(epochs=6)
    assert len(set(counts.counts[2:])) == 1
