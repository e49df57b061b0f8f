"""Breaks a layer on purpose, to see that its tests would notice: its module's source with one place changed."""

from __future__ import annotations

import inspect
import sys

import keras
import pytest

from layers.testing import BrokenLayer
from tests.layers.house import check_layer


def mutant(kind, old, new):
    """The class as it would be with `old`, which stands once in its module, replaced by `new`."""
    module = sys.modules[kind.__module__]
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__file__}"
    namespace = {"__name__": module.__name__}
    registered = dict(keras.saving.get_custom_objects())
    try:
        exec(compile(source.replace(old, new), module.__file__, "exec"), namespace)
    finally:  # names in files go on meaning the right class
        keras.saving.get_custom_objects().clear()
        keras.saving.get_custom_objects().update(registered)
    return namespace[kind.__name__]


def check_caught(found_by, factory, inputs, **settings):
    """The battery, asked for one property, finds that the layer breaks it."""
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory, inputs, only=[found_by], **settings)
    assert [*caught.value.broken] == [found_by]
