"""Replaces `fit`, `evaluate` and `predict` in Keras's tests, and marks those that are expected to differ."""

import importlib.util
import pathlib

import pytest
from tests.keras_suite import expected, replaced

HERE = pathlib.Path(__file__).parent
# Part of a test's name -> the package that it imports, without which it fails under Keras too.
NEEDS = {"orbax_checkpoint_test": "orbax", "_jax_": "jax", "torch_dataloader": "torch", "grain_": "grain"}


@pytest.fixture(autouse=True)
def _replaced(request):
    with replaced.replaced():
        yield


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent != HERE or "::" not in item.nodeid:
            continue
        name = item.nodeid.split("::", 1)[1].replace("::", ".")
        if (reason := expected.EXPECTED.get(name)) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        for package in (package for part, package in NEEDS.items() if part in name):
            item.add_marker(pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed"))


def pytest_configure(config):
    for mark in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{mark}: a mark of Keras's tests, for other backends")
