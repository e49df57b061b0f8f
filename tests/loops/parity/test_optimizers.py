"""`loops.fit` gives the bits of `model.fit` for the settings of optimizers: schedules, clipping, averaging, accumulation, scaling."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from tests.loops.parity.harness import assert_parity

RNG = np.random.default_rng(4)
DATA = {"x": RNG.normal(size=(80, 4)).astype("float32"), "y": RNG.normal(size=(80, 1)).astype("float32"), "epochs": 2, "batch_size": 16}


def regression(optimizer: keras.optimizers.Optimizer) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="tanh"), layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def decay(kind: str) -> keras.optimizers.schedules.LearningRateSchedule:
    schedules = keras.optimizers.schedules
    return {
        "exponential": schedules.ExponentialDecay(0.1, 3, 0.7),
        "staircase": schedules.ExponentialDecay(0.1, 3, 0.5, staircase=True),
        "piecewise": schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.01, 0.05]),
        "polynomial": schedules.PolynomialDecay(0.1, 6, power=2.0, cycle=True),
        "inverse time": schedules.InverseTimeDecay(0.1, 2, 0.5),
        "cosine with warm-up": schedules.CosineDecay(0.0, 6, warmup_target=0.1, warmup_steps=3),
        "restarts": schedules.CosineDecayRestarts(0.1, 3),
    }[kind]


@pytest.mark.parametrize("kind", ["exponential", "staircase", "piecewise", "polynomial", "inverse time", "cosine with warm-up", "restarts"])
def test_schedules(kind):
    assert_parity(lambda: regression(keras.optimizers.SGD(decay(kind))), DATA)


SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
OPTIMIZERS = {
    "momentum": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True),
    "clipnorm": lambda: SGD(0.1, clipnorm=0.1),
    "clipvalue": lambda: SGD(0.1, clipvalue=0.01),
    "global clipnorm": lambda: SGD(0.1, global_clipnorm=0.1),
    "weight decay": lambda: SGD(0.1, weight_decay=0.01),
    "weight decay, decoupled": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "amsgrad": lambda: Adam(0.01, amsgrad=True),
    "centered": lambda: keras.optimizers.RMSprop(0.01, centered=True, momentum=0.5),
    "ema": lambda: Adam(0.01, use_ema=True, ema_momentum=0.8),
    "ema, overwriting every 3 steps": lambda: SGD(0.1, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3),
    "accumulation": lambda: SGD(0.1, gradient_accumulation_steps=3),
    "accumulation with adam": lambda: Adam(0.01, gradient_accumulation_steps=2, clipnorm=0.5),
    "schedule, ema, clipping, decay": lambda: Adam(decay("cosine with warm-up"), use_ema=True, global_clipnorm=0.2, weight_decay=0.01),
    "static loss scale": lambda: SGD(0.1, loss_scale_factor=64.0),
    "dynamic loss scale": lambda: keras.optimizers.LossScaleOptimizer(Adam(0.01), initial_scale=2.0**9, dynamic_growth_steps=2),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_settings_of_optimizers(make_optimizer):
    assert_parity(lambda: regression(make_optimizer()), DATA)


def test_an_optimizer_for_each_part_of_the_model():
    def make():
        parts = keras.optimizers.OptimizerMap(Adam(0.01), {".*/bias": SGD(0.1, momentum=0.9)})
        return regression(keras.optimizers.MultiOptimizer(parts))

    assert_parity(make, DATA)
