"""`tf.data` pipelines of every kind that has a position of its own: what the tests of a resumed dataset read."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

__all__ = ["ALWAYS_SAVED", "NEVER_SAVED", "PIPELINES", "generated", "numbers"]


def numbers(n=20):
    return tf.data.Dataset.range(n)


def shuffled(n=20, seed=7, **more):
    return numbers(n).shuffle(8, seed=seed, **more)


def twice(dataset):
    return numbers(2).flat_map(lambda _: dataset)


def generated():
    return tf.data.Dataset.from_generator(lambda: iter(range(20)), output_signature=tf.TensorSpec([], tf.int64))


def in_python(x):
    return tf.ensure_shape(tf.numpy_function(lambda v: v * 3, [x], tf.int64), [])


def nested():
    return shuffled(5).interleave(lambda x: numbers(4).shuffle(4, seed=2).map(lambda y: y + 10 * x), cycle_length=2)


def noisy(x, seed):
    return x + tf.random.stateless_uniform([], tf.stack([seed, seed]), maxval=1000, dtype=tf.int64)


PIPELINES = {
    "plain": lambda: numbers().batch(3),
    "shuffle": lambda: shuffled().batch(3),
    "static batches": lambda: shuffled().batch(4),
    "the same order in each pass": lambda: shuffled(reshuffle_each_iteration=False).batch(3).prefetch(2),
    "shuffle, parallel map, prefetch": lambda: shuffled().map(lambda x: x * 2, num_parallel_calls=2).batch(3).prefetch(2),
    "a seed from the data": lambda: tf.data.Dataset.zip(shuffled(), tf.data.Dataset.random(seed=3)).map(noisy).batch(3),
    "interleave": lambda: (
        shuffled(5)
        .interleave(lambda x: numbers(4).map(lambda y: y + 10 * x), cycle_length=2, num_parallel_calls=2, deterministic=True)
        .batch(3)
    ),
    "repeat": lambda: numbers(9).batch(2).repeat(2),
    "cache": lambda: numbers().map(lambda x: x + 1).cache().batch(3),
    "cache, shuffle": lambda: numbers().map(lambda x: x + 1).cache().shuffle(20, seed=5).batch(3),
    "filter": lambda: shuffled().filter(lambda x: x % 3 > 0).batch(3),
    "filter, prefetch": lambda: shuffled().filter(lambda x: x % 3 > 0).batch(3).prefetch(2),
    "take, skip": lambda: shuffled().skip(2).take(14).batch(3),
    "zip": lambda: tf.data.Dataset.zip(shuffled(), shuffled(seed=9)).batch(3),
    "padded, parallel batches": lambda: shuffled().padded_batch(3).unbatch().batch(4, num_parallel_calls=2),
    "windows": lambda: shuffled().window(4).flat_map(lambda w: w.batch(4)).batch(2),
    "sharded": lambda: shuffled().shard(2, 1).enumerate().batch(3),
    "running sums": lambda: shuffled().scan(np.int64(0), lambda s, x: (s + x, s + x)).take_while(lambda s: s < 150).batch(3),
    "options": lambda: shuffled().batch(3).with_options(tf.data.Options()),
    "known length": lambda: shuffled().filter(lambda x: x < 18).batch(3).apply(tf.data.experimental.assert_cardinality(6)),
    "shuffle of a shuffle": lambda: shuffled().batch(3).shuffle(3, seed=1),
    "files, interleave, shuffle": lambda: (
        shuffled(5)
        .interleave(lambda x: numbers(4).map(lambda y: y + 10 * x), cycle_length=2, num_parallel_calls=2)
        .shuffle(6, seed=4)
        .batch(3)
        .prefetch(2)
    ),
    "shuffle, repeat": lambda: shuffled().repeat(2).batch(3),
    "shuffle, batch, repeat": lambda: shuffled().batch(3).repeat(2).prefetch(2),
    "shuffle, cache": lambda: shuffled().cache().batch(3),
    "concatenate": lambda: shuffled().concatenate(shuffled(5, seed=9)).batch(3),
    "flat map over a shuffle": lambda: twice(shuffled(9)).batch(3),
    "mixture": lambda: tf.data.Dataset.sample_from_datasets([shuffled(), shuffled(seed=8)], seed=3).batch(3),
    "mixture of shuffles of shuffles": lambda: tf.data.Dataset.sample_from_datasets(
        [shuffled().shuffle(3, seed=1), shuffled(seed=8).shuffle(3, seed=2)], weights=[0.7, 0.3], seed=3
    ).batch(2),
    "random, other in each pass": lambda: tf.data.Dataset.random(seed=4, rerandomize_each_iteration=True).take(10).batch(3),
    "shuffle within interleave": lambda: nested().batch(3),
    "generator": lambda: generated().shuffle(8, seed=3).batch(3),
    "numpy function": lambda: shuffled().map(in_python).batch(3),
}
NEVER_SAVED = {"shuffle within interleave", "generator", "numpy function"}
ALWAYS_SAVED = {"plain", "the same order in each pass", "repeat", "cache"}
