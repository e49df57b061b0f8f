"""Dropout and DropPath: the battery, and chi-square tests of the masks over elements, steps, replicas and seeds."""

from __future__ import annotations

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from layers.dropout import Dropout, DropPath
from layers.random_bits import random_bits, random_normal, random_uniform
from layers.testing import BrokenLayer
from tests.layers.house import check_layer
from tests.layers.mutations import mutant

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((6, 5, 4))
SETTINGS = {
    "oracle": lambda layer, x: x,
    "stochastic": True,
    "degenerate": {"rate 0": ({"rate": 0.0}, lambda layer, x: x)},
    "invalid": [{"rate": -0.1}, {"rate": 1.0}, {"rate": float("nan")}],
}


@pytest.mark.parametrize("kind", [Dropout, DropPath])
def test_the_battery_passes(kind, battery):
    check_layer(functools.partial(kind, rate=0.4, seed=1), INPUTS, **battery, **SETTINGS)


def test_dropout_of_whole_features_passes_it_too():
    only = ["config", "oracle", "gradient", "unknown_dimensions", "policies", "keras_file", "single_example"]
    check_layer(functools.partial(Dropout, rate=0.4, noise_shape=(None, 1, None), seed=1), INPUTS, only=only, **SETTINGS)


MUTATIONS = {
    "not the identity at inference": (Dropout, "inputs)\n        shape = tf.shape(", "-inputs)\n        shape = tf.shape(", "oracle"),
    "same mask on each replica": (Dropout, "replica_seed(generator)", "generator.next()", "replica_noise"),
    "counter stands still": (Dropout, "replica_seed(generator)", "generator.state.value", "seeds"),
    "gradient stopped": (Dropout, "return inputs * (tf.cast", "return tf.stop_gradient(inputs) * (tf.cast", "gradient"),
    "half precision": (DropPath, "tf.cast(keep, inputs.dtype)", "tf.cast(keep, tf.float32)", "policies"),
    "config": (DropPath, '"rate": self.rate, "seed"', '"seed"', "config"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_battery_notices(name, two_replicas):
    kind, old, new, found_by = MUTATIONS[name]
    with pytest.raises(BrokenLayer) as caught:
        check_layer(functools.partial(mutant(kind, old, new), rate=0.4, seed=1), INPUTS, strategy=two_replicas, only=[found_by], **SETTINGS)
    assert [*caught.value.broken] == [found_by]


# The masks. Seeds are fixed, so that nothing here is left to chance; p-values of right masks are uniform, those of wrong ones vanish.

STEPS, SIZE, RATE = 2000, 96, 0.3


def masks(layer, seeds, steps=STEPS, shape=(SIZE,)):
    """What is kept in consecutive calls, bool `[steps, *shape]`, with the layer as it begins with each of the seeds."""

    @tf.function(autograph=False)
    def calls(x):
        return tf.map_fn(lambda _: layer(x, training=True), tf.range(steps), fn_output_signature=x.dtype, parallel_iterations=1)

    for seed in seeds:
        layer.seed_generator.state.assign(keras.random.SeedGenerator(seed).state)
        yield calls(tf.ones(shape)).numpy() > 0


def p_of_counts(kept):
    """That every column of `[n, columns]` is kept equally often, at the rate."""
    n, counts = len(kept), kept.sum(0)
    expected = n * (1 - RATE)
    return stats.chi2.sf(((counts - expected) ** 2 / expected / RATE).sum(), counts.size)


def p_of_independence(one, other):
    """That two series of masks have nothing to do with each other: 2x2 contingency table."""
    table = [[np.sum((one == i) & (other == j)) for j in (False, True)] for i in (False, True)]
    return stats.chi2_contingency(table, correction=False).pvalue


def p_values(kept):
    """Of all the ways in which masks of consecutive steps could be wrong."""
    found = {"elements": p_of_counts(kept), "steps": p_of_counts(kept.T)}
    found |= {f"steps {lag} apart": p_of_independence(kept[lag:], kept[:-lag]) for lag in (1, 2, 3, 4, 8, 16, 64, 256)}
    found |= {f"elements {lag} apart": p_of_independence(kept[:, lag:], kept[:, :-lag]) for lag in (1, 2, 3, 4, 8, 16, 32, 64)}
    found |= {f"shifted by {lag}": p_of_independence(kept[1:, lag:], kept[:-1, :-lag]) for lag in (1, 2, 7, 16)}
    words = kept[:, : SIZE // 8 * 8].reshape(-1, 8) @ (1 << np.arange(8))  # every pattern of 8 neighbours
    probability = np.array([np.prod([1 - RATE if w >> i & 1 else RATE for i in range(8)]) for w in range(256)])
    found["patterns"] = stats.chisquare(np.bincount(words, minlength=256), len(words) * probability).pvalue
    return found


def test_masks_of_steps_and_elements_are_independent_and_have_the_rate():
    found = [p for kept in masks(Dropout(rate=RATE), range(12)) for p in p_values(kept).values()]
    assert min(found) > 1e-3 / len(found)  # Bonferroni
    assert stats.kstest(found, "uniform").pvalue > 1e-3


WRONG_BITS = {
    "no shift": ("return (x ^ tf.bitwise.right_shift(x, tf.constant(_SHIFTS[i], tf.uint32))) *", "return x *"),
    "neither key is mixed": ("keys = _mix((pair * own + tf.gather(pair, [1, 0]) * other) ^ offsets)", "keys = pair"),
}


def p_values_of_bits(bits):
    steps = tf.stack([tf.zeros([STEPS], tf.int32), tf.range(STEPS)], 1)
    drawn = tf.function(lambda seeds: tf.map_fn(lambda seed: bits([SIZE], seed), seeds, fn_output_signature=tf.uint32), autograph=False)(
        steps
    )
    return p_values(drawn.numpy() >= round(RATE * 2**32))


@pytest.mark.parametrize("name", WRONG_BITS)
def test_the_chi_square_tests_notice_bits_that_are_not_random(name):
    assert min(p_values_of_bits(mutant(random_bits, *WRONG_BITS[name])).values()) < 1e-9


def p_values_of_large_masks(bits, seeds):
    """Of elements far apart, as neighbours in the next row or the next example are; at a rate of a half, which is the first bit."""
    draw = tf.function(lambda seed: bits([2**20], seed) >= 2**31, autograph=False)
    lags, found = [*(2**i for i in range(20)), 300, 768, 1000, 1536, 3072], []
    for seed in seeds:
        kept = draw(tf.constant([seed, 0])).numpy()
        found += [p_of_independence(kept[lag:], kept[:-lag]) for lag in lags]
    return found


def test_elements_far_apart_are_independent():
    found = p_values_of_large_masks(random_bits, range(3))
    assert min(found) > 1e-3 / len(found)


@pytest.mark.parametrize(
    "old, new",
    [
        ("* tf.constant(_SPREAD, tf.uint32)", ""),
        ("_round(_round(index + keys[0], 0) + keys[1], 1)", "_round(index + keys[0] + keys[1], 0)"),
    ],
    ids=["index not spread", "one round only"],
)
def test_the_chi_square_tests_notice_elements_that_are_not_independent(old, new):
    assert min(p_values_of_large_masks(mutant(random_bits, old, new), [1])) < 1e-9


def test_masks_of_replicas_are_independent(two_replicas):
    with two_replicas.scope():
        layer = Dropout(rate=RATE, seed=3)
    ones = tf.ones([SIZE])

    @tf.function
    def run():
        per_step = [two_replicas.run(lambda: layer(ones, training=True)) for _ in range(5)]
        return [tf.stack([two_replicas.experimental_local_results(step)[i] for step in per_step]) for i in range(2)]

    drawn = [run() for _ in range(200)]
    first, second = (np.concatenate([d[i].numpy() for d in drawn]) > 0 for i in range(2))
    assert p_of_counts(first) > 1e-3 and p_of_counts(second) > 1e-3
    for lag in (0, 1, 2):
        assert p_of_independence(first[lag:], second[: len(second) - lag]) > 1e-3
        assert p_of_independence(second[lag:], first[: len(first) - lag]) > 1e-3
    assert p_of_independence(first, first) < 1e-300  # what Keras's Dropout does


def test_masks_of_seeds_are_independent():
    for one, other in itertools.combinations(masks(Dropout(rate=RATE), (0, 1, 2, 2**31 - 1), steps=300), 2):
        assert p_of_independence(one, other) > 1e-3


def test_the_expectation_is_kept():
    x = tf.constant(RANDOM.standard_normal((1000, 300)), tf.float32)
    for rate in (0.1, 0.5, 0.9):
        ones = Dropout(rate=rate, seed=1)(tf.ones_like(x), training=True).numpy()
        assert abs(ones.mean() - 1) < 4 * np.sqrt(rate / (1 - rate) / ones.size)
        np.testing.assert_allclose(ones.var(), rate / (1 - rate), rtol=0.02)
        assert set(np.unique(ones)) == {np.float32(0), np.float32(1 / (1 - rate))}


def test_droppath_drops_whole_examples_and_keeps_the_expectation():
    x = np.abs(RANDOM.standard_normal((20_000, 2, 3))).astype("float32") + 0.1
    y = DropPath(rate=RATE, seed=4)(x, training=True).numpy()
    dropped = (y == 0).all((1, 2))
    np.testing.assert_allclose(y[~dropped], x[~dropped] / (1 - RATE), rtol=1e-6)
    assert stats.binomtest(int(dropped.sum()), len(x), RATE).pvalue > 1e-3
    (kept,) = masks(DropPath(rate=RATE), [5], shape=(SIZE, 1))
    found = p_values(kept[..., 0])
    assert min(found.values()) > 1e-3 / len(found)


def test_a_mask_is_shared_where_noise_shape_says_so():
    y = Dropout(rate=0.5, noise_shape=(None, 1, None), seed=6)(tf.ones([8, 7, 5]), training=True).numpy()
    assert (y == y[:, :1]).all() and len(np.unique(y[:, 0], axis=0)) > 4
    with pytest.raises(ValueError, match="`noise_shape` is .* does not fit"):
        Dropout(rate=0.5, noise_shape=(None, 3))(tf.ones([2, 4]))


def test_the_mask_is_the_same_in_every_mode_and_after_a_restart(tmp_path):
    x = tf.ones([16, 33])
    eager, graph, compiled, unknown = (Dropout(rate=RATE, seed=7) for _ in range(4))
    specs = [tf.TensorSpec([None, None])]
    calls = [
        lambda x: eager(x, training=True),
        tf.function(lambda x: graph(x, training=True)),
        tf.function(lambda x: compiled(x, training=True), jit_compile=True),
        tf.function(lambda x: unknown(x, training=True), input_signature=specs),
    ]
    for _ in range(3):
        first, *others = (call(x).numpy() for call in calls)
        for other in others:
            np.testing.assert_array_equal(first, other)
    path = tf.train.Checkpoint(layer=eager).write(str(tmp_path / "layer"))
    expected = eager(x, training=True)
    again = Dropout(rate=RATE, seed=99)
    tf.train.Checkpoint(layer=again).read(path).assert_consumed()
    np.testing.assert_array_equal(again(x, training=True), expected)


def test_uniform_numbers_are_uniform_and_open():
    for dtype in ("float32", "float64"):
        u = random_uniform([200_000], tf.constant([5, 6]), dtype).numpy()
        assert u.dtype == dtype and u.min() > 0 and u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-3
    extremes = tf.constant([0, 2**23 - 1])
    low, high = ((tf.cast(extremes, tf.float32) + 0.5) * 2.0**-23).numpy()
    assert low > 0 and high < 1 and np.isfinite(np.log([low, 1 - high])).all()


def test_normal_numbers_are_normal_finite_and_others_for_other_seeds():
    for dtype in ("float32", "float64"):
        first, second = (random_normal([400, 500], tf.constant([5, i]), dtype).numpy().ravel() for i in (6, 7))
        assert first.dtype == dtype and np.abs(first).max() < 5.8
        assert stats.kstest(first, "norm").pvalue > 1e-3
        assert stats.pearsonr(first, second).pvalue > 1e-3 and stats.pearsonr(first**2, second**2).pvalue > 1e-3
        # The two halves are sines and cosines of the same angles.
        halves = np.split(first, 2)
        assert stats.pearsonr(*halves).pvalue > 1e-3 and stats.pearsonr(*(h**2 for h in halves)).pvalue > 1e-3
        assert stats.kstest(halves[0], "norm").pvalue > 1e-3 and stats.kstest(halves[1], "norm").pvalue > 1e-3
        narrow = mutant(random_normal, "-2.0 * ", "-1.0 * ")([400, 500], tf.constant([5, 6]), dtype).numpy().ravel()
        assert stats.kstest(narrow, "norm").pvalue < 1e-9


@pytest.mark.parametrize("shape", [[], [1], [7], [3, 5]], ids=str)
def test_any_number_of_normal_numbers_can_be_had(shape):
    assert random_normal(shape, tf.constant([1, 2])).shape == shape


def test_it_stands_in_for_the_dropout_of_keras():
    ours, theirs = Dropout(rate=0.25, seed=1), keras.layers.Dropout(0.25, seed=1)
    x = tf.constant(RANDOM.standard_normal((300, 200)), tf.float32)
    for training in (False, True):
        mine, other = (np.sort(layer(x, training=training)[x != 0]) for layer in (ours, theirs))
        assert len(ours.weights) == len(theirs.weights) == 0
        assert stats.ks_2samp(mine, other).pvalue > 1e-3
