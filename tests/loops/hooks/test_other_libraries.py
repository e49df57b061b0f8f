"""Callbacks and tuners of other libraries run unchanged; each test is skipped where its library is not installed."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import loops

X = np.random.default_rng(0).normal(size=[40, 3]).astype("float32")
Y = X.sum(1, keepdims=True)


def model(rate=0.05):
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
    net.compile(keras.optimizers.SGD(rate), "mse", metrics=["mae"])
    return net


def fit(net, *args, **arguments):
    return loops.fit(net, *args, **{"verbose": 0, "compile": "graph", **arguments})


def test_keras_tuner_takes_what_fit_returns(tmp_path):
    tuner = pytest.importorskip("keras_tuner")

    class Trial(tuner.HyperModel):
        def build(self, hp):
            return model(hp.Choice("rate", [0.001, 0.1]))

        def fit(self, hp, net, *args, **arguments):
            return loops.fit(net, *args, **arguments)

    search = tuner.GridSearch(Trial(), objective="val_loss", directory=tmp_path, project_name="search")
    search.search(X, Y, epochs=3, validation_data=(X, Y), verbose=0)
    assert search.get_best_hyperparameters()[0].get("rate") == 0.1
    assert len(search.oracle.trials) == 2


def test_optuna_prunes_through_its_callback():
    optuna = pytest.importorskip("optuna")
    integration = pytest.importorskip("optuna_integration.keras")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rates = [0.1, 0.1, 0.0001]

    def objective(trial):
        net = model(rates[trial.number])
        prune = integration.KerasPruningCallback(trial, "val_loss")
        return fit(net, X, Y, epochs=4, validation_data=(X, Y), callbacks=[prune]).history["val_loss"][-1]

    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    study.optimize(objective, n_trials=3)
    states = [trial.state for trial in study.trials]
    assert states[0] == optuna.trial.TrialState.COMPLETE and states[2] == optuna.trial.TrialState.PRUNED
    assert len(study.trials[2].intermediate_values) < 4


def test_tqdm_counts_every_batch_and_epoch():
    tqdm = pytest.importorskip("tqdm.keras")
    bar = tqdm.TqdmCallback(verbose=2, leave=False)
    fit(model(), X, Y, epochs=2, batch_size=8, callbacks=[bar])
    assert (bar.epoch_bar.n, bar.batch_bar.n) == (2, 5)


def test_weights_and_biases_gets_the_logs(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = wandb.init(dir=tmp_path)
    history = fit(model(), X, Y, epochs=2, callbacks=[pytest.importorskip("wandb.integration.keras").WandbMetricsLogger()])
    logged = dict(run.summary)
    run.finish()
    assert logged["epoch/epoch"] == 1 and logged["epoch/loss"] == pytest.approx(history.history["loss"][-1])


def test_mlflow_gets_the_logs(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    with mlflow.start_run() as run:
        history = fit(model(), X, Y, epochs=2, callbacks=[pytest.importorskip("mlflow.keras").MlflowCallback()])
    values = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [value.value for value in values] == pytest.approx(history.history["loss"])
