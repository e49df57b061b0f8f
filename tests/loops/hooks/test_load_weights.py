"""LoadWeights replaces the weights between two epochs: what was measured and saved before is not touched, what follows begins with them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import loops
from loops import hooks

RNG = np.random.default_rng(1)
X = RNG.normal(size=(40, 4)).astype("float32")
Y = (X[:, :1] * X[:, 1:2]).astype("float32")
FIT = {"batch_size": 10, "shuffle": False, "verbose": 0}
MET_AFTER_TWO = {"monitor": "loss", "mode": "max", "patience": 1}  # in this mode a loss that falls never improves


def make(seed, units=5, optimizer=None):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(units, "tanh"), keras.layers.Dense(1)], name="model")
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    return model


def bits(model):
    return [w.numpy().tobytes() for w in model.weights]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Weights to load, as a file and as arrays, and what `model.fit` makes of them: (path, arrays, bits, losses)."""
    path = tmp_path_factory.mktemp("other") / "other.weights.h5"
    model = make(9)
    model.fit(X, Y, epochs=1, **FIT)
    model.save_weights(path)
    arrays = model.get_weights()
    history = model.fit(X, Y, epochs=3, **FIT)
    return path, arrays, bits(model), history.history["loss"]


@pytest.fixture(scope="module")
def file(other):
    return other[0]


@pytest.fixture(scope="module")
def two_epochs():
    """The bits after two epochs in which nothing is loaded."""
    plain = make(0)
    loops.fit(plain, X, Y, epochs=2, compile="graph", **FIT)
    return bits(plain)


@pytest.mark.parametrize("form", ["file", "arrays"])
def test_it_goes_on_as_keras_does_from_the_other_weights(other, form, capsys):
    path, arrays, weights, losses = other
    ours = make(0)
    hook = hooks.LoadWeights(path if form == "file" else arrays, **MET_AFTER_TWO)
    history = loops.fit(ours, X, Y, epochs=5, hooks=[hook], compile="graph", **FIT)
    assert bits(ours) == weights
    assert history.history["loss"][2:] == losses
    assert history.history["weights_loaded"] == [0, 0, 1, 1, 1] and hook.loaded
    said = capsys.readouterr().out
    assert "Step 8, epoch 2: LoadWeights will act (loss = " in said and "Step 8: epoch 3 begins with the weights of" in said


def test_optimizers_keep_their_slots_and_rates(file):
    model, plain = (make(0, optimizer=keras.optimizers.Adam(0.01)) for _ in range(2))
    variables = []
    hook = hooks.LoadWeights(file, **MET_AFTER_TWO)
    # Told before the hook acts, at the end of epoch 2, and after, at the beginning of epoch 3.
    tell = hooks.LambdaHook(
        on_epoch_end=lambda loop, logs: variables.append([v.numpy().tobytes() for v in model.optimizer.variables]),
        on_epoch_begin=lambda loop: variables.append([v.numpy().tobytes() for v in model.optimizer.variables]),
        phase=hooks.Phase.RECORD,
    )
    loops.fit(model, X, Y, epochs=3, hooks=[hook, tell], compile="eager", **FIT)
    loops.fit(plain, X, Y, epochs=2, compile="eager", **FIT)
    assert variables[3] == variables[4] == [v.numpy().tobytes() for v in plain.optimizer.variables]


def test_what_was_measured_is_what_is_saved(file, two_epochs, tmp_path):
    model = make(0)
    saver = hooks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    loops.fit(model, X, Y, epochs=4, hooks=[hooks.LoadWeights(file, **MET_AFTER_TWO), saver], compile="graph", **FIT)
    model.load_weights(tmp_path / "2.weights.h5")
    assert bits(model) == two_epochs


def test_reading_the_file_before_training_leaves_no_trace(file, two_epochs):
    ours = make(0)
    loops.fit(ours, X, Y, epochs=2, hooks=[hooks.LoadWeights(file, "loss", threshold=-1.0)], compile="graph", **FIT)
    assert bits(ours) == two_epochs


def refused(hook, others=()):
    with pytest.raises(ValueError) as caught:
        loops.fit(make(0), X, Y, epochs=1, hooks=[hook, *others], **FIT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_loaded_is_refused_before_training(file, tmp_path):
    absent = tmp_path / "absent.weights.h5"
    assert f"found no file {absent}; it has to be there when training begins" in refused(hooks.LoadWeights(absent, patience=1))
    wide = tmp_path / "wide.weights.h5"
    make(0, units=7).save_weights(wide)
    said = refused(hooks.LoadWeights(wide, patience=1))
    assert f"cannot load {wide} into the model 'model'" in said and "shape" in said
    broken = tmp_path / "broken.weights.h5"
    broken.write_bytes(b"not much")
    assert f"cannot load {broken}" in refused(hooks.LoadWeights(broken, patience=1))
    assert "got 1 arrays for the 4 weights of 'model'; they differ first at number 1: none for (5,)" in refused(
        hooks.LoadWeights([np.zeros([4, 5])], patience=1)
    )
    writer = hooks.ModelCheckpoint(file, save_weights_only=True)
    assert "which this run's ModelCheckpoint writes" in refused(hooks.LoadWeights(file, patience=1), [writer])


def test_a_task_without_a_model_is_refused():
    class Nothing(loops.Task):
        def train_step(self, batch):
            return {}

    with pytest.raises(ValueError, match="LoadWeights found no Keras model: Nothing has no attribute `model`"):
        loops.TrainLoop(Nothing(), loops.NoFeed(1), hooks=[hooks.LoadWeights([], "loss", patience=1)]).run(epochs=1)


def test_two_replicas_load_and_set_free_as_one_device_does(file, two_replicas, one_device):
    results = []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            model = make(0)
            model.layers[0].trainable = False
        listed = [hooks.LoadWeights(file, **MET_AFTER_TWO), hooks.Unfreeze(model.layers[0], **MET_AFTER_TWO)]
        history = loops.fit(model, X, Y, epochs=5, hooks=listed, compile="graph", **FIT)
        results.append((model.get_weights(), history.history))
    (weights, logs), (others, other_logs) = results
    assert logs["weights_loaded"] == other_logs["weights_loaded"] == [0, 0, 1, 1, 1]
    assert logs["unfrozen_layers"] == other_logs["unfrozen_layers"] == [0, 0, 1, 1, 1]
    for one, two in zip(weights, others, strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-6)
