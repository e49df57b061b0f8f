"""A worker is killed, the others end with a code that says "start me again", and then the bits are those of the undisturbed run."""

import signal

import pytest

from tests.loops.cluster import scenarios
from tests.loops.cluster.comparing import assert_same
from tests.loops.sampling import sample

KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)


def cases():
    """Every feed and technique, and every way to die, each more than once."""
    ways = [("1", "6"), ("0", "7"), ("01", "5"), ("1", "0.15"), ("0", "0.3"), ("01", "0.6"), ("1", "0.9")]
    pairs = [f"{feed}-{technique}" for feed in scenarios.FEEDS for technique in scenarios.TECHNIQUES]
    chosen = [(pairs[i % len(pairs)], *ways[i % len(ways)]) for i in range(50)]
    return ["/".join(one) for one in [("arrays-norm", "1", "6"), *chosen]]


@pytest.mark.parametrize("case", sample(dict.fromkeys(cases()), "arrays-norm/1/6"))
def test_killed_and_started_again_a_run_ends_with_the_bits_of_the_undisturbed_one(pair, case):
    name, who, _ = case.split("/")
    undisturbed = pair.results(f"undisturbed/{name}")
    alive = [worker for worker in range(2) if str(worker) not in who]
    for result in pair.results(f"killed/{case}/{KILL}", of=alive):
        assert (result.get("error"), result.get("code")) == ("WorkerLost", 75), result
    codes = pair.exit_codes()
    assert codes == [-KILL if str(worker) in who else 75 for worker in range(2)]
    resumed = pair.results(f"resumed/{case}/{KILL}")
    assert "Resuming the run" in pair.output(0)
    for one, again in zip(undisturbed, resumed, strict=True):
        assert_same(one | {"own": []}, again | {"own": []})
        for values, values_again in zip(one["own"], again["own"], strict=True):
            assert_same(values, values_again)


@pytest.mark.parametrize("who", sample({"0": 0, "1": 1}, "1"))
def test_sigterm_to_one_worker_saves_and_ends_all_with_75(pair, who):
    name = "dataset-norm" if who == "0" else "arrays-norm"
    undisturbed = pair.results(f"undisturbed/{name}")
    for result in pair.results(f"killed/{name}/{who}/5/{TERM}"):
        assert (result.get("error"), result.get("code")) == ("Preempted", 75), result
    for one, again in zip(undisturbed, pair.results(f"resumed/{name}/{who}/5/{TERM}"), strict=True):
        assert_same(one, again)
        assert_same(one["own"], again["own"])
