"""Compiled by XLA, random ops give the numbers of TensorFlow's kernels; what may differ in rounding is distributed as it should be."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from loops.xla import philox
from loops.xla.replaced_ops import FastOps

FLOATS = ("float16", "bfloat16", "float32", "float64")
SEEDS = ([0, 0], [1, 2], [-1, -2], [2**31 - 1, -(2**31)])
LONG_SEEDS = ([2**62 + 12345, -(2**61) - 99], [-1, 2**63 - 1], [7, -7])
MANY = 200_000


def compiled(draw, *arguments):
    """What XLA makes of `draw`, and what the kernels do."""

    @tf.function(jit_compile=True, autograph=False)
    def by_xla(*given):
        with FastOps():
            return draw(*given)

    return by_xla(*arguments), draw(*arguments)


def assert_same_bits(draw, *arguments):
    found, expected = compiled(draw, *arguments)
    tf.nest.map_structure(lambda f, e: np.testing.assert_array_equal(f.numpy(), e.numpy(), strict=True), found, expected)


def test_uniform_numbers_of_all_types_and_shapes_are_the_kernels():
    shapes = [[], [0], [1], [2, 0, 3], [7], [1001]]

    def draw(seed):
        every_type = [tf.random.stateless_uniform([3, 7, 5], seed, dtype=dtype) for dtype in FLOATS]
        return every_type + [tf.random.stateless_uniform(shape, seed) for shape in shapes]

    assert_same_bits(draw, tf.constant([3, -7]))


def test_integers_of_all_types_and_ranges_are_the_kernels():
    def draw(seed):
        full = [tf.random.stateless_uniform([1001], seed, None, None, dtype) for dtype in ("int32", "uint32", "int64", "uint64")]
        for dtype in (tf.int32, tf.int64):
            for low, high in ((-17, 1000), (dtype.min, dtype.max)):
                full.append(tf.random.stateless_uniform([501], seed, low, high, dtype))
        return full

    assert_same_bits(draw, tf.constant([3, -7]))


@pytest.mark.parametrize("seeds", [tf.constant(SEEDS, tf.int32), tf.constant(LONG_SEEDS, tf.int64)], ids=["int32", "int64"])
def test_seeds_lead_to_the_kernels_stream(seeds):
    def draw(seed):
        names = ("auto_select", "philox", None, tf.random.Algorithm.PHILOX) if seeds.dtype == tf.int32 else ("auto_select",)
        numbers = [tf.random.stateless_uniform([5], seed, alg=alg) for alg in names]
        return [*numbers, tf.random.split(seed, 3), tf.random.fold_in(seed, tf.constant(5, seed.dtype))]

    by_xla = tf.function(lambda seed: compiled(draw, seed)[0], autograph=False)
    for seed in seeds:
        tf.nest.map_structure(lambda f, e: np.testing.assert_array_equal(f.numpy(), e.numpy()), by_xla(seed), draw(seed))


def test_masks_shuffles_and_generators_are_the_kernels():
    def draw(x, seed):
        mask = tf.nn.experimental.stateless_dropout(x, 0.3, seed)
        rows = tf.nn.experimental.stateless_dropout(x, 0.3, seed, noise_shape=[tf.shape(x)[0], 1])
        return mask, rows, tf.gather(x, tf.argsort(tf.random.stateless_uniform([tf.shape(x)[0]], seed)))

    assert_same_bits(draw, tf.reshape(tf.range(37.0 * 13), [37, 13]), tf.constant([3, -7]))
    ours, theirs = tf.random.Generator.from_seed(5), tf.random.Generator.from_seed(5)

    @tf.function(jit_compile=True)
    def generated():
        with FastOps():
            return ours.uniform([11]), ours.uniform([3], 0, 9, tf.int64)

    for found, expected in zip(generated(), (theirs.uniform([11]), theirs.uniform([3], 0, 9, tf.int64)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_shapes_that_only_xla_knows_give_the_kernels_numbers():
    @tf.function(input_signature=[tf.TensorSpec([None, 8])])
    def step(x):
        def body(i, x):
            return i + 1, x + tf.random.stateless_uniform(tf.shape(x), tf.stack([i, 5]))

        return tf.while_loop(lambda i, x: i < 3, body, (0, x), shape_invariants=(tf.TensorShape([]), x.shape))[1]

    def by_xla(x):
        with FastOps():
            return step.python_function(x)

    by_xla = tf.function(by_xla, jit_compile=True, input_signature=[tf.TensorSpec([None, 8])])
    for rows in (5, 1, 0):
        np.testing.assert_array_equal(by_xla(tf.zeros([rows, 8])), step(tf.zeros([rows, 8])))


def words(count, key, counter, first=0):
    """Words of the stream, from an even number `first` on."""
    pairs = philox.word_pairs(tf.range((count + 1) // 2, dtype=tf.int64) + first // 2, key, counter)
    return tf.reshape(tf.bitcast(pairs, tf.uint32), [-1])[:count]


@pytest.mark.parametrize("counter", [[2**32 - 3, 0], [2**64 - 3, 5], [2**64 - 2, 2**64 - 1], [2**32 * 5 - 2, 2**32 - 1]])
def test_counters_carry_over_as_in_the_kernel(counter):
    key, counter = tf.constant([0x0123456789ABCDEF], tf.uint64), tf.constant(counter, tf.uint64)
    kernel = tf.raw_ops.StatelessRandomUniformFullIntV2(shape=[41], key=key, counter=counter, alg=1, dtype=tf.uint32)
    np.testing.assert_array_equal(words(41, key, counter), kernel)


def test_elements_beyond_two_to_the_32_blocks_are_those_of_a_counter_further_on():
    key, skipped = tf.constant([99], tf.uint64), 2**32 + 5
    far = words(41, key, tf.constant([7, 1], tf.uint64), 4 * skipped)
    counter = tf.constant([7 + skipped, 1], tf.uint64)
    kernel = tf.raw_ops.StatelessRandomUniformFullIntV2(shape=[41], key=key, counter=counter, alg=1, dtype=tf.uint32)
    np.testing.assert_array_equal(far, kernel)


@pytest.mark.parametrize(
    "counter, key, published",
    [
        ([0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0x85A308D3243F6A88, 0x0370734413198A2E], 0x299F31D0A4093822, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ],
    ids=["zeros", "digits of pi"],
)
def test_blocks_are_those_that_the_authors_of_philox_publish(counter, key, published):
    """The file `kat_vectors` of Random123."""
    found = words(4, tf.constant([key], tf.uint64), tf.constant(counter, tf.uint64))
    np.testing.assert_array_equal(found, np.array(published, np.uint32))


# Logarithm, sine and cosine of XLA are off by a unit in the last place for some numbers; products of such, and their rounding, by another.
ROUNDING = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 2.5e-7, "float64": 5e-16}


@pytest.mark.parametrize("op", [tf.random.stateless_normal, tf.random.stateless_truncated_normal], ids=["normal", "truncated"])
def test_normal_numbers_are_the_kernels_up_to_rounding(op):
    found, expected = compiled(lambda seed: [op([MANY + 1], seed, dtype=dtype) for dtype in FLOATS], tf.constant([3, -7]))
    for dtype, f, e in zip(FLOATS, found, expected, strict=True):
        f, e = np.asarray(tf.cast(f, tf.float64)), np.asarray(tf.cast(e, tf.float64))
        off = np.abs(f - e)
        assert off.max() <= ROUNDING[dtype] * 2, dtype
        assert np.mean(off > 0) < 0.1, dtype


def test_normal_numbers_are_normal_and_truncated_ones_truncated():
    stream = philox.key_and_counter([1, 2])
    i = tf.range(MANY)
    assert stats.kstest(philox.normal(i, *stream), "norm").pvalue > 1e-3
    truncated = philox.truncated_normal(i, *stream).numpy()
    assert np.abs(truncated).max() < 2
    assert stats.kstest(truncated, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3


def test_classes_of_small_batches_are_the_kernels():
    def draw(logits, seed):
        samples = [tf.random.stateless_categorical(logits, n, seed) for n in (0, 1, 50)]
        return [*samples, tf.random.stateless_categorical(logits[:0], 3, seed), tf.random.stateless_categorical(logits, 3, seed, tf.int32)]

    logits = [[-np.inf, 0.3, 1.5, np.nan], [4.0, -100.0, 4.0, 3.0], [1e4, -1e4, 1e4 + 1, np.inf]]
    assert_same_bits(draw, tf.constant(logits), tf.constant([3, -7]))


def test_classes_come_with_their_probabilities():
    probabilities = np.array([[0.2, 0.3, 0.0, 0.5], [0.001, 0.009, 0.29, 0.7]])
    logits = tf.constant(np.log(np.maximum(probabilities, 1e-300)))
    with FastOps():
        drawn = tf.function(lambda: tf.random.stateless_categorical(logits, MANY, [5, 6]), jit_compile=True)()
    for row, p in zip(drawn.numpy(), probabilities, strict=True):
        counts = np.bincount(row, minlength=4)
        assert counts[p == 0].sum() == 0
        assert stats.chisquare(counts[p > 0], MANY * p[p > 0]).pvalue > 1e-3
    assert abs(np.corrcoef(drawn)[0, 1]) < 4 / np.sqrt(MANY), "rows depend on each other"


def test_bytes_are_equally_frequent():
    drawn = words(MANY, *philox.key_and_counter([1, 2])).numpy()
    for place in range(4):
        counts = np.bincount(drawn >> 8 * place & 0xFF, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4, place


def test_steps_elements_and_layers_are_uncorrelated():
    """Layers differ in the first number of the seed, steps in the second."""
    draw = tf.function(lambda seed: philox.uniform(words(4096, *philox.key_and_counter(seed))))
    numbers = np.array([[draw(tf.constant([layer, step])) for step in range(16)] for layer in range(4)], float) - 0.5
    bound = 5 / np.sqrt(12**-2 * 1.0) * 12**-1  # five standard deviations of a mean of products, times the root of their number

    def related(a, b):
        return abs(np.mean(a * b)) * 12 * np.sqrt(a.size)

    assert related(numbers[:, :-1], numbers[:, 1:]) < bound, "steps"
    assert related(numbers[:-1], numbers[1:]) < bound, "layers"
    assert related(numbers[:-1, 1:], numbers[1:, :-1]) < bound, "a layer and the step before of the next"
    for lag in (1, 2, 3, 4, 8, 64, 1024):
        assert related(numbers[..., :-lag], numbers[..., lag:]) < bound, f"elements {lag} apart"
