"""What supervised studies share: data with classes or targets, optimizers by name, feeds and scope."""

from __future__ import annotations

import keras

from research import supervised


def test_the_optimizer_is_any_that_keras_knows_by_name():
    optimizer = supervised.make_optimizer({"name": "adam", "learning_rate": 0.25})
    assert isinstance(optimizer, keras.optimizers.Adam) and float(optimizer.learning_rate) == 0.25
