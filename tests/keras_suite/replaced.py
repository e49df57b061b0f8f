"""Keras's own tests of trainers and callbacks, as the installed package holds them, with `fit`, `evaluate`, `predict` replaced by ours."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pathlib
import re
import sys
import types
import unittest
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import keras

import loops

_ROOT = pathlib.Path(keras.__file__).parent / "src"
_CALLS = re.compile(r"\.(fit|evaluate|predict)\(")
# What test files import at their top for other backends; a test that uses it anyway finds that it is not installed.
_OTHER_BACKENDS = ("jax", "torch")
_KERAS_CONFTEST = types.SimpleNamespace(skip_if_backend=lambda backend, reason: lambda test: test)  # of Keras's repository, not installed

calls: Counter[str] = Counter()


def test_files() -> list[pathlib.Path]:
    """The files under `trainers` and `callbacks` of which a test trains, evaluates or predicts."""
    files = sorted([*(_ROOT / "trainers").rglob("*_test.py"), *(_ROOT / "callbacks").rglob("*_test.py")])
    return [file for file in files if _CALLS.search(file.read_text())]


def test_cases() -> dict[str, type[unittest.TestCase]]:
    """ "<file>_<class>" -> the test case, of all files."""
    cases: dict[str, type[unittest.TestCase]] = {}
    for file in test_files():
        name = ".".join(["keras.src", *file.relative_to(_ROOT).with_suffix("").parts])
        with _what_is_not_installed():
            module = importlib.import_module(name)
        for class_name, case in vars(module).items():
            if isinstance(case, type) and issubclass(case, unittest.TestCase) and case.__module__ == name:
                name_here = f"{file.stem}_{class_name}"
                cases[name_here] = type(name_here, (case,), {"suite_name": name_here, "__module__": __name__})
    return cases


@contextlib.contextmanager
def _what_is_not_installed() -> Iterator[None]:
    absent = {name: types.ModuleType(name) for name in _OTHER_BACKENDS if importlib.util.find_spec(name) is None}
    with mock.patch.dict(sys.modules, {**absent, "conftest": _KERAS_CONFTEST}):
        yield


@contextlib.contextmanager
def replaced() -> Iterator[None]:
    """Within this context `model.fit(...)` is `loops.fit(model, ...)`, and so on. Graph mode, as bits are compared."""

    def fit(model, *args, **kwargs):
        calls["fit"] += 1
        return loops.fit(model, *args, **{"compile": _mode(model), **kwargs})

    def evaluate(model, *args, return_dict=False, verbose="auto", **kwargs):
        calls["evaluate"] += 1
        return loops.evaluate(model, *args, return_dict=return_dict, verbose=verbose, **kwargs)

    def predict(model, *args, verbose="auto", **kwargs):
        calls["predict"] += 1
        return loops.predict(model, *args, verbose=verbose, **kwargs)

    trainer = next(base for base in keras.Model.__mro__ if "fit" in vars(base) and "train_step" in vars(base))
    with mock.patch.multiple(trainer, fit=fit, evaluate=evaluate, predict=predict):
        yield


def _mode(model) -> str:
    return "auto" if model.run_eagerly or model.jit_compile else "graph"
