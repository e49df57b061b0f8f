"""Gradient accumulation, and clipping beside loss scaling: what Keras does on one device, on two replicas too."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from tests.loops.sampling import sample

RNG = np.random.default_rng(0)
X = RNG.normal(size=[64, 4]).astype("float32")
Y = (3 * X.sum(1, keepdims=True)).astype("float32")


def model(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])


def weights(trained):
    return np.concatenate([w.ravel() for w in trained.get_weights()])


def by_keras(optimizer, steps=8):
    fitted = model()
    fitted.compile(optimizer, "mse")
    fitted.fit(X[: 8 * steps], Y[: 8 * steps], batch_size=8, shuffle=False, verbose=0)
    return weights(fitted)


def by_loop(optimizer, strategy=None, compile="graph", steps=8, **arguments):
    with (strategy or tf.distribute.get_strategy()).scope():
        trained = model()
        task = loops.SupervisedTask(trained, loss="mse", optimizer=optimizer())
    loops.TrainLoop(task, loops.ArrayFeed((X, Y), 8), compile=compile, strategy=strategy, **arguments).run(steps=steps)
    return weights(trained)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=4),
    "adamw": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1, gradient_accumulation_steps=4),
    "global norm": lambda: keras.optimizers.SGD(0.1, global_clipnorm=1.0, gradient_accumulation_steps=4),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.2, 2, 0.5), gradient_accumulation_steps=4),
}


CASES = {f"{optimizer}, {steps} steps": (optimizer, steps) for optimizer in OPTIMIZERS for steps in (6, 8)}  # within and after a round


@pytest.mark.parametrize("case", sample(CASES, "sgd, 6 steps", "adamw, 8 steps"))
def test_two_replicas_accumulate_as_one_device(two_replicas, case):
    optimizer, steps = CASES[case]
    make = OPTIMIZERS[optimizer]
    expected = by_keras(make(), steps)
    np.testing.assert_array_equal(by_loop(make, steps=steps), expected)
    np.testing.assert_allclose(by_loop(make, two_replicas, steps=steps), expected, atol=1e-6)


@pytest.mark.parametrize("compile", sample(["graph", "xla", "eager"], "graph"))
def test_clip_acts_on_what_was_accumulated_as_the_optimizers_own_clipping_does(compile, two_replicas):
    def plain(**own):
        return lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=4, **own)

    for clip, own in (
        (1.0, {"global_clipnorm": 1.0}),
        (loops.ClipByNorm(0.5), {"clipnorm": 0.5}),
        (loops.ClipByValue(0.2), {"clipvalue": 0.2}),
    ):
        expected = by_keras(plain(**own)())
        np.testing.assert_allclose(by_loop(plain(), compile=compile, clip=clip), expected, atol=1e-6)
        if compile == "graph":
            np.testing.assert_allclose(by_loop(plain(), two_replicas, clip=clip), expected, atol=1e-6)


def test_a_skipped_step_does_not_count_in_a_round(two_replicas):
    class Skips(loops.Task):
        def __init__(self):
            super().__init__()
            self.model, self.optimizer = model(), OPTIMIZERS["sgd"]()

        def train_step(self, batch):
            x, y = batch
            with tf.GradientTape() as tape:
                loss = self.compute_loss("mse", y, self.model(x))
            self.minimize(loss, tape, self.optimizer, self.model.trainable_variables, when=self.step % 2 == 0)
            return {"loss": loss}

    found = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            task = Skips()
        loops.TrainLoop(task, loops.ArrayFeed((X, Y), 4), strategy=strategy, compile="graph").run(steps=14)
        found.append(np.concatenate([np.ravel(np.asarray(v)) for v in [*task.model.variables, *task.optimizer.variables]]))
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize("kind", ["ema", "loss scale"])
def test_what_does_not_work_under_replicas_is_refused_before_the_first_step(two_replicas, kind):
    def make():
        if kind == "ema":
            return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2, use_ema=True)
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))

    with pytest.raises(ValueError, match="Under 2 replicas that works without loss scaling and without use_ema only: take a larger batch"):
        by_loop(make, two_replicas)


CLIPS = {
    "none": None,
    "global norm": 1.0,
    "norm": loops.ClipByNorm(1.0),
    "value": loops.ClipByValue(1.0),
    "own": lambda gradients, variables: [tf.clip_by_value(g, -1.0, 1.0) for g in gradients],
    "sets to zero": lambda gradients, variables: [tf.where(tf.math.is_finite(g), g, 0.0) for g in gradients],
}


ON_TWO = ["global norm", "sets to zero"]  # one of the library's own, and one that hides


@pytest.mark.parametrize(
    "replicas, clips",
    [pytest.param(1, CLIPS, id="1"), pytest.param(2, ON_TWO, id="2"), pytest.param(2, CLIPS, id="2, all", marks=pytest.mark.matrix)],
)
def test_clipping_does_not_hide_an_overflow_from_the_loss_scale(replicas, clips, two_replicas):
    strategy = two_replicas if replicas == 2 else tf.distribute.get_strategy()
    for clip in map(CLIPS.get, clips):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            layers = [keras.layers.Dense(8, dtype="mixed_float16"), keras.layers.Dense(1, dtype="float32")]
            task = loops.SupervisedTask(
                keras.Sequential([keras.Input([4]), *layers]),
                loss="mse",
                optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**30),
            )
        before = weights(task.model)
        feed = loops.ArrayFeed((np.ones([8, 4], "float32"), np.zeros([8, 1], "float32")), 8)
        loops.TrainLoop(task, feed, compile="graph", clip=clip, on_nonfinite="ignore", strategy=strategy).run(steps=1)
        optimizer = task.model.optimizer
        np.testing.assert_array_equal(weights(task.model), before)
        assert (optimizer.dynamic_scale.numpy(), optimizer.inner_optimizer.iterations.numpy()) == (2.0**29, 0)
