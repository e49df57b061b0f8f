"""Faster updates have the bits of Keras's own, whatever the numbers, and stand aside where they cannot have them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.tasks import fused_updates
from tests.loops import tiny

Schedule = keras.optimizers.schedules.ExponentialDecay
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(Schedule(0.02, 3, 0.7), momentum=0.8, nesterov=True),
    "decayed sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.01),
    "clipped sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=0.3),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam, other numbers": lambda: keras.optimizers.Adam(
        Schedule(0.02, 3, 0.7), beta_1=0.85, beta_2=0.97, epsilon=1e-3, global_clipnorm=1.0
    ),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.02),
    "adam, averaged": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "adam, scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}


LARGE, SMALL = 1, 1 << 60  # variables of any size are taken for large, or small


@pytest.fixture(params=["large", "small"])
def size(request, monkeypatch):
    monkeypatch.setattr(fused_updates, "SMALLEST_FOR_XLA", LARGE if request.param == "large" else SMALL)
    return request.param


@pytest.fixture
def fused(monkeypatch):
    """Names of the updates that were used."""
    used = []
    for name in ("_sgd", "_adam"):
        real = getattr(fused_updates, name)
        monkeypatch.setattr(fused_updates, name, lambda *given, real=real, name=name: (used.append(name), real(*given)))
    return used


def numbers(shape, rng, infinities):
    """Of all sizes, with zeros and denormals among them."""
    values = rng.standard_normal(shape) * 10.0 ** rng.uniform(-44, 4, shape)
    values[rng.random(shape) < 0.05] = 0.0
    if infinities:
        values[rng.random(shape) < 0.01] = np.inf
    return values.astype("float32")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_have_keras_own_bits_whatever_the_numbers(name, fused, monkeypatch):
    rng = np.random.default_rng(0)
    shapes = [(37, 11), (5,), (1,), (300, 20)]
    infinities = not any(word in name for word in ("clipped", "other numbers", "scaled"))  # a norm of infinity leaves NaN, a scale nothing
    gradients = [[tf.constant(numbers(shape, rng, infinities)) for shape in shapes] for _ in range(5)]
    monkeypatch.setattr(fused_updates, "NOT_REORDERED", {"Placeholder"})
    initial = [rng.standard_normal(shape).astype("float32") for shape in shapes]

    def updated(apply):
        variables = [keras.Variable(value) for value in initial]
        optimizer = OPTIMIZERS[name]()
        optimizer.build(variables)
        step = tf.function(lambda grads: apply(optimizer, list(zip(grads, variables, strict=True))))
        for given in gradients:
            step(given)
        return [v.numpy() for v in [*variables, *optimizer.variables]]

    expected = updated(lambda optimizer, pairs: optimizer.apply_gradients(pairs))
    for size in (LARGE, SMALL) if "adam" in name else (SMALL,):  # no other update depends on it
        monkeypatch.setattr(fused_updates, "SMALLEST_FOR_XLA", size)
        fused.clear()
        for ours, keras_own in zip(updated(fused_updates.apply_gradients), expected, strict=True):
            np.testing.assert_array_equal(ours, keras_own)
        assert bool(fused) == (name != "clipped sgd"), "a clipped gradient is a product, which TensorFlow may multiply in another order"


IN_EVERY_RUN = {
    *[("nesterov", "small"), ("clipped sgd", "small"), ("adam, averaged", "small"), ("adamw", "small")],
    ("adam, other numbers", "large"),
}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=[] if (name, size) in IN_EVERY_RUN else [pytest.mark.matrix])
        for name in OPTIMIZERS
        for size in ("large", "small")
    ],
    indirect=["size"],
)
def test_training_has_the_bits_of_fit(name, size, fused):
    def compiled():
        keras.utils.set_random_seed(0)
        layers = [
            keras.layers.Dense(50, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3, "softmax"),
        ]
        model = keras.Sequential([keras.Input([6]), *layers])
        model.compile(OPTIMIZERS[name](), "sparse_categorical_crossentropy", jit_compile=False)
        return model

    x, y = tiny.data(100)
    ours, theirs = compiled(), compiled()
    history = loops.fit(ours, x, y, epochs=3, shuffle=False, verbose=0, compile="graph")
    expected = theirs.fit(x, y, epochs=3, shuffle=False, verbose=0)
    assert history.history == expected.history
    tiny.assert_same_bits([v.numpy() for v in ours.variables], [v.numpy() for v in theirs.variables])
    tiny.assert_same_bits([v.numpy() for v in ours.optimizer.variables], [v.numpy() for v in theirs.optimizer.variables])
    assert bool(fused) == (name != "clipped sgd")


def test_sparse_gradients_and_other_types_are_left_to_keras(size, fused):
    sparse = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([1, 4]), tf.constant([7, 2]))
    gradients = [sparse, tf.ones([3], tf.float64), tf.ones([4])]

    def updated(apply):
        variables = [
            keras.Variable(np.ones([7, 2], "float32")),
            keras.Variable(np.ones([3]), dtype="float64"),
            keras.Variable(np.ones([4], "float32")),
        ]
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(variables)
        tf.function(lambda: apply(optimizer, list(zip(gradients, variables, strict=True))))()
        return [v.numpy() for v in variables]

    tiny.assert_same_bits(updated(fused_updates.apply_gradients), updated(lambda optimizer, pairs: optimizer.apply_gradients(pairs)))
    assert fused == ["_adam"]


@pytest.mark.parametrize(
    "optimizer",
    [lambda: keras.optimizers.Adam(amsgrad=True), keras.optimizers.Nadam, keras.optimizers.RMSprop],
    ids=["amsgrad", "nadam", "rmsprop"],
)
def test_other_optimizers_are_left_alone(optimizer):
    assert fused_updates._update_of(optimizer()) is None


def test_a_users_own_update_is_left_alone():
    class Mine(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(gradient)

    assert fused_updates._update_of(Mine()) is None
    patched = keras.optimizers.SGD()
    vars(patched)["update_step"] = lambda gradient, variable, learning_rate: None
    assert fused_updates._update_of(patched) is None


def test_the_optimizer_is_as_it_was_afterwards():
    optimizer, variable = keras.optimizers.SGD(0.1), keras.Variable([1.0, 2.0])
    optimizer.build([variable])
    before = set(vars(optimizer))
    tf.function(lambda: fused_updates.apply_gradients(optimizer, [(tf.ones([2]), variable)]))()
    assert variable.numpy().tolist() == pytest.approx([0.9, 1.9])
    assert set(vars(optimizer)) == before


def test_small_models_are_not_worth_a_program():
    loop = loops.TrainLoop(tiny.Classifier(keras.optimizers.Adam()), loops.ArrayFeed(tiny.data(100)))
    loop.run(steps=1)
    calls = [op for op in loop.graph.get_operations() if "PartitionedCall" in op.type]
    assert not any(op.get_attr("_XlaMustCompile") for op in calls)
