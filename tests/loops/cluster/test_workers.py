"""Two workers do what two replicas of one process do, up to float tolerance, and the same as each other bit for bit; also when killed.

All of it is one module: `pytest -n 2 --dist loadscope` then starts one pair of workers.
"""

import signal

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


ALIKE = ["own_task", "embedding", "centers", "nonfinite_skip", "nonfinite_rollback", "nonfinite_raise", "fit"]
ALIKE += ["stop_on_one", "interrupt_one", "logs_of_the_chief", "watched_on_the_chief"]
ALIKE += ["eager", "xla", "changing", "schedule_of_feeds", "cut_epochs", "ragged_strings", "array_metric", "best_weights", "data_service"]


@pytest.mark.parametrize("name", sample(ALIKE, "own_task", "nonfinite_rollback", "fit", "interrupt_one"))
def test_two_workers_do_what_two_replicas_do(pair, two_replicas, tmp_path, name):
    pair.ask(name)
    expected = scenarios.play(name, two_replicas, tmp_path)
    chief, other = pair.results(name)
    assert_same(chief, other)
    for worker, found in enumerate((chief, other)):
        assert_close(expected, found, 2e-5, worker=worker)


def test_a_step_has_one_collective_for_gradients_and_one_for_its_row(pair):
    for counts in pair.results("collectives"):
        assert counts == {"train": {"CollectiveReduceV2": 2}, "eval": {"CollectiveReduceV2": 1}, "predict": {"CollectiveReduceV2": 1}}


def test_callbacks_write_on_the_chief_only(pair):
    chief, other = pair.results("callbacks_that_write")
    assert_same(chief["history"], other["history"])
    assert chief["files"] == ["1.keras", "2.keras", "best.weights.h5", "board", "log.csv"]
    assert other["files"] == []


def test_hooks_that_count_seconds_look_at_the_same_steps_by_the_clock_of_the_chief(pair):
    chief, other = pair.results("by_time")
    assert len(chief["looks"]) > 1
    assert_same(chief, other)


def test_what_one_worker_changes_alone_is_found(pair):
    chief, other = pair.results("changes_of_one")
    assert chief == other
    for name, word in {"rate": "learning_rate.optimizer is 0.0099", "feed": "feeds_assigned is 1", "weights": "sum of "}.items():
        assert chief[name].startswith("MismatchError: The workers do not ") and word in chief[name], chief[name]


def test_workers_that_do_not_run_the_same_are_told_the_difference(pair):
    chief, other = pair.results("mismatches")
    assert chief == other
    words = {
        "batch_size": "batch_size is 32 on worker 0 and 31 on worker 1",
        "data": "fingerprint",
        "dataset": "fingerprint",
        "seed": "seed is 0 on worker 0 and 1 on worker 1",
        "clip": "clip is ",
        "compile": '"graph" on worker 0 and "eager" on worker 1',
        "hooks": "LambdaHook",
        "epochs": "epochs is 1 on worker 0 and 2 on worker 1",
        "workdir": "workdir is false on worker 0 and true on worker 1",
    }
    for name, word in words.items():
        assert chief[name].startswith("MismatchError: The workers do not run the same thing") and word in chief[name], chief[name]


def test_data_that_ends_on_one_worker_is_refused_on_all(pair):
    chief, other = pair.results("uneven_data")
    assert chief == other
    assert "The data of worker 1 has ended" in chief["said"]


@pytest.mark.matrix
def test_an_error_on_one_worker_ends_all_with_its_reason(pair):
    chief, other = pair.results("raises_alone")
    assert other["said"] == "KeyError: 'lost my keys'"
    assert "Another worker has failed, so this one ends too: worker 1: KeyError: 'lost my keys'" in chief["said"]


@pytest.mark.matrix
def test_a_hook_of_the_chief_that_evaluates_is_told_so_and_nobody_hangs(pair):
    chief, other = pair.results("evaluates_alone")
    assert "OfChief acts on the chief only" in chief["said"]
    assert "Another worker has failed, so this one ends too: worker 0: RuntimeError: OfChief acts on the chief only" in other["said"]


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
    if who == "01":  # one may be gone before the other has killed itself
        assert -KILL in codes and set(codes) <= {-KILL, 75}
    else:
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
