"""Random tasks give the same numbers by hand, in eager mode, in a graph, under XLA, on two replicas, and after a kill and a restart.

Every run tries a few; `pytest -m matrix tests/loops/sweep` tries new ones for ten minutes.
"""

from __future__ import annotations

import time

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import loops
from tests.loops.sampling import sample
from tests.loops.sweep import random_tasks as tasks
from tests.loops.sweep.random_tasks import Plan

EPOCHS = 2
MINUTES = 10

PLANS = st.builds(
    Plan,
    holder=st.sampled_from(tasks.HOLDERS),
    optimizer=st.sampled_from(sorted(tasks.OPTIMIZERS)),
    loss=st.sampled_from(sorted(tasks.LOSSES)),
    given=st.sampled_from(tasks.GIVEN),
    target=st.sampled_from(["[B]", "[B, 1]"]),
    weights=st.sampled_from(["none", "[B]", "[B, 1]"]),
    control=st.sampled_from(tasks.CONTROLS),
    noise=st.sampled_from(tasks.NOISES),
    logs=st.permutations(tasks.LOGS).flatmap(lambda names: st.integers(1, len(names)).map(lambda n: tuple(names[:n]))),
    clip=st.sampled_from([None, 0.3]),
    batch_size=st.sampled_from([4, 5, 11]),
    source=st.sampled_from(tasks.SOURCES),
    seed=st.integers(0, 3),
).filter(lambda plan: not (plan.clip and plan.optimizer == "accumulates"))  # by hand each part would be clipped


def trained(plan, compile="graph", strategy=None, workdir=None, pieces=(None,)):
    """History and variables after EPOCHS epochs, in pieces: each a new loop that goes on to so many steps."""
    for steps in pieces:
        with (strategy or tf.distribute.get_strategy()).scope():
            task = tasks.RandomTask(plan)
        loop = loops.TrainLoop(task, tasks.feed(plan), compile=compile, strategy=strategy, workdir=workdir, clip=plan.clip, seed=tasks.SEED)
        history = loop.run(epochs=EPOCHS, steps=steps).history
    return history, [np.asarray(tf.convert_to_tensor(v)) for v in task.variables()]


def assert_close(found, expected, what, **tolerance):
    for name, values in expected[0].items():
        np.testing.assert_allclose(found[0][name], values, err_msg=f"{what}: {name}", **tolerance)
    assert set(found[0]) == set(expected[0]), what
    for i, (a, b) in enumerate(zip(found[1], expected[1], strict=True)):
        np.testing.assert_allclose(a, b, err_msg=f"{what}: variable {i}", **tolerance)


def check(plan, two_replicas, workdir):
    graph = trained(plan)
    close = {"rtol": 2e-4, "atol": 2e-5}
    for mode in ("eager", "xla"):
        assert_close(trained(plan, mode), graph, mode, **close)
    if plan.noise == "none":
        assert_close(trained_by_hand(plan), graph, "by hand", **close)
        if plan.control in ("plain", "apply", "when") and "derived" not in plan.logs:
            found = trained(plan, strategy=two_replicas)
            names = [name for name in plan.logs if name not in ("last", "mean")]  # by their meaning these depend on the parts
            assert_close(({n: found[0][n] for n in names}, found[1]), ({n: graph[0][n] for n in names}, graph[1]), "replicas", **close)
    kill = 1 + plan.seed * 2
    resumed = trained(plan, workdir=workdir, pieces=(kill, kill + 1, None))
    assert_close(resumed, graph, "resumed", rtol=0, atol=0)


def trained_by_hand(plan):
    return tasks.trained_by_hand(plan, EPOCHS)


FIXED = {
    "object": Plan("object", "adam", "hinge", "name", "[B]", "[B, 1]", "loop", "none", ("result", "loss", "mean", "count"), 0.3, 5),
    "deep": Plan(
        "deep", "accumulates", "mse", "called", "[B]", "none", "plain", "both", ("derived", "last", "metric"), None, 4, "tf.data", 1
    ),
    "module": Plan(
        "module", "momentum", "huber", "function", "[B, 1]", "[B]", "when", "none", ("count", "metric", "loss"), None, 11, "generator", 2
    ),
}


@pytest.mark.parametrize("plan", sample(FIXED, "object"))
def test_a_task_has_one_meaning(plan, two_replicas, tmp_path):
    check(FIXED[plan], two_replicas, tmp_path / "run")


@pytest.mark.matrix
@pytest.mark.timeout(60 * MINUTES * 3)
def test_random_tasks_have_one_meaning(two_replicas, tmp_path_factory):
    end, tried = time.monotonic() + 60 * MINUTES, [0]

    @hypothesis.settings(
        max_examples=10_000,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(PLANS)
    def sweep(plan):
        if time.monotonic() < end:
            tried[0] += 1
            hypothesis.note(f"{plan}")
            check(plan, two_replicas, tmp_path_factory.mktemp("sweep") / "run")

    sweep()
    print(f"{tried[0]} random tasks")
