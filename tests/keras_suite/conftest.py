"""Replaces `fit`, `evaluate` and `predict` in Keras's tests, and marks those that are expected to differ."""

import pytest
from tests.keras_suite import expected, replaced


@pytest.fixture(autouse=True)
def _replaced(request):
    with replaced.replaced():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that needs a package that is not installed is skipped; Keras's own run would fail there."""
    try:
        return (yield)
    except ImportError as error:
        pytest.skip(f"needs a package: {error}")


def pytest_collection_modifyitems(items):
    for item in items:
        name = item.nodeid.split("::", 1)[-1].replace("::", ".")
        if (reason := expected.EXPECTED.get(name)) is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_configure(config):
    for mark in ("requires_trainable_backend", "multi_device"):
        config.addinivalue_line("markers", f"{mark}: a mark of Keras's tests, for other backends")
