"""Sparse gradients under two replicas: those of embeddings and of sparse features, whose sizes differ from replica to replica."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 20, [21, 3])
ROWS = (RNG.normal(size=[21, 6]) * (RNG.random([21, 6]) < 0.4)).astype("float32")
Y = IDS.sum(1, keepdims=True).astype("float32") / 30


def embedding():
    return keras.Sequential([keras.Input([3]), keras.layers.Embedding(20, 4), keras.layers.Flatten(), keras.layers.Dense(1)])


def of_sparse_features():
    return keras.Sequential([keras.Input([6], sparse=True), keras.layers.Dense(1)])


# The batch size divides the number of examples, or not; of a batch of 7 one replica gets 4 examples, the other 3.
@pytest.mark.parametrize("batch_size", [7, 5])
@pytest.mark.parametrize("kind", ["embedding", "sparse"])
def test_they_train_as_on_one_device(kind, batch_size, one_device, two_replicas):
    make, x = (embedding, IDS) if kind == "embedding" else (of_sparse_features, tf.sparse.from_dense(ROWS))
    results = []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            model = make()
            model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        shapes = [weights.shape for weights in model.get_weights()]
        model.set_weights([np.linspace(-0.3, 0.3, int(np.prod(shape))).reshape(shape) for shape in shapes])
        history = loops.fit(model, x, Y, batch_size=batch_size, epochs=2, shuffle=False, verbose=0, compile="graph")
        predicted = loops.predict(model, x, batch_size=batch_size)
        results.append((history.history["loss"], predicted))
    (loss, predicted), (of_two, predicted_by_two) = results
    np.testing.assert_allclose(of_two, loss, rtol=1e-5)
    np.testing.assert_allclose(predicted_by_two, predicted, rtol=1e-4, atol=1e-5)


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.05),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "clipped": lambda: keras.optimizers.RMSprop(0.05, global_clipnorm=0.01),
    "clipped values": lambda: keras.optimizers.Adam(0.05, clipvalue=1e-3),
    "accumulated": lambda: keras.optimizers.Adam(0.05, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.05, clipnorm=0.01)),
    "averaged": lambda: keras.optimizers.Adam(0.05, use_ema=True),
}


class When(loops.Task):
    """Skips every third update."""

    def __init__(self, model, optimizer):
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            loss = self.compute_loss("mse", batch[1], self.model(batch[0]))
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables, when=self.step % 3 != 1)
        return {"loss": loss}


@pytest.mark.parametrize(
    ("name", "compile", "batch_size"),
    [*((name, "graph", 7) for name in OPTIMIZERS), ("adam", "graph", 8), ("adam", "eager", 7), ("adam", "xla", 8), ("when", "graph", 7)],
)
def test_tokens_that_occur_often_count_as_on_one_device(name, compile, batch_size, one_device, two_replicas):
    rng = np.random.default_rng(0)
    x, y, found = rng.integers(0, 4, size=[11, 3]), rng.normal(size=[11, 1]).astype("float32"), []
    for strategy in (one_device, two_replicas):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            layers = [keras.layers.Embedding(6, 2), keras.layers.Flatten(), keras.layers.Dense(1)]
            model = keras.Sequential([keras.Input([3], dtype="int32"), *layers])
            optimizer = OPTIMIZERS.get(name, OPTIMIZERS["adam"])()
            task = When(model, optimizer) if name == "when" else loops.SupervisedTask(model, loss="mse", optimizer=optimizer)
        loop = loops.TrainLoop(task, loops.ArrayFeed((x, y), batch_size, shuffle=False), strategy=strategy, compile=compile)
        history = loop.run(epochs=2).history
        found.append([history["loss"], *model.get_weights()])
    for value, expected in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
