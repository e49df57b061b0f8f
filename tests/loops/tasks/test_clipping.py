"""Clipping bounds the gradient that is applied, also where a batch uses a row of an embedding several times."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops

IDS = np.array([[0, 1, 1], [1, 1, 2], [4, 4, 4], [1, 0, 4]], "int32")
Y = np.array([[1.0], [-2.0], [0.5], [3.0]], "float32")


class Embeds(loops.Task):
    def __init__(self):
        super().__init__()
        keras.utils.set_random_seed(2)
        self.model = keras.Sequential([keras.layers.Embedding(6, 3), keras.layers.Flatten(), keras.layers.Dense(1)])
        self.model.build([None, 3])
        self.optimizer = keras.optimizers.SGD(1.0)

    def train_step(self, batch):
        ids, y = batch
        with tf.GradientTape() as tape:
            loss = self.compute_loss("mse", y, self.model(ids, training=True))
        self.minimize(loss, tape, self.optimizer, self.model.trainable_variables)
        return {"loss": loss}


@functools.cache
def gradient():
    return update(None, "graph")  # the learning rate is 1


def update(clip, mode, strategy=None):
    with (strategy or tf.distribute.get_strategy()).scope():
        task = Embeds()
    before = task.model.get_weights()
    loops.TrainLoop(task, loops.ArrayFeed((IDS, Y), 4), clip=clip, compile=mode).run(steps=1)
    return [b - a for b, a in zip(before, task.model.get_weights(), strict=True)]


IN_EVERY_RUN = {("graph", "global norm"), ("xla", "norm"), ("eager", "value")}


@pytest.mark.parametrize(
    ("mode", "clip"),
    [
        pytest.param(mode, clip, marks=[] if (mode, clip) in IN_EVERY_RUN else [pytest.mark.matrix])
        for mode in ("graph", "xla", "eager")
        for clip in ("global norm", "norm", "value")
    ],
)
def test_rows_used_several_times_are_summed_before_they_are_clipped(mode, clip):
    whole = np.sqrt(sum(np.sum(g**2) for g in gradient()))
    transform, expected = {
        "global norm": (whole / 3, [g / 3 for g in gradient()]),
        "norm": (loops.ClipByNorm(0.5), [g * min(1.0, 0.5 / np.linalg.norm(g)) for g in gradient()]),
        "value": (loops.ClipByValue(0.3), [np.clip(g, -0.3, 0.3) for g in gradient()]),
    }[clip]
    for found, wanted in zip(update(transform, mode), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_on_two_replicas_too(two_replicas):
    whole = float(np.sqrt(sum(np.sum(g**2) for g in gradient())))
    for found, g in zip(update(whole / 3, "graph", two_replicas), gradient(), strict=True):
        np.testing.assert_allclose(found, g / 3, rtol=1e-5, atol=1e-6)
