"""Two replicas: losses never cross, metrics are those of one device, wherever they are made."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import layers
import loops
from layers.base import masked_mean
from layers.replicas import replica_index, replica_seed, sum_over_replicas
from tests.layers.reporters import Reporter, expected, results

X = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
PARTS = [X[:6], X[6:]]


def distributed(strategy, parts=PARTS):
    return strategy.experimental_distribute_values_from_function(lambda c: tf.constant(parts[c.replica_id_in_sync_group]))


def run(strategy, function, *args, graph=True):
    step = lambda *args: strategy.run(function, args=args)  # noqa: E731
    return strategy.experimental_local_results((tf.function(step) if graph else step)(*args))


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("declare", [True, False], ids=["declared", "made inside of a replica"])
def test_metrics_are_those_of_one_device_and_losses_those_of_the_replica(two_replicas, declare, graph):
    with two_replicas.scope():
        layer = Reporter(declare=declare, name="layer")
        layer.build(X.shape)

    def step(x):
        layer(x)
        assert len(layer.losses) == 1
        return layer.losses[0]

    losses = run(two_replicas, step, distributed(two_replicas), graph=graph)
    np.testing.assert_allclose([float(v) for v in losses], [0.5 * part.mean() for part in PARTS], rtol=1e-5)
    wanted = expected("layer", X)  # the latest call of all replicas is the whole batch
    found = results(layer)
    with two_replicas.scope():
        assert results(layer) == found
    assert {*found} == {*wanted}
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5, err_msg=key)
    for metric in layer.metrics:
        metric.reset_state()
    assert {*results(layer).values()} == {0.0}


def test_a_metric_may_be_made_inside_of_a_loop_in_a_replica(two_replicas):
    with two_replicas.scope():
        layer = Reporter(declare=False, name="layer")
        layer.build(X.shape)

    def steps(x):
        for i in tf.range(2):
            layer(x * tf.cast(i, tf.float32))

    run(two_replicas, steps, distributed(two_replicas))
    np.testing.assert_allclose(results(layer)["layer/sum"], X.sum(), rtol=1e-5)
    np.testing.assert_allclose(results(layer)["layer/max"], X.max(), rtol=1e-5)


def communicating(base):
    class Communicating(base):
        """Adds a loss, waits for the other replica, adds another one."""

        def call(self, inputs):
            self.add_loss(masked_mean(inputs))
            total = sum_over_replicas(tf.reduce_sum(inputs))
            self.add_loss(masked_mean(tf.square(inputs)))
            return inputs + total

    return Communicating()


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "keras"])
def test_losses_do_not_cross_when_a_layer_communicates_while_those_of_keras_do(two_replicas, ours):
    layer = communicating(layers.Layer if ours else keras.layers.Layer)
    seen = []

    def step(x):
        layer(x)
        seen.append(len(layer.losses))
        return tf.stack(list(layer.losses)[:2])

    if not ours:
        with pytest.raises(Exception, match="."):  # tensors of the other replica's graph, or the wrong number
            run(two_replicas, step, distributed(two_replicas))
            assert seen == [2, 2]
        return
    found = run(two_replicas, step, distributed(two_replicas))
    assert seen == [2, 2]
    for losses, part in zip(found, PARTS, strict=True):
        np.testing.assert_allclose(losses, [part.mean(), (part**2).mean()], rtol=1e-5)


def model(declare):
    keras.utils.set_random_seed(1)
    inputs = keras.Input([4])
    built = keras.Model(inputs, keras.layers.Dense(1)(Reporter(declare=declare, name="reporter")(inputs)))
    built.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    return built


SETTINGS = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0}


@functools.cache
def history_of_one_device():
    return model(declare=True).fit(X, X[:, :1], **SETTINGS).history


@pytest.mark.parametrize(
    "trainer, declare",
    [
        pytest.param("keras", True, marks=pytest.mark.matrix),
        ("keras", False),
        ("loops", True),
        pytest.param("loops", False, marks=pytest.mark.matrix),
    ],
    ids=lambda value: value if isinstance(value, str) else "declared" if value else "made inside of a replica",
)
def test_training_on_two_replicas_reports_what_one_device_reports(two_replicas, trainer, declare):
    alone = history_of_one_device()
    with two_replicas.scope():
        mirrored = model(declare)
    if trainer == "keras":
        history = mirrored.fit(X, X[:, :1], **SETTINGS).history
    else:
        history = loops.fit(mirrored, X, X[:, :1], strategy=two_replicas, compile="graph", **SETTINGS).history
    assert {*history} == {*alone}
    for key, values in alone.items():
        if trainer == "loops" or key != "loss":  # Keras sums the layers' losses over replicas
            np.testing.assert_allclose(history[key], values, rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_coefficient_may_be_assigned_between_steps_and_within_one(two_replicas):
    with two_replicas.scope():
        layer = Reporter(name="layer")
        layer.build(X.shape)

    def step(x, rate):
        layer.rate.assign(rate)
        layer(x)
        return layer.losses[0]

    losses = run(two_replicas, step, distributed(two_replicas), tf.constant(2.0))
    np.testing.assert_allclose([float(v) for v in losses], [2.0 * part.mean() for part in PARTS], rtol=1e-5)
    layer.rate.assign(3.0)
    assert [float(v) for v in two_replicas.experimental_local_results(layer.rate.value)] == [3.0, 3.0]


def test_replicas_are_numbered_and_draw_different_noise(two_replicas):
    with two_replicas.scope():
        generator = keras.random.SeedGenerator(3)
    seeds = run(two_replicas, lambda: replica_seed(generator))
    assert np.unique(np.stack(seeds), axis=0).shape == (2, 2)
    assert [int(v) for v in run(two_replicas, lambda: tf.constant(replica_index()))] == [0, 1]
    assert replica_index() == 0
    alone = keras.random.SeedGenerator(3)
    np.testing.assert_array_equal(replica_seed(alone), seeds[0])  # one device draws what the first replica draws


def test_sums_over_replicas_and_outside_of_them(two_replicas):
    def step(x):
        total, count = sum_over_replicas(tf.reduce_sum(x), tf.cast(tf.size(x), tf.float32))
        return total / count

    np.testing.assert_allclose(run(two_replicas, step, distributed(two_replicas)), [X.mean()] * 2, rtol=1e-5)
    assert float(sum_over_replicas(tf.constant(3.0))) == 3.0
