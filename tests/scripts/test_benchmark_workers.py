"""`scripts/benchmark_workers.py`: all contenders do as many steps. What several workers cost is measured, not tested."""

from __future__ import annotations

import pytest
import tensorflow as tf

from research.benchmarks import workers
from scripts import benchmark_workers
from tests.scripts.programs import run


def test_one_process_alone_is_refused_with_a_sentence(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    code, _, said = run(benchmark_workers)
    assert code == 2 and "scripts/launch.py --workers=2 scripts/benchmark_workers.py" in said


def test_contenders_take_turns(tmp_path):
    order = []
    made = {name: lambda n, name=name: order.append((name, n)) for name in "abc"}
    rates = workers.rates(made, rounds=3, steps=7)
    assert order == [(name, 7) for name in "abcbcacab"]
    assert {name: len(found) for name, found in rates.items()} == {"a": 3, "b": 3, "c": 3}


def test_by_hand_and_loops_train_the_same(monkeypatch):
    monkeypatch.setattr(workers, "_STEPS", 3)
    model = workers.Model(tf.distribute.get_strategy(), [4], batch=8)
    kept = []
    make = workers.Model.make
    monkeypatch.setattr(workers.Model, "make", lambda self: kept.append(make(self)) or kept[-1])
    workers.by_hand(model)(6)
    workers.ours(model).run(steps=6)
    for by_hand, ours in zip(*(net.get_weights() for net, _ in kept), strict=True):
        assert by_hand == pytest.approx(ours, abs=1e-6)
