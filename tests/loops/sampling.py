"""Which of many cases every run of the suite tries, and which only `pytest -m matrix` does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sample(cases: Iterable[str], *always: str, values: bool = False) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: `always` in every run, the others of `cases` in the matrix.

    Args:
        cases: names of cases, or a dict from names to cases.
        *always: the names that stand for all.
        values: give a test the case instead of its name.
    """
    assert set(always) <= set(cases), f"no such cases: {set(always) - set(cases)}"
    given = dict(cases) if values else {name: name for name in cases}
    return [pytest.param(case, id=name, marks=[] if name in always else [pytest.mark.matrix]) for name, case in given.items()]
