"""The battery passes layers that are right, and names what is broken in those that are not: the mutations of reference.py."""

from __future__ import annotations

import functools

import keras
import pytest

from layers.testing import PROPERTIES, BrokenLayer, check_layer
from tests.layers.graph_fit import graph_fit
from tests.layers.reference import (
    INPUTS,
    MUTATIONS,
    NOISY,
    REFERENCE,
    MovesAtInference,
    NeedsTheBatchSize,
    Noisy,
    Reference,
    factory_of,
    settings_of,
)


@pytest.mark.parametrize("kind, settings", [(Reference, REFERENCE), (Noisy, NOISY)], ids=["Reference", "Noisy"])
def test_a_right_layer_passes(kind, settings, two_replicas):
    results = check_layer(factory_of(kind), **settings, strategy=two_replicas, fit=graph_fit)
    assert {*results} == {*PROPERTIES}
    if kind is Reference:
        applies = [name for name, result in results.items() if result == "passed"]
        assert {*PROPERTIES} - {*applies} == {"replica_noise"}


@pytest.mark.parametrize("kind, broken", MUTATIONS, ids=[f"{kind.__name__}-{name}" for kind, name in MUTATIONS])
def test_a_broken_layer_is_caught_and_the_property_named(kind, broken, two_replicas):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory_of(kind), **settings_of(kind), strategy=two_replicas, only=[broken])
    assert [*caught.value.broken] == [broken]
    assert f"{kind.__name__} breaks 1 of" in str(caught.value)
    assert len(caught.value.broken[broken]) > 15


def test_every_property_has_a_mutation_that_it_has_to_name():
    assert {*PROPERTIES} == {name for _, name in MUTATIONS}


@pytest.mark.parametrize(
    "kind, broken", [(MovesAtInference, {"inference"}), (NeedsTheBatchSize, {"empty_batch", "unknown_dimensions"})], ids=["moves", "fails"]
)
def test_properties_are_independent_of_each_other(kind, broken):
    """Though they share a layer: what moves it when it should not, or fails in the middle of a call, leaves nothing behind for the rest."""
    only = [name for name in PROPERTIES if name not in ("training", "export", "xla")]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory_of(kind), **REFERENCE, only=only)
    assert {*caught.value.broken} == broken


def test_layers_of_keras_can_be_checked_too():
    results = check_layer(
        functools.partial(keras.layers.Dense, units=3),
        INPUTS[:, 0],
        oracle=lambda layer, x: x @ layer.kernel.numpy() + layer.bias.numpy(),
        only=["oracle", "gradient", "xla", "keras_file", "checkpoint", "extremes"],
    )
    assert {*results.values()} == {"passed"}


def test_a_skip_needs_a_reason_and_a_property():
    with pytest.raises(ValueError, match="Say why masking may be skipped"):
        check_layer(Reference, **REFERENCE, skip={"masking": ""})
    with pytest.raises(ValueError, match="No such property: speed; there are constructor, config"):
        check_layer(Reference, **REFERENCE, skip={"speed": "slow"})
    with pytest.raises(ValueError, match="No such property: speed"):
        check_layer(Reference, **REFERENCE, only=["speed"])
    results = check_layer(Reference, **REFERENCE, skip={"oracle": "no reason"}, only=["oracle", "inference"])
    assert results == {"oracle": "skipped: no reason", "inference": "passed"}


def test_what_a_layer_adds_has_to_be_predicted():
    without = {k: v for k, v in REFERENCE.items() if k not in ("loss_oracle", "metric_oracle")}
    with pytest.raises(BrokenLayer) as caught:
        check_layer(Reference, **without, only=["loss_oracle", "metric_values"])
    assert caught.value.broken == {
        "loss_oracle": "the layer adds losses: give a loss_oracle",
        "metric_values": "the layer reports metrics: give a metric_oracle",
    }


def test_an_error_in_a_layer_is_a_broken_property_not_the_end():
    class Fails(Reference):
        def output_of(self, centered):
            raise RuntimeError("no output today")

    with pytest.raises(BrokenLayer) as caught:
        check_layer(Fails, **REFERENCE, only=["oracle", "constructor"])
    assert "no output today" in caught.value.broken["oracle"]
