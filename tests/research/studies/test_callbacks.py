"""The callbacks study: every hook acts at the step that its settings say, and every record shows it."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from loops import testing
from research import runner, study
from research.configs import callbacks as config_file
from research.studies.callbacks import SelfMonitor
from research.study import InputError

STEPS = 40  # of an epoch


def known():
    """Settings with which each event comes at an epoch that is known beforehand.

    No loss is better by 100, so plateau and Unfreeze count from the first epoch. The plateau takes the rate to 0: from then on nothing is
    learnt, and EarlyStopping, for which the third epoch was the best, waits three more.
    """
    settings = config_file.get_config()
    settings.update({"hidden": (16,), "warm_up": 2, "plateau_patience": 2, "plateau_factor": 0.0, "lowest_rate": 0.0, "patience": 3})
    settings.update({"unfreeze_patience": 4, "min_delta": 100.0, "threshold": 0.3, "check_at": (7, 95), "epochs": 50})
    settings.optimizer.momentum = 0.0
    return settings


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callbacks")
    return runner.train(study.build(known()), known(), workdir=folder, compile="graph"), folder


def rows(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_event_is_in_the_history_file_at_its_epoch(ran):
    run, folder = ran
    table = rows(folder)
    assert len(table) == 6 and run.loop.progress.step == 6 * STEPS  # EarlyStopping
    rates = [float(row["learning_rate"]) for row in table]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.1, 0, 0, 0], rtol=1e-6)  # warm-up, then the plateau's drop
    assert [row["unfrozen_layers"] for row in table] == ["0", "0", "0", "0", "0", "1"]
    losses = [float(row["val_loss"]) for row in table]
    assert losses[0] > losses[1] > losses[2] == losses[3] == losses[5]
    assert [float(row["best_val_loss"]) for row in table] == losses
    assert run.best == 2


def test_each_event_is_in_tensorboard_at_its_step(ran):
    _, folder = ran
    events = testing.read_events(folder)
    table, train = rows(folder), events["train"]
    for name in ("learning_rate", "unfrozen_layers", "best_val_loss"):
        points = train[f"epoch_{name}"]
        assert [step for step, _ in points] == [0, 1, 2, 3, 4, 5]
        np.testing.assert_allclose([value for _, value in points], [float(row[name]) for row in table], rtol=1e-6)
    assert [step for step, _ in events["check"]["evaluation_loss_vs_iterations"]] == [7, 95]


def test_weights_past_the_threshold_are_those_of_the_best_epoch_past_it(ran):
    run, folder = ran
    accuracies = run.history.history["val_accuracy"]
    assert accuracies[0] < max(accuracies) and max(accuracies) > 0.3
    kept = [w.copy() for w in run.study.model.get_weights()]
    run.study.model.load_weights(folder / "checkpoints" / "past_threshold.weights.h5")
    past = run.study.model.get_weights()
    run.study.model.set_weights(kept)
    # The best accuracy is that of the third epoch or of an earlier one; the third has the best loss, whose weights the model has.
    assert all(np.array_equal(a, b) for a, b in zip(past, kept, strict=True)) == (int(np.argmax(accuracies)) == 2)


def test_the_server_was_sent_what_the_history_says(ran):
    run, _ = ran
    monitor = next(hook for hook in run.loop.hooks if isinstance(hook, SelfMonitor))
    assert [event["epoch"] for event in monitor.received] == [0, 1, 2, 3, 4, 5]
    assert [event["val_loss"] for event in monitor.received] == run.history.history["val_loss"]


def test_a_run_that_crashed_and_was_started_again_leaves_the_same_records(ran, tmp_path):
    undisturbed, folder = ran
    with pytest.raises(testing.InjectedCrash), testing.crash_at("hook", count=70, how="raise"):
        runner.train(study.build(known()), known(), workdir=tmp_path, compile="graph")
    assert 1 < len(rows(tmp_path)) < 6
    run = runner.train(study.build(known()), known(), workdir=tmp_path, compile="graph")
    assert (tmp_path / "history.csv").read_bytes() == (folder / "history.csv").read_bytes()
    assert run.study.after(run)[:-1] == undisturbed.study.after(undisturbed)[:-1]
    for a, b in zip(run.study.model.get_weights(), undisturbed.study.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    found, expected = (testing.read_events(place)["train"] for place in (tmp_path, folder))
    for name in ("learning_rate", "unfrozen_layers", "best_val_loss"):
        assert found[f"epoch_{name}"] == expected[f"epoch_{name}"]


def test_what_happened_is_told_in_a_table(ran):
    run, _ = ran
    told = run.study.after(run)
    found = {line[15:].strip(): (int(line[:6]), int(line[6:13])) for line in told[1:-1]}
    assert found["learning rate 0.05 -> 0.1"] == (STEPS, 1)
    assert found["learning rate 0.1 -> 0"] == (3 * STEPS, 3)
    assert found["1 layers set free"] == (5 * STEPS, 5)
    assert {where for what, where in found.items() if what.startswith("validated at this step")} == {(7, 1), (95, 3)}
    assert next(where for what, where in found.items() if what.startswith("EarlyStopping")) == (6 * STEPS, 6)
    assert told[-1] == "RemoteMonitor sent 6 epochs; 6 of them say what the history says."


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = config_file.get_config()
    settings.update({"epochs": 2, "hidden": (4,), "threshold": 0.01})
    runner.train(study.build(settings), settings, compile="graph")
    assert list(tmp_path.iterdir()) == []
    assert "val_accuracy = " in capsys.readouterr().out


@pytest.mark.parametrize("changes, said", [({"dataset": "diabetes"}, "regression"), ({"unfreeze_patience": 0}, "patience of Unfreeze")])
def test_what_cannot_be_built_is_refused(changes, said):
    settings = config_file.get_config()
    settings.update(changes)
    with pytest.raises(InputError, match=said):
        study.build(settings)
