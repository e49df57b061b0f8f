"""Blocks of a `tf.data` iterator hold its batches, in order and bit for bit, and none is pulled twice."""

import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds import pulling
from loops.feeds.pulling import pulled_blocks


def numbers(n):
    return tf.data.Dataset.range(n)


def changing_rank(x):
    return tf.numpy_function(lambda v: v.reshape(-1, *[1] * int(v[0] % 3)), [x], tf.int64)


DATASETS = {
    "the last batch is smaller": (lambda: numbers(50).batch(7), [4, 3, 1], [4, 4, 1]),
    "all batches are equal": (lambda: numbers(50).batch(5), [4, 4, 2], [4, 4, 4]),
    "one batch": (lambda: numbers(3).batch(5), [1], [1]),
    "no batch": (lambda: numbers(9).filter(lambda i: i < 0).batch(3), [], []),
    "nested, other lengths": (
        lambda: numbers(12).map(lambda i: {"a": tf.range(i // 6), "b": (i, tf.cast(i, tf.float32))}).padded_batch(3),
        [2, 2],
        [4, 4],
    ),
    "text": (lambda: numbers(9).map(tf.strings.as_string).batch(3), [3], [4]),
    "flags": (lambda: numbers(9).map(lambda i: i > 3).batch(3).prefetch(2), [3], [4]),
    "another rank": (lambda: numbers(12).batch(4).map(changing_rank), [1, 1, 1], [1, 1, 1]),
    "shuffled anew": (lambda: numbers(20).shuffle(20, seed=2).batch(5).repeat(2), [4, 4], [4, 4]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_blocks_hold_the_batches_in_order(name):
    make, steps, capacities = DATASETS[name]
    blocks = list(pulled_blocks(iter(make()), 4))
    assert ([b.n for b in blocks], [b.capacity for b in blocks]) == (steps, capacities)
    found = [tf.nest.map_structure(lambda t, i=i: t[i].numpy(), block.tensors) for block in blocks for i in range(block.n)]
    expected = [tf.nest.map_structure(lambda t: t.numpy(), batch) for batch in make()]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def test_each_batch_is_pulled_once():
    pulled = []

    def noted(i):
        pulled.append(int(i))
        return i

    dataset = numbers(6).map(lambda i: tf.ensure_shape(tf.numpy_function(noted, [i], tf.int64), [])).batch(1, drop_remainder=True)
    assert [block.n for block in pulled_blocks(iter(dataset), 2)] == [2, 2, 2]
    assert sorted(pulled) == list(range(6))


def test_a_block_for_which_time_has_run_out_is_short(monkeypatch):
    monkeypatch.setattr(pulling, "FIRST_SECONDS", 0.0)
    assert [block.n for block in pulled_blocks(iter(numbers(7).batch(1)), 4)] == [2, 2, 2, 1]


def test_iterators_of_one_type_share_a_trace():
    def read():
        return [block.n for block in pulled_blocks(iter(numbers(6).map(lambda i: (i, i)).batch(3)), 4)]

    first = read()
    traced = pulling._puller.cache_info().misses
    assert read() == first and pulling._puller.cache_info().misses == traced


def test_an_error_of_the_pipeline_is_told_in_short():
    dataset = numbers(4).batch(2).map(lambda x: tf.debugging.check_numerics(1 / tf.cast(x, tf.float32), "a bad row"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="a bad row : Tensor had Inf") as caught:
        list(pulled_blocks(iter(dataset), 4))
    assert "\n" not in str(caught.value)


def test_a_block_has_some_megabytes_and_is_cut_to_a_length_that_is_compiled():
    def feed(width, rows=100_000):
        return loops.DatasetFeed(tf.data.Dataset.from_tensors(tf.zeros([width])).repeat(rows).batch(10, drop_remainder=True))

    assert [feed(w).block_steps for w in (1, 1000, 100_000)] == [1024, 209, 2]
    assert feed(1, rows=50).block_steps == 5
    assert loops.DatasetFeed(numbers(9).map(lambda i: tf.range(i)).padded_batch(3)).block_steps == 64, "the size is not known"
    cut = feed(1000)
    cut.cut_like([((tf.TensorSpec([10, 1000]),), 300, None), ((tf.TensorSpec([20, 1000]),), 209, None)])
    assert cut.block_steps == cut.blank_block().capacity == 300
    cut.cut_like([])
    assert cut.block_steps == 209
