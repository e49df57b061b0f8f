"""Two workers train as two replicas of one process, up to float tolerance, and each other's numbers are equal bit for bit."""

import pytest

from tests.loops.cluster import scenarios
from tests.loops.cluster.comparing import assert_close, assert_same
from tests.loops.sampling import sample

CASES = [f"{feed}-{technique}" for feed in scenarios.FEEDS for technique in scenarios.TECHNIQUES]
SAMPLE = ["arrays-mixed", "generator-accumulation"]


@pytest.mark.parametrize("case", sample(CASES, *SAMPLE))
def test_two_workers_train_as_two_replicas(pair, two_replicas, tmp_path, case):
    pair.ask(case)
    expected = scenarios.play(case, two_replicas, tmp_path)
    chief, other = pair.results(case)
    assert_same(chief, other)
    # Sums over workers and over replicas are divided in another order. Half precision rounds a thousand times coarser.
    for worker, found in enumerate((chief, other)):
        assert_close(expected, found, 2e-3 if "mixed" in case else 1e-5, worker=worker)
