"""What is measured side by side computes the same, and every layer takes part. No speed is asserted."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from research.benchmarks.layer_formulas import FORMULAS
from scripts import benchmark_layers, layers_table
from tests.scripts.programs import run

RANDOM = {"GaussianSampling", "DenseVariational", "Dropout", "DropPath", "NoisyDense", "ConcreteDropout", "HardConcreteGate"}


@pytest.fixture
def eagerly(monkeypatch):
    """Programs run as they are written, two steps long: their traces would take most of the time, and compute the same."""
    monkeypatch.setattr(benchmark_layers, "STEPS", 2)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("name", sorted(set(FORMULAS) - RANDOM))
def test_the_formula_by_hand_has_the_gradients_of_the_layer(name, eagerly):
    by_layer, by_hand = benchmark_layers.programs(FORMULAS[name], xla=False)
    for i, (ours, theirs) in enumerate(zip(by_layer(), by_hand(), strict=True)):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-3 * scale, err_msg=f"result {i}")


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_formulas_with_noise_have_gradients_of_the_same_size(name, eagerly):
    by_layer, by_hand = benchmark_layers.programs(FORMULAS[name], xla=False)
    for i, (ours, theirs) in enumerate(zip(by_layer()[:-1], by_hand()[:-1], strict=True)):
        assert np.std(theirs) / 3 <= np.std(ours) <= 3 * np.std(theirs), f"gradient {i}"


def test_every_layer_takes_part():
    assert set(FORMULAS) == set(layers_table.members("layers"))


def test_a_line_is_a_layer_and_its_ratios():
    code, out, err = run(benchmark_layers, "--layers=CrossV2,Maxout", "--modes=graph", "--rounds=2", "--seconds=0")
    assert code == 0, err
    head, *lines = out.splitlines()
    assert head.split() == ["layer", "graph", "from", "to"]
    assert [line.split()[0] for line in lines] == ["CrossV2", "Maxout"]
    for line in lines:
        middle, least, greatest = map(float, re.findall(r"\d+\.\d+", line))
        assert 0 < least <= middle <= greatest


def test_a_layer_or_mode_that_is_not_there_is_refused():
    assert run(benchmark_layers, "--layers=Dense")[::2][0] == 2
    code, _, err = run(benchmark_layers, "--layers=Maxout", "--modes=eager")
    assert code == 2 and "There is no mode 'eager' to measure; there are graph, xla." in err
