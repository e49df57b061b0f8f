"""Contenders do the steps that they count, with all hooks on where they say so."""

from __future__ import annotations

import numpy as np
import pytest

from research.benchmarks.by_hand import EagerTape, WhileLoop
from research.benchmarks.first_step import timed_fits
from research.benchmarks.keras_fit import Fit
from research.benchmarks.limit import Products
from research.benchmarks.ours import Ours
from research.benchmarks.registry import CONTENDERS
from research.benchmarks.workloads import WORKLOADS

MAKERS = {
    "fit": Fit,
    "eager": EagerTape,
    "while": lambda: WhileLoop(jit_compile=False),
    "loops": lambda: Ours("graph"),
    "loops_hooks": lambda: Ours("graph", hooks=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_contender_does_the_steps_that_it_counts(name, tmp_path):
    workload = WORKLOADS["wide_deep"].resized(rows=160)
    contender = MAKERS[name]()
    contender.setup(workload, tmp_path)
    iterations = contender._model.optimizer.iterations
    before = int(iterations.numpy())
    timed = contender.run(3)
    assert timed.steps == int(iterations.numpy()) - before == 15
    assert timed.seconds > 0


@pytest.mark.parametrize("name", ["fit", "loops"])
def test_a_pipeline_gives_the_same_steps_and_there_are_rates_of_inference(name, tmp_path):
    contender, workload = MAKERS[name](), WORKLOADS["wide_deep"].resized(rows=160, source="tf.data")
    contender.setup(workload, tmp_path)
    iterations = contender._model.optimizer.iterations
    before = int(iterations.numpy())
    assert contender.run(2).steps == int(iterations.numpy()) - before == 10
    contender.evaluate(*workload.data())
    contender.predict(workload.data()[0])
    assert int(iterations.numpy()) == before + 10


def test_auto_has_the_mode_of_a_long_run_and_goes_on_in_it(tmp_path):
    contender = Ours("auto")
    contender.setup(WORKLOADS["wide_deep"].resized(rows=64), tmp_path)
    assert contender.mode == "xla"
    assert contender.run(2).steps == 4 and len(contender._loop.history.epoch) == 3


@pytest.mark.parametrize("name", ["fit", "loops"])
def test_the_time_to_the_first_step_is_that_of_a_new_model_and_then_of_the_same(name):
    fits = timed_fits(MAKERS[name](), WORKLOADS["wide_deep"])
    assert len(fits) == 2 and all(0 < step < whole for step, whole in fits)


def test_the_pipeline_normalizes_each_example():
    workload = WORKLOADS["wide_deep"].resized(rows=64, source="tf.data")
    x = np.concatenate([batch.numpy() for batch, _ in workload.dataset()])
    np.testing.assert_allclose(np.sort(x[:, 0]), np.sort((workload.data()[0][:, 0] - 0.1) * 1.1), rtol=1e-6)


def test_every_contender_names_a_class():
    for entry in CONTENDERS.values():
        module, _, name = entry.make.partition(":")
        assert module.startswith("research.benchmarks.") and name[0].isupper()


def test_hooks_on_means_that_all_of_it_is_written(tmp_path):
    contender = MAKERS["loops_hooks"]()
    contender.setup(WORKLOADS["wide_deep"].resized(rows=160), tmp_path)
    contender.run(2)
    assert (tmp_path / "best.weights.h5").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) > 1
    assert list(tmp_path.rglob("*tfevents*"))


def test_the_limit_does_all_products_of_a_step_and_no_other(tmp_path, monkeypatch):
    flops = []
    product = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: (flops.append(a.shape[0] * a.shape[1] * b.shape[1]), product(a, b, out=out)))
    contender = Products()
    contender.setup(WORKLOADS["mlp_sgd"].resized(rows=32), tmp_path)
    flops.clear()
    assert contender.run(1).steps == 1
    forward = [784 * 300, 300 * 100, 100 * 10]
    assert sum(flops) == 32 * (3 * sum(forward) - forward[0])
