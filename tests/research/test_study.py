"""A config names its study; what cannot be built is refused before anything is trained."""

from __future__ import annotations

import types

import pytest

from research import study
from research.study import InputError


@pytest.mark.parametrize("name", ["no_such_study", "../classification", "plots"])
def test_a_study_that_does_not_exist_is_refused(name):
    with pytest.raises(InputError, match="config.study is"):
        study.build(types.SimpleNamespace(study=name))
