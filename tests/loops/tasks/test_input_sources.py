"""What a trace read in Python counts as unchanged by identity only as long as a walk over it would find the same."""

import argparse
import collections
import enum
import functools
import gc
import sys
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.tasks import python_inputs
from loops.tasks.python_inputs import PythonInputs
from tests.loops import tiny

scale_of_module = 1.0


def scaled(x, by=1.0, *, more=1.0):
    return x * by * more * scale_of_module


def closure_of(value):
    def multiply(x):
        return x * value

    return multiply


class Base:
    shared = 1.0


class Other:
    shared = 1.0


class Held(Base):
    def __init__(self, value=1.0):
        self.value = value

    def multiply(self, x):
        return x * self.value


class Slotted:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1.0


class Choice(enum.Enum):
    A = 1
    B = 2


class Penalty(keras.regularizers.Regularizer):
    def __init__(self):
        self.factor = 0.01

    def __call__(self, weight):
        return self.factor * tf.reduce_sum(weight**2)


def dense(**arguments):
    layer = keras.layers.Dense(2, **arguments)
    layer.build([None, 3])
    return layer


def replaced(name, value):
    return lambda held: setattr(held, name, value)


def moved_cell(function):
    function.__closure__[0].cell_contents = 2.0


def of_module(_):
    globals()["scale_of_module"] = 2.0


def of_inner_module(_):
    package.inner.RATE = 2.0


def reads_of_package():
    return package.inner.RATE


def imports_within():
    from package_of_test.inner import RATE

    return RATE


package = types.ModuleType("package_of_test")
package.inner = types.ModuleType("package_of_test.inner")


def in_place(held):
    held[1] = 9


# What a task holds, and what happens to it.
CHANGES = {
    "number": (Held, replaced("value", 2.0)),
    "equal number of another type": (Held, replaced("value", 1)),
    "new attribute": (Held, replaced("other", 1)),
    "attribute that goes": (Held, lambda held: delattr(held, "value")),
    "object becomes None": (lambda: Held(Held()), replaced("value", None)),
    "another object": (lambda: Held(Held()), lambda held: setattr(held, "value", Held())),
    "attribute of an inner object": (lambda: [{"a": Held()}], lambda held: setattr(held[0]["a"], "value", 2.0)),
    "another class": (Held, lambda held: setattr(held, "__class__", Other)),
    "slot": (Slotted, replaced("value", 2.0)),
    "enum": (lambda: Held(Choice.A), replaced("value", Choice.B)),
    "item": (lambda: [1, 2], in_place),
    "item of an inner list": (lambda: ([1, 2], 3), lambda held: in_place(held[0])),
    "list grows": (list, lambda held: held.append(1)),
    "value of a dict": (lambda: {"a": [1]}, lambda held: held["a"].append(2)),
    "key of a dict": (lambda: {(1, 2): 3}, lambda held: held.update({(1, 3): held.pop((1, 2))})),
    "long list": (lambda: list(range(100)), in_place),
    "long list of lists": (lambda: [[i] for i in range(100)], lambda held: held[50].append(1)),
    "long list of objects": (lambda: [Held(i) for i in range(100)], lambda held: setattr(held[50], "value", 1)),
    "set": (lambda: {1, 2}, lambda held: held.add(3)),
    "deque": (lambda: collections.deque([1, 2]), lambda held: held.rotate()),
    "user's dict": (lambda: collections.UserDict(a=1), lambda held: held.update(a=2)),
    "array": (lambda: np.zeros(3), in_place),
    "row of a structured array": (lambda: np.zeros(3, [("a", "f4"), ("b", "f4")])[1], in_place),
    "parsed flags": (lambda: argparse.Namespace(value=1.0), replaced("value", 2.0)),
    "global of a module in a package": (lambda: reads_of_package, of_inner_module),
    "global of a module that is imported within": (lambda: imports_within, of_inner_module),
    "array in a list": (lambda: [np.zeros(3)], lambda held: in_place(held[0])),
    "closure": (lambda: closure_of(1.0), moved_cell),
    "closure's list": (lambda: closure_of([1, 2]), lambda held: in_place(held.__closure__[0].cell_contents)),
    "global": (lambda: scaled, of_module),
    "default": (lambda: types.FunctionType(scaled.__code__, globals(), "f", (1.0,)), replaced("__defaults__", (2.0,))),
    "code": (lambda: types.FunctionType(scaled.__code__, globals(), "f", (1.0,)), replaced("__code__", tiny.data.__code__)),
    "partial": (lambda: functools.partial(scaled, more=[1]), lambda held: held.keywords["more"].append(2)),
    "self of a method": (lambda: Held().multiply, lambda held: setattr(held.__self__, "value", 2.0)),
    "class attribute": (Held, lambda held: setattr(Base, "shared", 2.0)),
    "method of a class": (Held, lambda held: setattr(Held, "multiply", scaled)),
    "bases of a class": (Held, lambda held: setattr(Held, "__bases__", (Other,))),
    "setting of a layer": (dense, replaced("use_bias", False)),
    "policy of a layer": (dense, replaced("dtype_policy", keras.DTypePolicy("mixed_float16"))),
    "regularizer": (lambda: dense(kernel_regularizer=Penalty()), lambda layer: setattr(layer.kernel.regularizer, "factor", 0.1)),
    "regularizer that goes": (lambda: dense(kernel_regularizer=Penalty()), lambda layer: setattr(layer.kernel, "regularizer", None)),
    "regularizer that comes": (dense, lambda layer: setattr(layer.kernel, "regularizer", Penalty())),
    "setting of an optimizer": (keras.optimizers.SGD, replaced("nesterov", True)),
    "setting of a metric": (lambda: keras.metrics.BinaryAccuracy(), replaced("threshold", 0.7)),
    "setting of a loss": (lambda: keras.losses.Huber(), lambda loss: loss._fn_kwargs.update(delta=2.0)),
}


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    monkeypatch.setitem(globals(), "scale_of_module", 1.0)
    monkeypatch.setitem(sys.modules, "package_of_test", package)
    monkeypatch.setitem(sys.modules, "package_of_test.inner", package.inner)
    monkeypatch.setattr(package.inner, "RATE", 1.0, raising=False)
    monkeypatch.setattr(Base, "shared", 1.0)
    monkeypatch.setattr(Held, "multiply", Held.multiply)
    yield
    Held.__bases__ = (Base,)


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_a_walk_would_find_changed_counts_as_changed(name):
    make, change = CHANGES[name]
    roots = {"": types.SimpleNamespace(held=make()), "clip": (1.0,)}
    before = PythonInputs(roots, again=True)
    assert before.stand({**roots, "clip": (1.0,)})
    change(roots[""].held)
    assert not before.stand(roots)
    assert before.difference(PythonInputs(roots)) is not None


def test_roots_are_looked_at_and_what_is_apart_is_not():
    task = Held()
    task.notes = 1
    before = PythonInputs({"": task, "clip": (1.0,)}, ["notes"], again=True)
    task.notes, task.more = 2, 3
    assert not before.stand({"": task, "clip": (1.0,)})
    del task.more
    assert before.stand({"": task, "clip": (1.0,)})
    assert not before.stand({"": task, "clip": (2.0,)})
    assert not PythonInputs({"": task}).stand({"": task})  # it was not asked to remember


def test_what_holds_itself_or_lies_deep_counts_as_changed_always():
    itself = [1]
    itself.append(itself)
    deep = []
    for _ in range(500):
        deep = [deep]
    doubled = [1]
    for _ in range(64):
        doubled = [doubled, doubled]
    for held in (itself, deep, doubled):
        task = types.SimpleNamespace(held=held)
        assert not PythonInputs({"": task}, again=True).stand({"": task})


def test_nothing_that_was_compared_is_kept_alive():
    task = types.SimpleNamespace(objects=[Held()], held=Held(np.zeros(3)))
    gone = [weakref.ref(task.objects[0]), weakref.ref(task.held), weakref.ref(task.held.value)]
    before = PythonInputs({"": task}, again=True)
    assert before.stand({"": task})
    task.objects, task.held = None, None
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    assert not before.stand({"": task})


@pytest.fixture
def walks(monkeypatch):
    """Counts walks over Python values."""
    made = []
    walk = python_inputs._Walk.__init__
    monkeypatch.setattr(python_inputs._Walk, "__init__", lambda self, *a: made.append(1) or walk(self, *a))
    return made


def test_evaluations_and_fits_of_an_unchanged_model_make_no_walk(walks):
    x, _ = tiny.data(40)
    model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mae"])
    y = np.zeros([40, 2], "float32")

    def work():
        loops.fit(model, x, y, verbose=0, compile="graph")
        loops.predict(model, x)
        return loops.evaluate(model, x, y)

    expected = work()
    for _ in range(3):
        work()
    walks.clear()
    assert work() == expected
    assert walks == []
    model.loss_of_mine = 1.0  # read by nobody, but it might be
    work()
    assert walks
