"""The battery passes layers that are right, and names what is broken in those that are not: the mutations of reference.py."""

from __future__ import annotations

import functools

import keras
import pytest

from layers.testing import PROPERTIES, BrokenLayer
from tests.layers.graph_fit import graph_fit
from tests.layers.house import check_layer
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
from tests.layers.test_battery_catches import BROKEN


@pytest.mark.parametrize("kind, settings", [(Reference, REFERENCE), (Noisy, NOISY)], ids=["Reference", "Noisy"])
def test_a_right_layer_passes(kind, settings, two_replicas):
    results = check_layer(factory_of(kind), **settings, strategy=two_replicas, fit=graph_fit)
    assert {*results} == {*PROPERTIES}
    if kind is Reference:
        applies = [name for name, result in results.items() if result == "passed"]
        assert {*PROPERTIES} - {*applies} == {"replica_noise"}


@pytest.mark.parametrize("kind", MUTATIONS, ids=lambda kind: kind.__name__)
def test_a_broken_layer_is_caught_and_the_properties_named(kind, two_replicas):
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory_of(kind), **settings_of(kind), strategy=two_replicas, only=MUTATIONS[kind])
    assert {*caught.value.broken} == {*MUTATIONS[kind]}
    assert f"{kind.__name__} breaks {len(MUTATIONS[kind])} of" in str(caught.value)
    assert all(len(found) > 15 for found in caught.value.broken.values())


def test_every_property_has_a_mutation_that_it_has_to_name():
    named = {name for names in MUTATIONS.values() for name in names} | {name for name, _ in BROKEN.values()}
    assert {*PROPERTIES} == named


def test_properties_are_independent_of_each_other():
    """Though they share a layer: one that moves when it should not leaves nothing behind for the rest."""
    with pytest.raises(BrokenLayer) as caught:
        check_layer(
            factory_of(MovesAtInference), **REFERENCE, only=[name for name in PROPERTIES if name not in ("training", "export", "xla")]
        )
    assert [*caught.value.broken] == ["inference"]


def test_a_call_that_fails_halfway_leaves_nothing_behind_either():
    only = ["function", "unknown_dimensions", "coefficients", "masking", "seeds", "empty_batch", "single_example"]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(factory_of(NeedsTheBatchSize), **REFERENCE, only=only)
    assert [*caught.value.broken] == ["unknown_dimensions", "empty_batch"]


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
