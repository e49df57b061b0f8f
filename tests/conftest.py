"""Test session set-up: two logical CPU devices for strategies, quiet logs, and a clean Keras session for every test."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

_CPU = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_CPU, [tf.config.LogicalDeviceConfiguration()] * 2)


def pytest_collection_finish(session):
    """What was imported stays: that the garbage collector walks it again and again, at every 700 objects, takes a fortieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def _fresh_keras_session():
    keras.utils.clear_session(free_memory=False)  # collecting garbage at every test would take a fifth of the time
    yield
    assert not tf.summary.should_record_summaries(), "A default writer of tf.summary is left; later tests would write to it."


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for the whole session: collectives of a second one in the same process would collide with the first's."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def one_device():
    return tf.distribute.get_strategy()
