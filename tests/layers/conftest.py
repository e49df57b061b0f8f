"""What all tests of layers share: weights that are the same in every run."""

from __future__ import annotations

import keras
import pytest

from tests.layers.graph_fit import graph_fit

#: Two compiled trainings and a SavedModel take as long as half of the other properties, and depend least on the layer.
SAMPLED = ["training", "export"]
REPLICAS = ["replica_losses", "replica_state"]


@pytest.fixture(autouse=True)
def _same_weights_in_every_run():
    keras.utils.set_random_seed(0)


@pytest.fixture(params=["most", pytest.param("rest", marks=pytest.mark.matrix)])
def battery(request, two_replicas):
    """Arguments of `check_layer` for layers of which `SAMPLED` is left to `pytest -m matrix`.

    Without it `SAMPLED` is checked of a sample: layers that move state, draw noise, wrap or contain others, or loop.
    """
    return _arguments(request.param, SAMPLED, two_replicas)


@pytest.fixture(params=["most", pytest.param("rest", marks=pytest.mark.matrix)])
def battery_of_a_function(request, two_replicas):
    """The same for layers that have no state, noise, losses or metrics: what one replica does is what one device does."""
    return _arguments(request.param, [*SAMPLED, *REPLICAS], two_replicas)


def _arguments(part, left, two_replicas):
    more = {"only": left, "fit": graph_fit} if part == "rest" else {"skip": dict.fromkeys(left, "checked by pytest -m matrix")}
    return {"strategy": two_replicas, **more}
