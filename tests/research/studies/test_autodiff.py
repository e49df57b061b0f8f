"""A classifier that is trained on the slope of its loss too depends less on its inputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ml_collections import config_dict

import loops
from research import runner, study
from research.configs import autodiff as config_file
from research.formulas import closed_forms
from research.studies import autodiff
from research.study import InputError


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


def test_a_training_step_goes_down_the_slope_of_loss_and_penalty_together():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 5)).astype("float32"), random.integers(0, 3, 8).astype("int32")
    model = autodiff.make_model((5,), 3, hidden=(), activation="elu")
    before = model.layers[-1].kernel.numpy().astype("float64")
    task = autodiff.PenalizedTask(model, keras.optimizers.SGD(1.0), penalty=0.5, shift=0.1)
    loops.TrainLoop(task, loops.ArrayFeed((x, y), batch_size=8)).run(steps=1)

    def total(kernel):
        z = x.astype("float64") @ kernel
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        slopes = (p - np.eye(3)[y]) @ kernel.T
        return -np.log(p[np.arange(8), y]).mean() + 0.5 * (slopes**2).sum(-1).mean()

    expected = np.zeros_like(before)
    for place in np.ndindex(*before.shape):
        step = np.zeros_like(before)
        step[place] = 1e-5
        expected[place] = (total(before + step) - total(before - step)) / 2e-5
    np.testing.assert_allclose(before - model.layers[-1].kernel.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_with_the_penalty_inputs_may_be_moved_further(tmp_path, monkeypatch):
    monkeypatch.setattr(closed_forms, "checks", list)  # they have tests of their own
    small = config(epochs=5, hidden=(20,), batch_size=128, optimizer__learning_rate=0.01)
    runs = runner.train(study.build(small), small, workdir=tmp_path / "run", compile="graph")
    plain, penalized = runs["plain"].test, runs["penalized"].test
    assert penalized["squared_slope"] < 0.5 * plain["squared_slope"]
    assert penalized["shifted_accuracy"] > plain["shifted_accuracy"]
    assert (tmp_path / "run" / "plots" / "slopes.png").is_file()


def test_a_move_against_the_slope_is_the_worst_of_its_size_for_a_linear_model():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 4)).astype("float32"), random.integers(0, 2, 200).astype("int32")
    model = autodiff.make_model((4,), 2, hidden=(), activation="elu")
    task = autodiff.PenalizedTask(model, keras.optimizers.SGD(), penalty=0.0, shift=0.25)
    found = loops.EvalLoop(task).run(loops.ArrayFeed((x, y), batch_size=64))
    kernel = model.layers[-1].kernel.numpy()
    margin = (x @ kernel)[np.arange(200), y] - (x @ kernel)[np.arange(200), 1 - y]
    lost = 0.25 * np.abs(kernel[:, 0] - kernel[:, 1]).sum()
    assert found["shifted_accuracy"] == pytest.approx((margin > lost).mean())
    assert found["accuracy"] == pytest.approx((margin > 0).mean())


@pytest.mark.parametrize(
    ("changes", "said"), [({"dataset": "diabetes"}, "regression"), ({"penalty": 0.0}, "config.penalty is 0"), ({"dataset": "x"}, "'x'")]
)
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
