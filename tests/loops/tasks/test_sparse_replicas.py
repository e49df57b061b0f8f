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
