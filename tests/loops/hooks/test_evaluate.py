"""Evaluate runs at any cadence, for any number of named sets."""

from __future__ import annotations

import pytest

from loops.hooks import Evaluate, Phase
from tests.loops.hooks.fake_loop import FakeLoop


def test_several_sets_are_evaluated_each_at_its_own_cadence():
    hooks = [
        Evaluate(1.0, "val", every="2 steps"),
        Evaluate(2.0, "test", steps=7),
        Evaluate(3.0, "far", every="2 epochs"),
        Evaluate(4.0, "slow", every="5 seconds"),
    ]
    loop = FakeLoop(hooks, steps=3)
    history = loop.run([{"loss": 0.0}] * 2)
    assert loop.evaluated == [
        (2, "val", None),
        (3, "test", 7),
        (4, "val", None),
        (5, "slow", None),
        (6, "val", None),
        (6, "test", 7),
        (6, "far", None),
    ]
    assert history.history == {"loss": [0.0, 0.0], "val_loss": [1.0, 1.0], "test_loss": [2.0, 2.0], "slow_loss": [4.0], "far_loss": [3.0]}


def test_evaluation_comes_before_decisions():
    assert Evaluate(1.0).phase == Phase.EVALUATE == min(Phase)


@pytest.mark.parametrize("name", ["", "a/b", None, 3])
def test_a_name_that_is_no_prefix_is_refused(name):
    with pytest.raises(ValueError, match="becomes the prefix of its logs"):
        Evaluate(1.0, name)


def test_a_cadence_that_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="'often'"):
        Evaluate(1.0, every="often")


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    with pytest.raises(ValueError, match="whole number of batches"):
        Evaluate(1.0, steps=steps)
