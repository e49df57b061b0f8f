"""What is not public in TensorFlow and Keras is there, and a release that takes something away is named with it."""

from __future__ import annotations

import configparser
import importlib
import pathlib
import sys
import traceback

import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from loops import _private_api
from loops._private_api import NEEDED, OPTIONAL
from loops.xla.replaced_ops import replaceable

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("home", NEEDED)
def test_what_is_needed_is_there(home):
    assert _private_api.missing({home: NEEDED[home]}) == []


@pytest.mark.parametrize(("home", "names"), OPTIONAL.items())
def test_what_is_optional_is_there(home, names):
    assert _private_api.missing({home: names}) == []


def test_all_ops_that_are_replaced_are_listed():
    assert set(replaceable()) == {name for home, names in OPTIONAL.items() if ".ops.gen_" in home for name in names}


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (keras.layers.Layer, "_flatten_layers", "keras.layers.Layer._flatten_layers"),
        (op_def_registry, "get", "tensorflow.python.framework.op_def_registry.get"),
        (tf.__internal__.autograph, "tf_convert", "tensorflow.__internal__.autograph.tf_convert"),
    ],
)
def test_a_name_that_was_taken_away_is_named_with_the_releases_that_have_it(monkeypatch, owner, name, said):
    assert _private_api.unsupported() is None
    monkeypatch.delattr(owner, name)
    assert _private_api.missing() == [said]
    sentence = _private_api.unsupported()
    assert f"which lack {said}; it supports TensorFlow 2.21 and Keras 3.15." in sentence and keras.__version__ in sentence


def test_so_is_an_attribute_that_only_objects_have(monkeypatch):
    class Graph:
        def __init__(self):
            self._functions_by_name = {}

    monkeypatch.setattr(tf, "Graph", Graph)
    assert _private_api.missing() == ["tensorflow.Graph._functions"]


@pytest.mark.parametrize("path", ["tensorflow.python.no_such_module", "keras.NoSuchClass", "no_such_package.module"])
def test_so_is_a_module_or_class(path):
    assert _private_api.missing({path: ("name", "other")}) == [f"{path}.name", f"{path}.other"]


def test_the_import_fails_with_one_sentence(monkeypatch):
    monkeypatch.delattr(keras.layers.Layer, "_flatten_layers")
    for name in [name for name in sys.modules if name.partition(".")[0] == "loops"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        importlib.import_module("loops")
    except ImportError:
        *frames, last = traceback.format_exc().strip().splitlines()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "loops"]:
            del sys.modules[name]  # those of before come back with the end of the test
    assert last.startswith("ImportError: loops does not work with TensorFlow")
    assert "which lack keras.layers.Layer._flatten_layers; it supports" in last
    assert not any("/tensorflow/" in frame or "/keras/" in frame for frame in frames)


def test_the_supported_releases_are_those_that_are_installed_with_the_package():
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    wanted = setup["options"]["install_requires"].split()
    assert {f"{package.lower()}>={version}" for package, version in _private_api.SUPPORTED.items()} <= set(wanted)


def test_a_replaced_update_step_is_back_afterwards_also_after_an_error():
    optimizer = keras.optimizers.SGD(0.1)
    own = _private_api.update_step_of(optimizer)
    with pytest.raises(KeyError), _private_api.update_step_replaced(optimizer, print):
        assert _private_api.update_step_of(optimizer) is print
        raise KeyError
    assert _private_api.update_step_of(optimizer) == own


def test_uses_of_variables_are_noticed_in_every_way_and_not_afterwards():
    a, b, c = (tf.Variable([1.0, 2.0]) for _ in range(3))
    called = tf.function(lambda: c.assign_add([1.0, 1.0]))
    called()  # traced before anybody listens
    seen = []
    with pytest.raises(KeyError), _private_api.uses_of_variables(seen.append):
        tf.gather(a, [0])
        tf.raw_ops.ResourceApplyGradientDescent(var=b.handle, alpha=0.1, delta=[1.0, 1.0])
        called()
        raise KeyError
    assert all(any(v is each for v in seen) for each in (a, b, c))
    count = len(seen)
    a.assign(b)
    assert len(seen) == count


def test_draws_from_hidden_state_are_noticed():
    seen = []
    with _private_api.hidden_draws(lambda: seen.append(True)):
        tf.random.stateless_normal([2], [1, 2])
        tf.random.Generator.from_seed(1).normal([2])
        keras.random.normal([2])
        assert not seen
        tf.random.normal([2])
    tf.random.normal([2])
    assert seen == [True]


def test_without_these_names_nothing_is_noticed_and_nothing_fails(monkeypatch):
    monkeypatch.setattr(_private_api.of_variables, "missing", lambda names: ["something"])
    with _private_api.uses_of_variables(pytest.fail), _private_api.hidden_draws(pytest.fail):
        tf.Variable(tf.random.normal([])).assign_add(1.0)
