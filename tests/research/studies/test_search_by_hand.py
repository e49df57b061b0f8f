"""The search by hand takes the learning rate whose validation error is smallest, and says so."""

from __future__ import annotations

import re

import pytest

from research import runner, study
from research.configs import search_by_hand as config_file
from research.study import InputError


def config(**changes):
    made = config_file.get_config()
    made.update({"epochs": 2, "hidden": (4,), **changes})
    return made


def test_the_best_rate_is_that_with_the_smallest_validation_error(tmp_path, capsys):
    settings = config(learning_rates=(1e-7, 1e-6, 1e3))  # the last one explodes at once
    settings.optimizer.name = "sgd"
    runs = runner.train(study.build(settings), settings, workdir=tmp_path / "run", compile="graph")
    out = capsys.readouterr().out
    errors = {name: min(run.history.history["val_rmse"]) for name, run in runs.items() if name != "rate_1000"}
    assert not runs["rate_1000"].history.epoch
    best = min(errors, key=lambda name: errors[name])
    said = re.search(r"Best by the validation set: (\S+), RMSE ([\d.]+); on the test set ([\d.]+)\.", out)
    assert said and float(said[1]) == float(best.removeprefix("rate_"))
    assert float(said[2]) == pytest.approx(errors[best], abs=1e-4)
    assert float(said[3]) == pytest.approx(runs[best].test["rmse"], abs=1e-4)
    assert (tmp_path / "run" / "plots" / "curves.png").is_file()


@pytest.mark.parametrize("rates", [(), (0.1, 0.1), (0.0, 1.0)])
def test_rates_that_make_no_search_are_refused(rates):
    with pytest.raises(InputError, match=r"config\.learning_rates has to be some positive numbers"):
        study.build(config(learning_rates=rates))
