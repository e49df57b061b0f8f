"""What the checks of arguments refuse, and that the message names the argument, what was expected and what was given."""

from __future__ import annotations

import math

import pytest

import layers
from layers.arguments import check_choice, check_integers, check_numbers, known_dimension

BOUNDS = [
    ({"at_least": 0}, [0, 0.5, math.inf], [-0.1], "at least 0"),
    ({"above": 0}, [0.1, math.inf], [0, -1], "greater than 0"),
    ({"at_most": 1}, [1, -math.inf], [1.1], "at most 1"),
    ({"below": 1}, [0.9, -math.inf], [1, 2], "less than 1"),
    ({"below": math.inf}, [1e300], [math.inf], "finite"),
]


@pytest.mark.parametrize(("bounds", "allowed", "refused", "words"), BOUNDS, ids=[case[-1] for case in BOUNDS])
def test_a_bound_is_as_its_name_says_and_refuses_nan(bounds, allowed, refused, words):
    for value in allowed:
        check_numbers(**bounds, x=value)
    for value in [*refused, math.nan]:
        with pytest.raises(ValueError, match=rf"^`x` must be {words}; got {value!r}\.$"):
            check_numbers(**bounds, x=value)


def test_both_bounds_hold_for_all_numbers_and_the_first_bad_one_is_named():
    check_numbers(at_least=0, below=1, a=0.0, b=0.5)
    with pytest.raises(ValueError, match=r"^`b` must be at least 0 and less than 1; got 1\.5\.$"):
        check_numbers(at_least=0, below=1, a=0.5, b=1.5, c=-1.0)


def test_none_is_allowed_only_where_it_is_optional():
    check_numbers(above=0, optional=True, x=None)
    check_integers(at_least=1, optional=True, x=None)
    with pytest.raises(ValueError, match=r"^`x` must be greater than 0, or None; got 0\.$"):
        check_numbers(above=0, optional=True, x=0)
    with pytest.raises(ValueError, match=r"^`x` must be an integer of at least 1, or None; got 0\.$"):
        check_integers(at_least=1, optional=True, x=0)
    with pytest.raises(ValueError, match=r"^`x` must be an integer of at least 1; got None\.$"):
        check_integers(at_least=1, x=None)


def test_integers_are_integers_and_large_enough():
    check_integers(at_least=2, x=2, y=3)
    for bad in (1, 2.0, "2"):
        with pytest.raises(ValueError, match=rf"^`y` must be an integer of at least 2; got {bad!r}\.$"):
            check_integers(at_least=2, x=2, y=bad)


def test_a_choice_is_one_of_them():
    check_choice([None, "a", "b"], x=None, y="b")
    with pytest.raises(ValueError, match=r"^`y` must be None, 'a' or 'b'; got \['a'\]\.$"):
        check_choice([None, "a", "b"], x="a", y=["a"])


NEED_A_DIMENSION = {
    "BarlowTwins": (layers.BarlowTwins, {}, 2),
    "CenterLoss": (layers.CenterLoss, {"num_classes": 2}, 1),
    "CrossV2": (layers.CrossV2, {}, 1),
    "DenseVariational": (layers.DenseVariational, {"units": 2, "examples": 10}, 1),
    "GatedResidual": (layers.GatedResidual, {"units": 2}, 1),
    "HardConcreteGate": (layers.HardConcreteGate, {}, 1),
    "MarginSoftmax": (layers.MarginSoftmax, {"num_classes": 2}, 1),
    "MixtureOfExperts": (layers.MixtureOfExperts, {"experts": 2, "units": 2}, 1),
    "NoisyDense": (layers.NoisyDense, {"units": 2}, 1),
    "PeriodicEmbedding": (layers.PeriodicEmbedding, {"frequencies": 2, "sigma": 1.0}, 1),
    "RandomFeatureGP": (layers.RandomFeatureGP, {"units": 2}, 1),
    "TopKRouter": (layers.TopKRouter, {"experts": 2}, 1),
    "VectorQuantizer": (layers.VectorQuantizer, {"codes": 2}, 1),
}


@pytest.mark.parametrize("name", NEED_A_DIMENSION)
def test_a_layer_says_that_it_needs_to_know_the_last_dimension(name):
    kind, arguments, inputs = NEED_A_DIMENSION[name]
    with pytest.raises(
        ValueError, match=rf"^{name} needs to know the last dimension of its inputs; got inputs of shape \(None, 5, None\)\.$"
    ):
        kind(**arguments).build(*[(None, 5, None)] * inputs)


def test_a_known_dimension_is_returned():
    assert known_dimension(layers.NoisyDense(units=2), (None, 7)) == 7
