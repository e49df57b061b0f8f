"""What all tests of layers share: weights that are the same in every run."""

from __future__ import annotations

import keras
import pytest


@pytest.fixture(autouse=True)
def _same_weights_in_every_run():
    keras.utils.set_random_seed(0)
