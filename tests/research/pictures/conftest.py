"""Pictures are drawn as users get them."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def sketches():
    """Takes the place of the one that draws them small."""
