"""A config names its study; what cannot be built is refused before anything is trained."""

from __future__ import annotations

import types

import pytest

from research import study
from research.study import InputError, Study


@pytest.mark.parametrize("name", ["no_such_study", "../classification", "plots"])
def test_a_study_that_does_not_exist_is_refused(name):
    with pytest.raises(InputError, match="config.study is"):
        study.build(types.SimpleNamespace(study=name))


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 1)])
def test_the_best_epoch_is_that_of_the_monitored_value_and_never_a_nan(mode, best):
    made = Study(None, None, None, {}, None, "val_x", mode, (), "", "")
    assert made.best_epoch({"val_x": [float("nan"), 3.0, 1.0, 2.0]}) == best
    assert made.best_epoch({"loss": [1.0]}) is None
    assert made.best_epoch({"val_x": [float("nan")]}) is None
