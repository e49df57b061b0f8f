"""What is measured side by side computes the same, and every layer takes part. No speed is asserted."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import pytest

from research import command_line
from research.layer_formulas import FORMULAS
from scripts import benchmark_layers, layers_table

RANDOM = {"GaussianSampling", "DenseVariational", "Dropout", "DropPath", "NoisyDense", "ConcreteDropout", "HardConcreteGate"}


def run(*arguments):
    """Runs the program in this process; returns its exit code, what it printed, and what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line.run(benchmark_layers.main, benchmark_layers.define_flags, ["benchmark_layers.py", *arguments])
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", sorted(set(FORMULAS) - RANDOM))
def test_the_formula_by_hand_has_the_gradients_of_the_layer(name):
    by_layer, by_hand = benchmark_layers.programs(FORMULAS[name], xla=False)
    for i, (ours, theirs) in enumerate(zip(by_layer(), by_hand(), strict=True)):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-3 * scale, err_msg=f"result {i}")


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_formulas_with_noise_have_gradients_of_the_same_size(name):
    by_layer, by_hand = benchmark_layers.programs(FORMULAS[name], xla=False)
    for i, (ours, theirs) in enumerate(zip(by_layer()[:-1], by_hand()[:-1], strict=True)):
        assert np.std(theirs) / 3 <= np.std(ours) <= 3 * np.std(theirs), f"gradient {i}"


def test_every_layer_takes_part():
    assert set(FORMULAS) == set(layers_table.members("layers"))


def test_a_line_is_a_layer_and_its_ratios():
    code, out, err = run("--layers=CrossV2,Maxout", "--modes=graph", "--rounds=2", "--seconds=0")
    assert code == 0, err
    head, *lines = out.splitlines()
    assert head.split() == ["layer", "graph", "from", "to"]
    assert [line.split()[0] for line in lines] == ["CrossV2", "Maxout"]
    for line in lines:
        middle, least, greatest = map(float, re.findall(r"\d+\.\d+", line))
        assert 0 < least <= middle <= greatest


def test_a_layer_or_mode_that_is_not_there_is_refused():
    assert run("--layers=Dense")[::2][0] == 2
    code, _, err = run("--layers=Maxout", "--modes=eager")
    assert code == 2 and "There is no mode 'eager' to measure; there are graph, xla." in err
