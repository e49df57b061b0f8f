"""The pair of worker processes that all tests of this folder share."""

import pytest

from tests.loops.cluster.processes import Pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two workers; a scenario that was asked for is played while the test computes what it expects."""
    pair = Pair(tmp_path_factory.mktemp("workers"))
    yield pair
    pair.close()
