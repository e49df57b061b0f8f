"""`compute_loss` is the loss that `compile(loss=...)` computes; in a task's own step no Keras loss knows of replicas."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from tests.loops.sampling import sample

NAMES = [
    "mse",
    "mae",
    "mape",
    "msle",
    "huber",
    "log_cosh",
    "hinge",
    "squared_hinge",
    "categorical_hinge",
    "poisson",
    "kl_divergence",
    "cosine_similarity",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "sparse_categorical_crossentropy",
    "dice",
    "tversky",
    "crossentropy",
]


def own_loss(y, y_pred):
    return keras.ops.mean(keras.ops.abs(y - y_pred) ** 3, axis=-1)


def compiled(loss, y, y_pred, sample_weight=None):
    """What `model.evaluate` says of a model that returns its input."""
    inputs = keras.Input(y_pred.shape[1:], dtype=str(y_pred.dtype))
    model = keras.Model(inputs, keras.layers.Identity(dtype="float32" if y_pred.dtype == np.float32 else "float16")(inputs))
    model.compile(loss=loss)
    return model.evaluate(y_pred, y, sample_weight=sample_weight, batch_size=len(y), verbose=0)


LOSSES = {**{name: name for name in NAMES}, "own_loss": own_loss}


# One of each family, of each kind of targets, and the one that the shapes choose.
FAMILIES = ["mse", "hinge", "kl_divergence", "dice", "sparse_categorical_crossentropy", "crossentropy", "own_loss"]


@pytest.mark.parametrize("loss", sample(LOSSES, *FAMILIES, values=True))
def test_a_loss_by_name_is_that_of_compile(loss):
    rng = np.random.default_rng(0)
    y_pred = rng.dirichlet(np.ones(3), 4).astype("float32")
    y = rng.integers(0, 3, 4)
    y = y if "sparse" in str(loss) or loss == "crossentropy" else np.eye(3, dtype="float32")[y]
    for weights in (None, np.array([1.0, 2.0, 0.5, 3.0], "float32")):
        for prediction in (y_pred, y_pred.astype("float16")):
            found = loops.Task().compute_loss(loss, tf.constant(y), tf.constant(prediction), weights)
            assert found.dtype == tf.float32
            np.testing.assert_allclose(found, compiled(loss, y, prediction, weights), rtol=1e-6)


@pytest.mark.parametrize("y_shape", [(4,), (4, 1)])
@pytest.mark.parametrize("w_shape", [(4,), (4, 1)])
@pytest.mark.parametrize("loss", ["mse", "hinge", "binary_crossentropy"])
def test_ranks_are_aligned_as_in_compile(loss, y_shape, w_shape):
    y, y_pred, weights = np.array([1.0, 0.0, 1.0, 0.0], "float32"), np.array([[0.9], [0.8], [0.2], [0.4]], "float32"), np.arange(1.0, 5.0)
    found = loops.Task().compute_loss(loss, y.reshape(y_shape), y_pred, weights.reshape(w_shape).astype("float32"))
    np.testing.assert_allclose(found, compiled(loss, y, y_pred, weights), rtol=1e-6)


def test_what_the_model_masks_does_not_count():
    ids, y = np.array([[1, 2, 0, 0], [3, 0, 0, 0]]), np.array([[1, 2, 3, 4], [3, 1, 1, 1]])
    model = keras.Sequential([keras.layers.Embedding(5, 3, mask_zero=True), keras.layers.Dense(5, activation="softmax")])
    model.compile(loss="sparse_categorical_crossentropy")
    found = loops.Task().compute_loss("sparse_categorical_crossentropy", y, model(ids))
    np.testing.assert_allclose(found, model.evaluate(ids, y, verbose=0), rtol=1e-6)


class CallsLosses(loops.Task):
    """Computes one loss in several ways, and with a model's own `compute_loss`."""

    def __init__(self):
        super().__init__()
        self.model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, "linear", True, "ones", kernel_regularizer="l2")])
        self.model.compile(loss="mse")
        self.mse = keras.losses.MeanSquaredError()

    def train_step(self, batch):
        x, y = batch
        y_pred = self.model(x)
        by_hand = tf.reduce_mean((y - y_pred) ** 2)
        return {
            "by_hand": by_hand,
            "called": self.mse(y, y_pred),
            "by_name": self.compute_loss("mse", y, y_pred),
            "by_object": self.compute_loss(self.mse, y, y_pred),
            "of_model": self.model.compute_loss(x, y, y_pred) - self.losses_of(self.model),
        }

    eval_step = train_step


@pytest.mark.parametrize("examples", [16, 15])
def test_every_keras_loss_is_the_mean_over_the_replicas_own_examples(two_replicas, examples):
    x = np.arange(examples, dtype="float32")[:, None]
    feed = loops.ArrayFeed((x, x * 3), 8)
    with two_replicas.scope():
        loop = loops.TrainLoop(CallsLosses(), feed, evaluate={"val": feed}, strategy=two_replicas, compile="graph")
    history = loop.run(epochs=1).history
    assert len(history) == 10
    for values in history.values():
        np.testing.assert_allclose(values, [np.mean((2 * x) ** 2)], rtol=1e-6)


class OwnStep(keras.Model):
    """The step of Keras's guide: it may rely on Keras's division by the number of replicas."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        return {"loss": loss}


def test_an_own_step_of_a_model_keeps_keras_s_meaning(two_replicas):
    x = np.arange(16, dtype="float32")[:, None]
    weights = []
    for fit in (lambda model, **kwargs: model.fit(x, x * 3, **kwargs), lambda model, **kwargs: loops.fit(model, x, x * 3, **kwargs)):
        with two_replicas.scope():
            model = OwnStep()
            model.compile(keras.optimizers.SGD(1e-3), loss="mse")
        fit(model, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(*weights, rtol=1e-6)


def test_a_loss_that_is_no_scalar_is_refused():
    class Vector(loops.Task):
        def __init__(self, wrong):
            super().__init__()
            self.w, self.optimizer, self.wrong = keras.Variable([0.0]), keras.optimizers.SGD(0.1), wrong

        def train_step(self, x):
            with tf.GradientTape() as tape:
                loss = self.wrong(keras.losses.mean_squared_error(x, x * self.w))
            self.minimize(loss, tape, self.optimizer, [self.w])
            return {"loss": tf.reduce_mean(loss)}

    def train(wrong):
        task = Vector(wrong)
        loops.TrainLoop(task, loops.ArrayFeed(np.ones([32, 1], "float32")), compile="graph").run(steps=1)
        return float(task.w.numpy()[0])

    with pytest.raises(ValueError, match=r"`loss` has the shape \(32,\).* tf.reduce_mean\(loss\)"):
        train(lambda loss: loss)
    with pytest.raises(ValueError, match=r"the shape \(32, 1\)"):
        train(lambda loss: loss[:, None])
    with pytest.raises(TypeError, match="scalar tensor that the tape recorded; got float"):
        train(lambda loss: 1.0)
    assert train(tf.reduce_mean) == pytest.approx(0.2)


# A last batch that leaves a replica empty; one that is cut 3 + 2; whole batches.
EXAMPLES = [17, 21, pytest.param(16, marks=pytest.mark.matrix)]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_a_compiled_sum_is_the_sum_over_all_replicas(one_device, two_replicas, examples):
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=[examples, 3]).astype("float32"), rng.uniform(size=examples).astype("float32")
    found = []
    for strategy in (None, one_device, two_replicas):
        with (strategy or one_device).scope():
            model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1, kernel_initializer="ones")])
            model.compile(keras.optimizers.SGD(0.003), keras.losses.MeanSquaredError(reduction="sum"))
        arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, "sample_weight": weights}
        fit = model.fit if strategy is None else functools.partial(loops.fit, model)
        history = fit(x, 2 * x[:, :1], validation_data=(x, x[:, :1]), **arguments).history
        found.append([history["loss"], history["val_loss"], *model.get_weights()])
    for other in found[1:]:
        for value, expected in zip(other, found[0], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("scalar", [True, False])
def test_a_loss_function_that_returns_a_scalar_counts_as_a_mean_which_is_said(one_device, two_replicas, scalar, capsys):
    def squares(y, y_pred):
        return tf.reduce_mean(tf.square(y - y_pred), None if scalar else -1)

    x, found = np.random.default_rng(0).normal(size=[11, 3]).astype("float32"), []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1, kernel_initializer="ones")])
            model.compile(keras.optimizers.SGD(0.1), squares)
        history = loops.fit(model, x, x[:, :1], batch_size=4, epochs=2, shuffle=False, verbose=0, compile="graph").history
        found.append([history["loss"], *model.get_weights()])
        said = capsys.readouterr().out.count("returned one number for the batch")
        assert said == (strategy is two_replicas and scalar)
    for value, expected in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_batches_of_one_example_leave_a_replica_without(one_device, two_replicas, compile):
    x, found = np.random.default_rng(0).normal(size=[3, 1]).astype("float32"), []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            task = CallsLosses()
        loop = loops.TrainLoop(task, loops.ArrayFeed((x, x * 3), 1, shuffle=False), strategy=strategy, compile=compile)
        found.append(loop.run(epochs=1).history["called"])
    np.testing.assert_allclose(*found, rtol=1e-5)


class Sums(loops.Task):
    def __init__(self):
        super().__init__()
        self.loss = keras.losses.MeanSquaredError(reduction="sum")

    def train_step(self, x):
        loss = self.loss(tf.zeros_like(x), x)
        return {"mine": loss, "last": loops.Last(tf.reduce_mean(x)), "sum": loops.Sum(tf.reduce_mean(x))}


def test_a_sum_in_an_own_step_is_that_of_the_replica_which_is_said(two_replicas, capsys):
    x = np.array([[1.0], [2.0], [6.0], [3.0]], "float32")  # cut 2 + 1, and 1 + 0
    history = loops.TrainLoop(Sums(), loops.ArrayFeed(x, 3, shuffle=False), strategy=two_replicas, compile="graph").run(epochs=1).history
    assert 'reduction="sum"' in capsys.readouterr().out
    assert history == {"mine": [(2 * 5 + 1 * 36 + 1 * 9) / 4], "last": [3.0], "sum": [1.5 + 6 + 3]}
    history = (
        loops.TrainLoop(Sums(), loops.ArrayFeed(x[:3], 3, shuffle=False), strategy=two_replicas, compile="graph").run(epochs=1).history
    )
    assert history["last"] == [3.0]  # the mean over the examples, (1 + 2 + 6) / 3


@pytest.mark.parametrize("examples", EXAMPLES)
def test_the_losses_of_several_outputs_are_those_of_one_device(one_device, two_replicas, examples):
    x = np.random.default_rng(0).normal(size=[examples, 3]).astype("float32")
    y, found = {"a": x[:, :1], "b": 3 * x[:, 1:2]}, []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            inputs = keras.Input([3])
            outputs = {name: keras.layers.Dense(1, kernel_initializer="ones", name=name)(inputs) for name in ("a", "b")}
            model = keras.Model(inputs, outputs)
            model.compile(keras.optimizers.SGD(0.01), {"a": "mse", "b": "mae"})
        history = loops.fit(model, x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, compile="graph", validation_data=(x, y)).history
        found.append(history)
    assert {"a_loss", "val_b_loss"} <= found[0].keys()
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("compile", ["xla", "eager"])
def test_the_losses_of_several_outputs_with_a_short_last_batch_are_those_of_fit_in_every_mode(compile):
    x = np.random.default_rng(0).normal(size=[11, 3]).astype("float32")
    y, found = {"a": x[:, :1], "b": 3 * x[:, 1:2]}, []
    for fit in (keras.Model.fit, functools.partial(loops.fit, compile=compile)):
        inputs = keras.Input([3])
        outputs = {name: keras.layers.Dense(1, kernel_initializer="ones", name=name)(inputs) for name in ("a", "b")}
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.SGD(0.01), {"a": "mse", "b": "mae"}, run_eagerly=compile == "eager")
        found.append(fit(model, x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=(x, y)).history)
    assert {"a_loss", "val_b_loss"} <= found[0].keys()
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_optimizer_that_the_step_calls_by_itself_is_refused_where_it_would_add_up_means(two_replicas, replicas):
    class ByItself(CallsLosses):
        def __init__(self):
            super().__init__()
            self.optimizer = keras.optimizers.SGD(1e-3)

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                loss = self.mse(batch[1], self.model(batch[0]))
            variables = self.model.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"loss": loss}

    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    x = np.arange(8, dtype="float32")[:, None]
    with strategy.scope():
        loop = loops.TrainLoop(ByItself(), loops.ArrayFeed((x, x * 3), 8), strategy=strategy, compile="graph")
    if replicas == 1:
        assert loop.run(epochs=1).history["loss"] == [np.mean((2 * x) ** 2)]
        return
    with pytest.raises(ValueError, match="calls SGD by itself, which adds up the gradients of 2 replicas.*self.apply_gradients"):
        loop.run(epochs=1)
    assert "apply" not in vars(loop.task.optimizer)
