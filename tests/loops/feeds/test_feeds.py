"""Every pass visits every example once, from any position; blocks are what NumPy would cut."""

import gc
import itertools
import time
import tracemalloc
import weakref

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import loops
from loops.feeds import shuffling
from loops.feeds.from_keras import feed_for, split
from loops.feeds.prefetch import Prefetcher


def batches(feed, position=None):
    """All batches of a pass as lists of arrays, unpacked from their blocks."""
    out = []
    for block in feed.blocks(position or loops.Position()):
        assert block.n <= block.capacity
        for i in range(block.n):
            out.append(tf.nest.map_structure(lambda t, i=i: t.numpy()[i], block.tensors))
    return out


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70), batch_size=st.integers(1, 20), shuffle=st.booleans(), pass_index=st.integers(0, 3), drop=st.booleans())
def test_a_pass_visits_every_example_once_and_can_begin_anywhere(n, batch_size, shuffle, pass_index, drop):
    if drop and n < batch_size:
        return
    feed = loops.ArrayFeed(np.arange(n), batch_size, shuffle=shuffle, seed=7, drop_remainder=drop)
    feed.block_steps = min(feed.block_steps, 3)  # several blocks, one of them short
    whole = batches(feed, loops.Position(pass_index))
    assert len(whole) == feed.steps_per_epoch
    seen = np.concatenate(whole)
    if not drop:
        assert sorted(seen) == list(range(n))
    if not shuffle:
        assert list(seen) == list(range(len(seen)))
    for begin in range(len(whole)):
        rest = batches(feed, loops.Position(pass_index, begin))
        assert [b.tolist() for b in rest] == [b.tolist() for b in whole[begin:]]


def test_passes_differ_and_do_not_depend_on_history():
    orders = [
        np.concatenate(batches(loops.ArrayFeed(np.arange(50), 10, shuffle=True, seed=1), loops.Position(p))).tolist() for p in (0, 1, 0)
    ]
    assert orders[0] == orders[2] != orders[1]
    other = np.concatenate(batches(loops.ArrayFeed(np.arange(50), 10, shuffle=True, seed=2))).tolist()
    assert other != orders[0]


def test_the_batch_dimension_is_static_exactly_when_all_batches_are_equal():
    assert loops.ArrayFeed(np.zeros([64, 3]), 32).element_spec.shape == [32, 3]
    assert loops.ArrayFeed(np.zeros([65, 3]), 32).element_spec.shape.as_list() == [None, 3]
    assert loops.ArrayFeed(np.zeros([65, 3]), 32, drop_remainder=True).element_spec.shape == [32, 3]
    assert loops.ArrayFeed(np.zeros([20, 3]), 32).element_spec.shape.as_list() == [None, 3]


def test_floats_become_floatx_and_other_types_stay():
    spec = loops.ArrayFeed(
        {"a": np.zeros(4), "b": np.zeros(4, np.float16), "c": np.zeros(4, np.uint8), "d": np.array(list("wxyz"))}, 2
    ).element_spec
    assert [spec[k].dtype for k in "abcd"] == [tf.float32, tf.float32, tf.uint8, tf.string]


@pytest.mark.parametrize("dtype", [object, "U", "S"])
def test_strings_can_be_read_from_the_middle_of_a_pass(dtype):
    words = [f"w{i}" for i in range(40)]
    feed = loops.ArrayFeed(np.array(words, dtype), batch_size=4)
    assert np.concatenate(batches(feed, loops.Position(0, 3))).tolist() == [word.encode() for word in words[12:]]


def test_a_memmap_is_read_block_by_block(tmp_path):
    values = np.random.default_rng(0).normal(size=[100, 5])
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=values.shape)
    mapped[:] = values
    feed = loops.ArrayFeed(np.memmap(tmp_path / "x", np.float64, "r", shape=values.shape), 30)
    np.testing.assert_array_equal(np.concatenate(batches(feed)), values.astype(np.float32))


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.coo_array, sparse.csc_array])
def test_a_sparse_matrix_is_read_as_the_dense_one(kind):
    dense = np.where(np.random.default_rng(0).random([23, 4]) < 0.3, np.arange(92.0).reshape(23, 4), 0)
    for shuffle in (False, True):
        feeds = [loops.ArrayFeed((x, np.arange(23)), 5, shuffle=shuffle, seed=3) for x in (dense, kind(dense))]
        assert feeds[0].element_spec == feeds[1].element_spec
        for ours, theirs in zip(*(batches(feed) for feed in feeds), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
    other = kind(dense[::-1])
    assert loops.ArrayFeed(kind(dense)).describe() == loops.ArrayFeed(kind(dense)).describe() != loops.ArrayFeed(other).describe()


def test_weights_are_appended_and_class_weights_follow_the_labels():
    x, y = np.zeros([6, 2]), np.array([0, 1, 2, 2, 1, 0])
    (_, _, w), *_ = batches(loops.ArrayFeed((x, y), 6, class_weight={1: 3.0, 2: 0.5}))
    assert w.tolist() == [1, 3, 0.5, 0.5, 3, 1]
    (_, _, one_hot), *_ = batches(loops.ArrayFeed((x, np.eye(3)[y]), 6, class_weight={1: 3.0, 2: 0.5}))
    assert one_hot.tolist() == w.tolist()
    (_, _, w), *_ = batches(loops.ArrayFeed((x, {"a": y, "b": y}), 6, sample_weight=np.arange(6.0)))
    assert w["a"].tolist() == w["b"].tolist() == list(range(6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loops.ArrayFeed((np.zeros([5, 2]), np.zeros(4))), r"same number of examples .*x: 5, y: 4"),
        (lambda: loops.ArrayFeed((np.zeros([0, 2]), np.zeros(0))), "0 examples"),
        (lambda: loops.ArrayFeed(np.zeros(3), 0), "batch_size"),
        (lambda: loops.ArrayFeed(np.zeros(3), 8, drop_remainder=True), "leaves no batch"),
        (lambda: loops.ArrayFeed((np.array([[1], [2, 3]], dtype=object), np.zeros(2))), "at x has dtype object"),
        (lambda: loops.ArrayFeed(np.array(["2020-01-01"], "datetime64[D]")), "datetime64"),
        (lambda: loops.ArrayFeed((np.zeros(3), np.float32(1))), "at y is a single value"),
        (lambda: loops.ArrayFeed(np.zeros(3), class_weight={0: 1.0}), r"\(x, y\)"),
        (lambda: loops.ArrayFeed((np.zeros(3), np.zeros(3)), class_weight={0: 1.0}, sample_weight=np.ones(3)), "not both"),
        (lambda: loops.DatasetFeed(tf.data.Dataset.range(3)), "no batch dimension"),
        (lambda: loops.DatasetFeed(tf.data.Dataset.range(0).batch(2)), "empty"),
        (lambda: loops.NoFeed(0), "steps_per_epoch"),
        (lambda: split(np.zeros(10), None, None, 1.0), "between 0 and 1"),
        (lambda: split(np.zeros(1), None, None, 0.1), "leaves a part empty"),
        (lambda: feed_for(tf.data.Dataset.range(4).batch(2), np.zeros(4)), "belong into"),
    ],
)
def test_bad_data_gets_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dataset_blocks_hold_the_batches_of_the_dataset_in_order():
    dataset = tf.data.Dataset.range(1001).batch(7)
    found = np.concatenate(batches(loops.DatasetFeed(dataset)))
    assert found.tolist() == list(range(1001))


def test_an_endless_dataset_says_so():
    assert loops.DatasetFeed(tf.data.Dataset.range(4).batch(2).repeat()).endless
    assert loops.DatasetFeed(tf.data.Dataset.range(4).batch(2)).steps_per_epoch == 2


class Item:
    """Something of which one can count how many there are."""

    there = made = 0

    def __init__(self):
        Item.there += 1
        Item.made += 1

    def __del__(self):
        Item.there -= 1


def eventually(condition):
    """Waits for another thread."""
    for _ in range(3000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_there_is_one_item_in_use_and_the_next_one_and_no_more():
    def items():
        while True:
            assert Item.there < 2
            yield Item()

    Item.there = Item.made = 0
    source = Prefetcher(items(), 2)
    assert eventually(lambda: Item.made == 2)
    held = [next(source)]
    for i in range(3, 6):
        assert Item.made == i - 1 and Item.there == 2
        held.clear()
        assert eventually(lambda i=i: Item.made == i)
        held.append(next(source))
    source.close()


def test_whoever_holds_all_items_still_gets_the_next():
    source = Prefetcher((Item() for _ in range(20)), 2)
    assert len([next(source) for _ in range(20)]) == 20
    source.close()


def test_memory_holds_one_copy_of_the_data_and_two_blocks(tmp_path):
    """Blocks that are there while another is cut, over a run with looks; and what NumPy allocates, for data that is mapped from a file."""
    shape = [256 * 1024, 64]
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=tuple(shape))
    feed = loops.ArrayFeed(mapped, 64, shuffle=True)
    block_bytes = feed.block_steps * 64 * 64 * 4
    assert block_bytes * 8 == mapped.nbytes  # eight blocks to a pass
    alive, most = [], []
    cut = feed._cut

    def counted(*args):
        gc.collect()
        most.append(sum(block() is not None for block in alive))
        block = cut(*args)
        alive.append(weakref.ref(block))
        return block

    feed._cut = counted

    class Sum(loops.Task):
        def train_step(self, x):
            return {"sum": tf.reduce_sum(x)}

    loop = loops.TrainLoop(Sum(), feed, [Idle("100 steps")])
    loop.run(epochs=1)  # traces
    tracemalloc.start()
    try:
        loop.run(epochs=2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(most) >= 6 and max(most) == 1
    # The rows of blocks, in memory that is used again and again, and the orders of two passes: not a copy of the data.
    assert peak < 2 * block_bytes + 2 * 4 * shape[0] + (2 << 20)


class Idle(loops.hooks.Hook):
    def __init__(self, every):
        self.every = every


def test_long_orders_are_drawn_before_the_pass_that_needs_them(monkeypatch):
    drawn = []
    original = shuffling._drawn
    monkeypatch.setattr(shuffling, "_drawn", lambda n, seed, index: (drawn.append(index), original(n, seed, index))[1])
    monkeypatch.setattr(shuffling, "_DRAWN_AHEAD", 50)
    feed = loops.ArrayFeed(np.arange(100), 10, shuffle=True, seed=4)
    feed.block_steps = 2
    reference = loops.ArrayFeed(np.arange(100), 10, shuffle=True, seed=4)
    reference._orders._n = 100
    blocks = feed.blocks(loops.Position(0))
    for _ in range(3):
        next(blocks)
    assert drawn == [0]
    next(blocks)
    assert eventually(lambda: drawn == [0, 1])
    second = np.concatenate(batches(feed, loops.Position(1)))
    assert drawn.count(1) == 1 and sorted(second) == list(range(100))
    monkeypatch.setattr(shuffling, "_DRAWN_AHEAD", 1000)
    assert np.concatenate(batches(reference, loops.Position(1))).tolist() == second.tolist()


def test_the_prefetcher_keeps_order_passes_errors_on_and_stops_early():
    assert list(Prefetcher(iter(range(100)), 2)) == list(range(100))

    def broken():
        yield 1
        raise OSError("the disk is gone")

    items = Prefetcher(broken(), 2)
    assert next(items) == 1
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)
    endless = Prefetcher(itertools.count(), 2)
    assert next(endless) == 0
    endless.close()
    assert not endless._thread.is_alive()


def test_fit_takes_generators_and_pydatasets():
    import keras

    class Squares(keras.utils.PyDataset):
        ended = 0

        @property
        def num_batches(self):
            return 3

        def __getitem__(self, index):
            return np.full([4, 2], index, "float32"), np.full([4, 1], index**2, "float32")

        def on_epoch_end(self):
            self.ended += 1

    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = Squares()
    history = loops.fit(model, data, epochs=2, verbose=0)
    assert len(history.epoch) == 2
    assert data.ended == 3  # once before the first epoch, as in Keras, and after each
    generator = ((np.ones([4, 2], "float32"), np.ones([4, 1], "float32")) for _ in itertools.count())
    assert loops.fit(model, generator, epochs=2, steps_per_epoch=5, verbose=0).epoch == [0, 1]
