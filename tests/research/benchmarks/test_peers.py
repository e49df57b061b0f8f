"""Peers train the workload's network. Those of PyTorch cannot be tested here: it must not be in one process with TensorFlow."""

from __future__ import annotations

import keras
import pytest

from research.benchmarks.workloads import WORKLOADS

pytest.importorskip("optax", reason="needs jax and optax, which no extra brings")


@pytest.mark.parametrize("name", ["mlp_sgd", "conv", "wide_deep", "lstm", "transformer", "resnet20"])  # the others draw random numbers
def test_jax_begins_with_the_loss_of_keras(name, tmp_path, monkeypatch):
    import jax
    import jax.numpy as jnp

    from research.benchmarks.jax_peer import Jax

    monkeypatch.setattr(Jax, "run", lambda self, epochs: None)
    workload = WORKLOADS[name].resized(rows=32)
    contender, model = Jax(scan=False), workload.model()
    contender.setup(workload, tmp_path)
    order, key = contender._order(jax.random.key(0))
    _, logs = contender._one(contender._state, contender._x, contender._y, order, key, 0, jnp.zeros(2))
    x, y = workload.data()
    assert float(logs[0]) == pytest.approx(float(keras.ops.mean(keras.losses.get(workload.loss)(y, model(x, training=True)))), rel=1e-5)
