"""The study for searches trains at every point of its space."""

from __future__ import annotations

import copy

import keras
import pytest

from research import runner, study
from research.configs import search_optuna as config_file
from research.search.space import Space
from research.study import InputError


def test_what_the_space_suggests_becomes_the_net_that_is_trained():
    pytest.importorskip("optuna")
    from research.search.trials import guesses

    config = config_file.get_config()
    space = Space((), config_file.search_space)
    space.check(guesses(3), config)
    (trial,) = guesses(1)
    space.apply(trial, point := copy.deepcopy(config))
    assert trial.params == {
        **{name: point[name] for name in ("width", "depth", "activation", "dropout", "batch_size")},
        **{f"optimizer.{name}": point.optimizer[name] for name in ("name", "learning_rate", "weight_decay")},
    }
    point.epochs = 1
    run = runner.train(study.build(point), point, compile="eager")
    dense = [layer for layer in run.study.model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [*[point.width] * point.depth, 1]
    optimizer = run.study.model.optimizer
    assert (optimizer.name, optimizer.weight_decay) == (point.optimizer.name, point.optimizer.weight_decay)
    assert run.history.history["val_rmse"] and run.test["rmse"] > 0


def test_a_net_without_hidden_layers_is_refused():
    config = config_file.get_config()
    config.depth = 0
    with pytest.raises(InputError, match=r"config\.depth is 0"):
        study.build(config)
