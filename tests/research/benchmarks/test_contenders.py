"""Contenders do the steps that they count, with all hooks on where they say so."""

from __future__ import annotations

import numpy as np
import pytest

from research.benchmarks.contenders import CONTENDERS
from research.benchmarks.limit import Products
from research.benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("name", ["fit", "eager", "while", "loops", "loops_hooks"])
def test_a_contender_does_the_steps_that_it_counts(name, tmp_path):
    workload = WORKLOADS["wide_deep"].resized(rows=160)
    contender = CONTENDERS[name]()
    contender.setup(workload, tmp_path)
    model = contender._loop.task.model if hasattr(contender, "_loop") else contender._model
    before = int(model.optimizer.iterations.numpy())
    timed = contender.run(3)
    assert timed.steps == int(model.optimizer.iterations.numpy()) - before == 15
    assert timed.seconds > 0


def test_hooks_on_means_that_all_of_it_is_written(tmp_path):
    contender = CONTENDERS["loops_hooks"]()
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
