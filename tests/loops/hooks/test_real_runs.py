"""Hooks in real training: they stop, drop, restore and save exactly where Keras's callbacks do in `model.fit`."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops.hooks.keras_reference import Reused

RNG = np.random.default_rng(0)
X, XV = RNG.normal(size=(50, 6)).astype("float32"), RNG.normal(size=(30, 6)).astype("float32")
W = RNG.normal(size=(6, 1)).astype("float32")
# Noise, so that validation gets worse again.
Y, YV = X @ W + RNG.normal(size=(50, 1)).astype("float32"), XV @ W + RNG.normal(size=(30, 1)).astype("float32")


def make(optimizer=None):
    keras.utils.set_random_seed(3)
    # With names of their own, models that are equal are saved to files that are equal.
    layers = [keras.Input([6]), keras.layers.Dense(16, "tanh", name="hidden"), keras.layers.Dense(1, name="out")]
    model = keras.Sequential(layers, name="model")
    model.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9, name="sgd"), "mse", metrics=["mae"], jit_compile=False)
    return model


reference = Reused(make)


def both(callback, hook, epochs=12, optimizer=lambda: None, **options):
    """Trains the same model with Keras and a callback, and with ours and a hook; gives (model, history) of each."""
    options = {"batch_size": 10, "epochs": epochs, "shuffle": False, "verbose": 0, "validation_data": (XV, YV), **options}
    given = optimizer()
    theirs, ours = reference() if given is None else make(given), make(optimizer())
    expected = theirs.fit(X, Y, callbacks=callback, **options)
    return (theirs, expected), (ours, loops.fit(ours, X, Y, hooks=hook, compile="graph", **options))


def assert_same(theirs, ours, optimizer=True):
    (model, expected), (own_model, history) = theirs, ours
    assert list(history.history) == list(expected.history)
    assert history.history == expected.history
    assert history.epoch == expected.epoch
    variables = lambda m: [*m.weights, *(m.optimizer.variables if optimizer else [])]  # noqa: E731
    for v, w in zip(variables(model), variables(own_model), strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy(), err_msg=v.path)


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 1, "restore_best_weights": True, "restore_optimizer": False},
        {"monitor": "val_mae", "patience": 0, "min_delta": 0.05, "start_from_epoch": 2},
        {"monitor": "loss", "mode": "max", "patience": 3, "baseline": 100.0, "restore_best_weights": True, "restore_optimizer": False},
    ],
    ids=["restore", "delta", "baseline"],
)
def test_early_stopping_stops_and_restores_where_keras_does(options):
    keras_options = {k: v for k, v in options.items() if k != "restore_optimizer"}
    callback, hook = keras.callbacks.EarlyStopping(**keras_options), hooks.EarlyStopping(**options)
    theirs, ours = both([callback], [hook], epochs=20)
    assert_same(theirs, ours)
    assert (hook.stopped_epoch, hook.best_epoch, hook.best) == (callback.stopped_epoch, callback.best_epoch, callback.best)
    assert hook.stopped_epoch > 0


def test_early_stopping_brings_the_optimizer_of_the_best_epoch_back():
    hook = hooks.EarlyStopping(patience=2, restore_best_weights=True)
    options = {"batch_size": 10, "shuffle": False, "verbose": 0, "compile": "graph"}
    model, best = make(), make()
    loops.fit(model, X, Y, epochs=20, validation_data=(XV, YV), hooks=[hook], **options)
    loops.fit(best, X, Y, epochs=hook.best_epoch + 1, **options)
    for v, w in zip([*model.weights, *model.optimizer.variables], [*best.weights, *best.optimizer.variables], strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy(), err_msg=v.path)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"patience": 1, "factor": 0.5}, id="plain", marks=pytest.mark.matrix),  # as every other epoch, below
        pytest.param({"patience": 2, "cooldown": 2, "min_lr": 0.002, "min_delta": 0.1}, id="cooldown"),
    ],
)
def test_reduce_lr_on_plateau_drops_where_keras_does(options):
    theirs, ours = both([keras.callbacks.ReduceLROnPlateau(**options)], [hooks.ReduceLROnPlateau(**options)])
    assert_same(theirs, ours)
    assert len(set(ours[1].history["learning_rate"])) > 1


def test_all_together_act_as_in_keras(tmp_path):
    def listed(module, folder):
        return [
            module.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            module.ReduceLROnPlateau(patience=2, factor=0.3, min_delta=0.0),
            module.EarlyStopping(patience=5),
            module.CSVLogger(folder / "log.csv"),
            module.ModelCheckpoint(folder / "{epoch}.weights.h5", save_best_only=True, save_weights_only=True),
        ]

    # Keras's callbacks write the rate into shared logs in list order; in this order it is the one that the epoch used.
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    theirs, ours = both(listed(keras.callbacks, tmp_path / "theirs"), listed(hooks, tmp_path / "ours")[::-1], epochs=15)
    assert_same(theirs, ours)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("theirs", "ours")]
    assert len(files[0]) > 2 and files[0] == files[1]


def test_the_learning_rate_of_an_epoch_and_checkpoints_every_few_steps_are_those_of_keras(tmp_path):
    def schedule(epoch):
        return 0.05 / (epoch + 1)

    schedulers = keras.callbacks.LearningRateScheduler(schedule), hooks.LearningRateScheduler(schedule)
    names = {"theirs": keras.callbacks.ModelCheckpoint, "ours": hooks.ModelCheckpoint}
    made = [
        kind(tmp_path / name / "{epoch}-{batch}-{loss:.3f}.weights.h5", save_weights_only=True, save_freq=3) for name, kind in names.items()
    ]
    theirs, ours = both([made[0], schedulers[0]], [made[1], schedulers[1]], epochs=3)
    assert_same(theirs, ours)
    np.testing.assert_allclose(ours[1].history["learning_rate"], [0.05, 0.025, 0.05 / 3], rtol=1e-6)
    files = {name: sorted(p.name for p in (tmp_path / name).iterdir()) for name in names}
    assert files["ours"] == files["theirs"] and len(files["ours"]) == 5


def test_validation_every_other_epoch_stops_and_drops_as_in_keras():
    def listed(module):
        return [module.ReduceLROnPlateau(patience=1, factor=0.5), module.EarlyStopping(patience=3)]

    with pytest.warns(UserWarning, match="not available"):
        theirs, ours = both(listed(keras.callbacks), listed(hooks), epochs=16, validation_freq=2)
    assert_same(theirs, ours)


def test_a_plateau_scales_a_schedule_in_the_compiled_program_without_a_retrace():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    model = make(keras.optimizers.SGD(schedule))
    hook = hooks.ReduceLROnPlateau("loss", mode="max", patience=2, factor=0.5)
    history = loops.fit(model, X, Y, batch_size=10, epochs=5, shuffle=False, verbose=0, hooks=[hook], compile="graph")
    dropped = [0.1 * 0.5 ** (epoch + 1) * factor for epoch, factor in enumerate([1, 1, 1, 0.5, 0.5])]
    np.testing.assert_allclose(history.history["learning_rate"], dropped, rtol=1e-6)

    class ByHand(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return schedule(step) * tf.gather(tf.constant([1.0, 1.0, 1.0, 0.5, 0.5]), tf.cast(step, tf.int64) // 5)

    by_hand = make(keras.optimizers.SGD(ByHand()))
    by_hand.fit(X, Y, batch_size=10, epochs=5, shuffle=False, verbose=0)
    for v, w in zip(model.weights, by_hand.weights, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy())


def test_a_schedule_under_an_idle_plateau_keeps_every_bit():
    def optimizer():
        return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, 40))

    with_hook, without = make(optimizer()), make(optimizer())
    loops.fit(with_hook, X, Y, batch_size=10, epochs=3, shuffle=False, verbose=0, hooks=[hooks.ReduceLROnPlateau("loss", patience=99)])
    without.fit(X, Y, batch_size=10, epochs=3, shuffle=False, verbose=0)
    for v, w in zip(with_hook.weights, without.weights, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy())


def test_the_order_of_hooks_changes_nothing(tmp_path):
    seen = []
    for order in ((0, 1, 2, 3, 4, 5, 6, 7), (4, 6, 1, 3, 0, 7, 5, 2), (7, 6, 5, 4, 3, 2, 1, 0)):
        folder = tmp_path / "".join(map(str, order))
        listed = [
            hooks.ReduceLROnPlateau(patience=1, factor=0.3),
            hooks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
            hooks.EarlyStopping(patience=3, restore_best_weights=True),
            hooks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True, save_best_only=True),
            hooks.Unfreeze("hidden", patience=2, min_delta=10.0, learning_rate_factor=0.5),
            hooks.LoadWeights([np.full(shape, 0.1, "float32") for shape in ([6, 16], [16], [16, 1], [1])], threshold=10.0),
            hooks.Notify(lambda message: None, "val_loss", threshold=10.0),
            hooks.Evaluate(loops.ArrayFeed((XV, YV), 30), "test", every="2 steps"),
        ]
        model = make()
        model.get_layer("hidden").trainable = False
        options = {"batch_size": 25, "epochs": 8, "shuffle": False, "verbose": 0, "compile": "eager"}
        history = loops.fit(model, X, Y, validation_data=(XV, YV), hooks=[listed[j] for j in order], **options)
        files = {p.name: p.read_bytes() for p in folder.iterdir()}
        seen.append((history.history, files, [v.numpy().tobytes() for v in [*model.weights, *model.optimizer.variables]]))
    assert len(seen) == 3 and all(run == seen[0] for run in seen)


def test_nan_ends_the_run_at_its_step_and_nothing_of_it_is_saved_or_evaluated(tmp_path):
    y = Y.copy()
    y[37] = np.nan  # in the fourth batch
    clean, model = make(), make()
    loops.fit(clean, X, Y, batch_size=10, epochs=1, steps_per_epoch=3, shuffle=False, verbose=0, compile="eager")
    evaluated = []
    history = loops.fit(
        model,
        X,
        y,
        batch_size=10,
        epochs=3,
        shuffle=False,
        verbose=0,
        compile="eager",
        validation_data=(XV, YV),
        hooks=[
            hooks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
            hooks.LambdaHook(on_evaluate_end=lambda loop, name, logs: evaluated.append(name)),
            hooks.TerminateOnNaN(),
        ],
    )
    assert (history.epoch, evaluated, list(tmp_path.iterdir())) == ([], [], [])
    for v, w in zip(model.weights, clean.weights, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy())


def test_nan_validation_stops_before_anything_is_saved(tmp_path):
    with pytest.warns(UserWarning, match="did not save after step 5: val_loss is nan"):
        history = loops.fit(
            make(),
            X,
            Y,
            batch_size=10,
            epochs=3,
            verbose=0,
            compile="eager",
            validation_data=(XV, np.full_like(YV, np.nan)),
            hooks=[hooks.ModelCheckpoint(tmp_path / "a.weights.h5", save_weights_only=True), hooks.TerminateOnNaN()],
        )
    assert history.epoch == [0] and math.isnan(history.history["val_loss"][0]) and list(tmp_path.iterdir()) == []


def test_weights_written_while_training_goes_on_are_those_of_the_look(tmp_path):
    model, looks = make(), {}

    def remember(loop, window):
        looks[loop.progress.step] = [v.numpy() for v in [*model.weights, *model.optimizer.variables]]

    loops.fit(
        model,
        X,
        Y,
        batch_size=10,
        epochs=4,
        verbose=0,
        compile="eager",
        hooks=[
            hooks.ModelCheckpoint(tmp_path / "{step}.weights.h5", save_weights_only=True, save_freq=2),
            hooks.LambdaHook(on_window_end=remember, every="2 steps"),
        ],
    )
    assert sorted(looks) == list(range(2, 21, 2))
    for step, values in looks.items():
        model.load_weights(tmp_path / f"{step}.weights.h5")
        for v, w in zip([*model.weights, *model.optimizer.variables], values, strict=True):
            np.testing.assert_array_equal(v.numpy(), w)


def test_several_sets_are_evaluated_at_any_cadence_and_can_decide(tmp_path):
    model = make()
    task = loops.KerasTask(model)
    val, test = loops.ArrayFeed((XV, YV), batch_size=10), loops.ArrayFeed((X, Y), batch_size=10)
    looks = []
    loop = loops.TrainLoop(
        task,
        loops.ArrayFeed((X, Y), batch_size=10, seed=1),
        hooks=[
            hooks.Evaluate(val, every="3 steps"),
            hooks.Evaluate(test, "test", every="2 epochs"),
            hooks.LambdaHook(on_evaluate_end=lambda loop, name, logs: looks.append((loop.progress.step, name))),
            stop := hooks.EarlyStopping("val_loss", patience=6, at="evaluation", restore_best_weights=True),
            hooks.ModelCheckpoint(tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True, at="evaluation"),
        ],
    )
    loop.run(epochs=40)
    steps = {name: [s for s, n in looks if n == name] for name in ("val", "test")}
    assert steps["val"] == [3 * (i + 1) for i in range(len(steps["val"]))]
    assert steps["test"] == [10 * (i + 1) for i in range(len(steps["test"]))]
    assert loop.outcome == "stopped" and stop.wait == 6 and loop.progress.step == steps["val"][-1]
    best = make()
    best.optimizer.build(best.trainable_variables)
    best.load_weights(tmp_path / "best.weights.h5")
    assert loops.evaluate(best, XV, YV, batch_size=10)["loss"] == stop.best
    for v, w in zip(model.weights, best.weights, strict=True):
        np.testing.assert_array_equal(v.numpy(), w.numpy())


def test_a_task_with_two_optimizers_logs_and_scales_both():
    class Two(loops.Task):
        def __init__(self):
            super().__init__()
            self.a, self.b = keras.Variable(1.0), keras.Variable(1.0)
            self.slow, self.fast = keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.1)

        def train_step(self, batch):
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.square(self.a) + tf.square(self.b)
            self.minimize(loss, tape, self.slow, [self.a])
            self.minimize(loss, tape, self.fast, [self.b])
            return {"loss": loss}

    loop = loops.TrainLoop(
        Two(), loops.NoFeed(steps_per_epoch=2), hooks=[hooks.ReduceLROnPlateau("loss", 0.5, patience=1, mode="max")], compile="eager"
    )
    history = loop.run(epochs=3).history
    np.testing.assert_allclose(history["learning_rate_slow"], [0.01, 0.01, 0.005], rtol=1e-6)
    np.testing.assert_allclose(history["learning_rate_fast"], [0.1, 0.1, 0.05], rtol=1e-6)


def test_a_second_run_goes_on_with_counters_history_and_file(tmp_path):
    def listed(folder):
        return [
            hooks.EarlyStopping("loss", patience=50),
            hooks.ReduceLROnPlateau(patience=1, factor=0.5),
            hooks.CSVLogger(tmp_path / folder),
        ]

    results = []
    for folder, targets in (("whole.csv", [6]), ("parts.csv", [2, 3, 6])):
        model = make()
        feeds = [loops.ArrayFeed(data, batch_size=25) for data in ((X, Y), (XV, YV))]
        loop = loops.TrainLoop(loops.KerasTask(model), feeds[0], hooks=listed(folder), evaluate={"val": feeds[1]}, compile="eager")
        for epochs in targets:
            history = loop.run(epochs=epochs)
        states = [hook.state_dict() for hook in loop.hooks if isinstance(hook, hooks.MonitorHook)]
        results.append((history.history, states, (tmp_path / folder).read_text(), [v.numpy().tobytes() for v in model.weights]))
    assert results[0] == results[1]


def test_two_replicas_stop_drop_restore_and_save_as_one_device_does(two_replicas, one_device, tmp_path):
    runs = []
    for name, strategy in (("one", one_device), ("two", two_replicas)):
        with strategy.scope():
            model = make(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 20, 0.5), momentum=0.9))
        path = tmp_path / f"{name}.weights.h5"
        listed = [
            stop := hooks.EarlyStopping(patience=4, restore_best_weights=True),
            hooks.ReduceLROnPlateau(patience=1, factor=0.5, min_delta=0.0),
            hooks.ModelCheckpoint(path, save_best_only=True, save_weights_only=True),
        ]
        history = loops.fit(model, X, Y, batch_size=10, epochs=12, shuffle=False, verbose=0, validation_data=(XV, YV), hooks=listed)
        restored = [v.numpy() for v in model.weights]
        model.load_weights(path)
        for v, w in zip(model.weights, restored, strict=True):
            np.testing.assert_array_equal(v.numpy(), w)
        runs.append((history.history["learning_rate"], (stop.stopped_epoch, stop.best_epoch), restored))
    assert runs[0][:2] == runs[1][:2] and len(set(runs[0][0])) > 3
    for one, two in zip(runs[0][2], runs[1][2], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
