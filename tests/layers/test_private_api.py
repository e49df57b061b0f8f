"""What is not public in TensorFlow and Keras is there; when a release takes a name away, `import layers` says which."""

from __future__ import annotations

import configparser
import importlib
import pathlib
import re
import sys

import keras
import pytest
import tensorflow as tf

from layers import _private_api
from layers._private_api import NEEDED

NAMES = [(home, name) for home, names in NEEDED.items() for name in names]


def test_the_installed_releases_have_every_name():
    assert _private_api.missing() == []


def take_away(home, name, monkeypatch):
    """As if a release no longer had the name, or had no method that uses an attribute of this name."""
    owner = _private_api._resolved(home)
    if not isinstance(owner, type):
        monkeypatch.delattr(owner, name)
        return
    for kind in owner.__mro__:
        for key, value in list(vars(kind).items()):
            if key == name:
                monkeypatch.delattr(kind, key)
            elif name in _private_api._names_in(value):
                monkeypatch.setattr(kind, key, lambda self: None)


@pytest.mark.parametrize("home, name", NAMES, ids=[".".join(pair) for pair in NAMES])
def test_a_name_that_a_release_takes_away_is_named(home, name, monkeypatch):
    take_away(home, name, monkeypatch)
    assert _private_api.missing() == [f"{home}.{name}"]


def test_importing_layers_then_fails_with_a_sentence_that_says_what_is_supported(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "layers"]:
        monkeypatch.delitem(sys.modules, name)
    take_away("keras.src.utils.tracking.Tracker", "lock", monkeypatch)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("layers")
    assert str(caught.value) == (
        f"layers does not work with TensorFlow {tf.__version__} and Keras {keras.__version__}, which lack "
        "keras.src.utils.tracking.Tracker.lock; it supports TensorFlow 2.21 and Keras 3.15."
    )


def test_the_supported_releases_are_those_of_the_installation():
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[2] / "setup.cfg")
    wanted = dict(re.findall(r"^(\w+)>=([\d.]+)$", setup["options"]["install_requires"], re.MULTILINE))
    assert [wanted["tensorflow"], wanted["keras"]] == [*_private_api.SUPPORTED.values()]
