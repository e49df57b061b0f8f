"""What all tests of layers share: weights that are the same in every run."""

from __future__ import annotations

import keras
import pytest

from tests.layers.graph_fit import graph_fit

#: Two compiled trainings and a SavedModel take as long as half of the other properties, and depend least on the layer.
SAMPLED = ["training", "export"]


@pytest.fixture(autouse=True)
def _same_weights_in_every_run():
    keras.utils.set_random_seed(0)


@pytest.fixture(params=["sample", pytest.param("rest", marks=pytest.mark.matrix)])
def battery(request, two_replicas):
    """Arguments of `check_layer` for layers of which the properties that take longest are checked by `pytest -m matrix` only.

    Without it they are checked of a sample: the layers that move state, wrap or contain others, or loop.
    """
    if request.param == "rest":
        return {"only": SAMPLED, "fit": graph_fit}
    return {"strategy": two_replicas, "skip": dict.fromkeys(SAMPLED, "checked by pytest -m matrix")}
