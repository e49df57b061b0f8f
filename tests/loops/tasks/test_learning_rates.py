"""Learning rates: read, set, scaled; composed with schedules without changing a bit until somebody scales."""

from __future__ import annotations

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from loops import _private_api
from loops.tasks.learning_rates import LearningRates, ScaledSchedule

SCHEDULES = [
    keras.optimizers.schedules.ExponentialDecay(0.3, 7, 0.9),
    keras.optimizers.schedules.CosineDecay(0.3, 50, warmup_target=0.7, warmup_steps=5),
    keras.optimizers.schedules.PiecewiseConstantDecay([3, 10], [0.3, 0.2, 0.1]),
    keras.optimizers.schedules.PolynomialDecay(0.3, 20),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_multiplier_of_one_keeps_every_bit(schedule):
    scaled = ScaledSchedule(schedule)
    plain_of, scaled_of = tf.function(schedule.__call__), tf.function(scaled.__call__)
    for step in range(30):
        at = tf.constant(step, tf.int64)
        assert scaled_of(at).numpy().tobytes() == plain_of(at).numpy().astype("float32").tobytes()


def test_scaling_is_seen_without_a_retrace():
    scaled = ScaledSchedule(SCHEDULES[2])
    rate = tf.function(scaled.__call__)
    before = float(rate(tf.constant(0)))
    scaled.multiplier.assign(0.5)
    assert float(rate(tf.constant(0))) == before * 0.5
    assert rate.experimental_get_tracing_count() == 1


def saved_and_loaded(schedule, factor, folder):
    """The schedule that Keras reads from a model that was saved with a scaled one, and what the file says of it."""
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(schedule), "mse")
    rates = LearningRates({"optimizer": model.optimizer})
    rates.make_scalable()
    rates.scale(factor)
    model.save(folder / "model.keras")
    with zipfile.ZipFile(folder / "model.keras") as file:
        content = file.read("config.json").decode()
    return _private_api.learning_rate_setting(keras.models.load_model(folder / "model.keras").optimizer), content


MORE = [keras.optimizers.schedules.InverseTimeDecay(0.3, 7, 0.5), keras.optimizers.schedules.CosineDecayRestarts(0.3, 10, alpha=0.1)]


@pytest.mark.parametrize("schedule", [*SCHEDULES, *MORE], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_saved_model_holds_keras_own_schedule_with_the_rates_that_it_had(schedule, factor, tmp_path):
    loaded, content = saved_and_loaded(schedule, factor, tmp_path)
    assert type(loaded) is type(schedule) and "Scaled" not in content and "loops" not in content
    if factor == 1.0:
        assert loaded.get_config() == schedule.get_config()
    for step in range(40):
        np.testing.assert_allclose(float(loaded(step)), factor * float(schedule(step)), rtol=1e-6)


@keras.saving.register_keras_serializable(package="test")
class Wave(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, height):
        self.height = height

    def __call__(self, step):
        return self.height + 0.5 * tf.cos(tf.cast(step, tf.float32))

    def get_config(self):
        return {"height": self.height}


def test_the_factor_of_a_schedule_of_ones_own_is_said_to_be_lost(tmp_path):
    assert saved_and_loaded(Wave(1.0), 1.0, tmp_path)[0].height == 1.0
    with pytest.warns(
        UserWarning, match="follows Wave, scaled by 0.5. Which of its arguments are rates is not known, so the factor is not"
    ):
        assert saved_and_loaded(Wave(1.0), 0.5, tmp_path)[0].height == 1.0


def test_numbers_are_set_and_scaled_down_to_the_minimum():
    rates = LearningRates({"a": keras.optimizers.SGD(0.5), "b": keras.optimizers.Adam(0.1)})
    assert rates.scale(0.5, minimum=0.2) == {"a": 0.25}
    assert rates.scale(0.5, minimum=0.2) == {"a": 0.2}
    assert rates.scale(0.5, minimum=0.2) == {}
    rates.set(0.75, name="b")
    assert dict(rates.items()) == {"a": pytest.approx(0.2), "b": 0.75}
    rates.set(0.5)
    assert (float(rates), rates["b"], list(rates), len(rates)) == (0.5, 0.5, ["a", "b"], 2)


def test_the_optimizer_inside_loss_scaling_is_meant():
    inner = keras.optimizers.SGD(0.5)
    rates = LearningRates({"optimizer": keras.optimizers.LossScaleOptimizer(inner)})
    rates.scale(0.5)
    assert float(inner.learning_rate.numpy()) == float(rates) == 0.25


def test_making_scalable_twice_wraps_once_and_leaves_numbers_alone():
    scheduled, constant = keras.optimizers.SGD(SCHEDULES[0]), keras.optimizers.SGD(0.5)
    rates = LearningRates({"scheduled": scheduled, "constant": constant})
    rates.make_scalable()
    wrapper = scheduled._learning_rate
    rates.make_scalable()
    assert scheduled._learning_rate is wrapper and wrapper.schedule is SCHEDULES[0]
    assert isinstance(constant.learning_rate, keras.Variable)


def test_a_minimum_bounds_the_rate_of_a_schedule_at_this_step():
    rates = LearningRates({"optimizer": keras.optimizers.SGD(SCHEDULES[2])})
    rates.make_scalable()
    assert rates.scale(0.1, minimum=0.2) == {"optimizer": 0.2}
    assert float(rates) == pytest.approx(0.2)
    assert rates.scale(0.1, minimum=0.2) == {}


def test_logs_give_the_rate_from_before_changes_since_the_last_update():
    optimizer = keras.optimizers.SGD(0.5)
    rates = LearningRates({"optimizer": optimizer})
    rates.set(0.25)
    optimizer.iterations.assign(10)
    assert rates.logs() == {"learning_rate": 0.25}
    rates.scale(0.5)
    rates.set(0.0625)
    assert rates.logs() == {"learning_rate": 0.25} and float(rates) == 0.0625
    optimizer.iterations.assign(20)
    assert rates.logs() == {"learning_rate": 0.0625}


def test_multipliers_are_state():
    rates = LearningRates({"optimizer": keras.optimizers.SGD(SCHEDULES[0])})
    rates.make_scalable()
    rates.scale(0.25)
    restored = LearningRates({"optimizer": keras.optimizers.SGD(SCHEDULES[0])})
    restored.load_state_dict(rates.state_dict())
    assert float(restored) == float(rates)


def test_what_cannot_be_done_is_said_in_a_sentence():
    scheduled = LearningRates({"optimizer": keras.optimizers.SGD(SCHEDULES[0])})
    with pytest.raises(ValueError, match="'optimizer' follows the schedule ExponentialDecay, so it cannot be set to 0.1"):
        scheduled.set(0.1)
    with pytest.raises(ValueError, match="ExponentialDecay, which cannot be scaled now; call `loop.learning_rate.make_scalable"):
        scheduled.scale(0.1)
    with pytest.raises(KeyError, match="no optimizer 'generator'; the task has \\['optimizer'\\]"):
        scheduled["generator"]
    with pytest.raises(ValueError, match="finite number, got nan"):
        scheduled.set(float("nan"))
    with pytest.raises(ValueError, match="finite factor"):
        scheduled.scale(float("inf"))
    for ask in (float, lambda rates: rates.set(0.1), lambda rates: rates.scale(0.1)):
        with pytest.raises(ValueError, match="The task has no optimizer"):
            ask(LearningRates({}))
    assert LearningRates({}).logs() == {}
