"""Replaces `fit`, `evaluate` and `predict` in Keras's tests, and marks those that are expected to differ or need a package."""

import importlib.util
import pathlib

import pytest
from absl import logging

from tests.keras_suite import replaced
from tests.keras_suite.expected import EXPECTED, NEEDS, SAMPLE

HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _replaced(request):
    logging.set_verbosity(logging.WARNING)  # some of the tests read what is logged, and a program that ran before may have turned it down
    with replaced.replaced():
        yield


def pytest_configure(config):
    for mark in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{mark}: a mark of Keras's tests, for other backends")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent != HERE or item.cls is None:
            continue
        name = f"{item.cls.suite_name}.{item.name}"
        if (reason := EXPECTED.get(name)) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        if name not in SAMPLE:
            item.add_marker(pytest.mark.matrix)
        for package in (package for part, package in NEEDS.items() if part in name):
            item.add_marker(pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed"))
