"""Keras's own callbacks passed to `loops.fit` decide what they decide in `model.fit` and write the same files."""

from __future__ import annotations

import pathlib
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import callbacks as kc
from keras import layers

from loops.testing import read_events
from tests.loops.hooks.keras_reference import assert_parity, reused
from tests.loops.parity.harness import Outcome, assert_same_bits, differences, keras_fit, loops_fit, train

RNG = np.random.default_rng(12)
X = RNG.normal(size=(70, 4)).astype("float32")  # batches of 32, 32 and 6
Y = X[:, :1] * 2 + RNG.normal(size=(70, 1)).astype("float32")
DATA = {"x": X, "y": Y, "epochs": 6, "validation_data": (X[:40] + 1, Y[:40])}


def regression(optimizer=None) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"), layers.Dropout(0.1), layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.SGD(0.3), "mse", metrics=["mae"])
    return model


def averaging() -> keras.Model:
    return regression(keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.7))


CALLBACKS = {
    "plateau, and early stopping with the best weights back": lambda: [
        kc.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, cooldown=1, min_lr=0.01),
        kc.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
    ],
    "early stopping on the training loss": lambda: [kc.EarlyStopping("loss", min_delta=0.3, baseline=5.0, start_from_epoch=1)],
    "scheduler of the epoch, lambda with epoch methods, history and progress bar": lambda: [
        kc.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch)),
        kc.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(mine=epoch)),
        kc.History(),
        kc.ProgbarLogger(),
    ],
    "a callback list's order, and lambda with batch methods": lambda: [
        kc.ReduceLROnPlateau("loss", patience=1),
        kc.LearningRateScheduler(lambda epoch, lr: lr * 0.9),
        kc.LambdaCallback(on_train_batch_end=lambda batch, logs: None),
    ],
}


@pytest.mark.parametrize("make_callbacks", CALLBACKS.values(), ids=CALLBACKS)
def test_effect_on_training(make_callbacks):
    assert_parity(regression, DATA, callbacks=make_callbacks)


def test_swapping_in_averaged_weights_for_evaluations():
    assert_parity(averaging, DATA, callbacks=lambda: [kc.SwapEMAWeights(swap_on_epoch=False)])


def with_nan() -> np.ndarray:
    y = Y.copy()
    y[40] = np.nan  # in the second of three batches
    return y


def test_terminate_on_nan():
    expected, _ = assert_parity(regression, {"x": X, "y": with_nan(), "epochs": 3}, callbacks=lambda: [kc.TerminateOnNaN()])
    assert len(expected.history["loss"]) == 1


def test_nan_without_a_callback_goes_on_as_in_keras():
    expected, _ = assert_parity(regression, {"x": X, "y": with_nan(), "epochs": 2})
    assert np.isnan(expected.history["loss"]).tolist() == [True, True]


def arrays_of(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Every array in an HDF5 file, or in a `.keras` file after loading."""
    if path.suffix == ".keras":
        model = keras.models.load_model(path)
        return {f"{i}": np.asarray(v) for i, v in enumerate([*model.weights, *model.optimizer.variables])}
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


def content_of(directory: pathlib.Path) -> dict[str, Any]:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {
        str(path.relative_to(directory)): arrays_of(path) if path.suffix in (".h5", ".keras") else np.frombuffer(path.read_bytes(), "uint8")
        for path in files
    }


def assert_same_files(tmp_path: pathlib.Path, make_callbacks, make_model=regression, **arguments) -> tuple[Outcome, Outcome]:
    """Trains on both sides in a directory of its own, and compares what was learnt and all files."""
    outcomes = []
    for side, fit in (("keras", keras_fit), ("loops", loops_fit)):
        (tmp_path / side).mkdir()
        make = reused(make_model) if side == "keras" else make_model
        outcomes.append(train(fit, make, DATA, callbacks=lambda side=side: make_callbacks(tmp_path / side), **arguments))
    assert differences(*outcomes, metrics=False) == []
    assert_same_bits(content_of(tmp_path / "keras"), content_of(tmp_path / "loops"))
    return outcomes[0], outcomes[1]


def checkpoints(folder: pathlib.Path) -> list[kc.Callback]:
    """By epochs, by batches, and the best, with and without a threshold."""
    return [
        kc.ModelCheckpoint(folder / "{epoch:02d}-{val_loss:.5f}.weights.h5", save_weights_only=True),
        kc.ModelCheckpoint(folder / "best.keras", monitor="val_mae", save_best_only=True),
        kc.ModelCheckpoint(folder / "below-{epoch}.keras", "loss", save_best_only=True, initial_value_threshold=5.0),
        kc.ModelCheckpoint(folder / "4-{epoch}-{batch}-{loss:.6f}.weights.h5", save_weights_only=True, save_freq=4),
        kc.ModelCheckpoint(folder / "1-{epoch}-{batch}.weights.h5", save_weights_only=True, save_freq=1),
    ]


def test_model_checkpoint(tmp_path):
    assert_same_files(tmp_path, checkpoints, epochs=3)
    names = [path.name for path in (tmp_path / "keras").iterdir()]
    assert "best.keras" in names and len(names) > 12
    assert all(any(name.startswith(start) for name in names) for start in ("01-", "below-", "4-", "1-"))


def test_model_checkpoint_of_averaged_weights(tmp_path):
    def made(folder):
        return [kc.SwapEMAWeights(swap_on_epoch=True), kc.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True)]

    assert_same_files(tmp_path, made, averaging, epochs=3)
    assert list((tmp_path / "keras").iterdir())


def test_csv_logger(tmp_path):
    assert_same_files(tmp_path, lambda d: [kc.LearningRateScheduler(lambda e: 0.1), kc.CSVLogger(d / "log.csv", separator=";")])
    assert len((tmp_path / "loops" / "log.csv").read_text().splitlines()) == 7


def test_remote_monitor(monkeypatch):
    posts: list[Any] = []

    class Requests:
        class exceptions:
            RequestException = OSError

        @staticmethod
        def post(*arguments, **options):
            posts.append((arguments, options))

    monkeypatch.setattr("keras.src.callbacks.remote_monitor.requests", Requests)
    assert_parity(regression, DATA, callbacks=lambda: [kc.RemoteMonitor("http://nowhere")])
    assert len(posts) == 12 and posts[6:] == posts[:6]


class Crash(kc.Callback):
    """Fails at the beginning of epoch 3."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise RuntimeError("crash")


@pytest.mark.parametrize("double", [pytest.param(False, marks=pytest.mark.matrix), True], ids=["one", "two"])
def test_backup_and_restore(double, tmp_path):
    def backup(directory):
        return [kc.BackupAndRestore(directory / "backup", double_checkpoint=double, delete_checkpoint=False)]

    # Each fit has a model of its own: the callback leaves the epoch to begin with in the model.
    sides = (("keras", keras_fit), ("loops", loops_fit))
    for side, fit in sides:
        (tmp_path / side).mkdir()
        with pytest.raises(RuntimeError, match="crash"):
            train(fit, regression, DATA, callbacks=lambda side=side: [*backup(tmp_path / side), Crash()])
    assert_same_bits(content_of(tmp_path / "keras"), content_of(tmp_path / "loops"))
    again = [train(fit, regression, DATA, callbacks=lambda side=side: backup(tmp_path / side)) for side, fit in sides]
    assert again[0].epochs == [3, 4, 5]
    assert differences(*again, metrics=False) == []
    assert_same_bits(content_of(tmp_path / "keras"), content_of(tmp_path / "loops"))


@pytest.mark.parametrize("update_freq", ["epoch", pytest.param("batch", marks=pytest.mark.matrix), 2])
def test_tensorboard(update_freq, tmp_path):
    def board(directory):
        return [kc.TensorBoard(directory, histogram_freq=2, write_images=True, update_freq=update_freq)]

    assert_same_files(tmp_path, board, epochs=3)
    expected, found = read_events(tmp_path / "keras"), read_events(tmp_path / "loops")
    assert set(expected) == {"train", "validation"}
    for run, tags in expected.items():
        assert list(found[run]) == list(tags)
        for tag, events in tags.items():
            assert [step for step, _ in found[run][tag]] == [step for step, _ in events], tag
            assert all(np.array_equal(f, e) for (_, f), (_, e) in zip(found[run][tag], events, strict=True)), tag
