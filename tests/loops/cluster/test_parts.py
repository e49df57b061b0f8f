"""What each worker reads: the parts of all workers, joined, are the batches of the whole feed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds import Position
from loops.feeds.parts import part_of
from tests.loops.cluster.comparing import assert_same

N, BATCH = 23, 5


def batches(feed, pass_index=0, first=0):
    """The batches of a pass from the one with index `first` on, as nested arrays."""
    if isinstance(feed, loops.DatasetFeed) and not feed.in_blocks:
        return [tf.nest.map_structure(to_array, batch) for batch in feed.dataset]
    out = []
    for block in feed.blocks(Position(pass_index, first)):
        out += [tf.nest.map_structure(lambda t, i=i: None if t is None else t.numpy()[i], block.tensors) for i in range(block.n)]
    feed.end_pass()
    return out


def to_array(tensor):
    if isinstance(tensor, tf.SparseTensor):
        return tf.sparse.to_dense(tensor).numpy()
    return tensor.to_tensor(-1, shape=[None, 3]).numpy() if isinstance(tensor, tf.RaggedTensor) else tensor.numpy()


def assert_tiles(make, count, *, passes=2):
    whole, parts = make(), [part_of(make(), i, count) for i in range(count)]
    for index in range(passes):
        of_parts = [batches(part, index) for part in parts]
        for expected, *cut in zip(batches(whole, index), *of_parts, strict=True):
            joined = [None if leaves[0] is None else np.concatenate(leaves) for leaves in zip(*map(tf.nest.flatten, cut), strict=True)]
            assert_same(tf.nest.flatten(expected), joined)


def arrays(**settings):
    rng = np.random.default_rng(0)
    data = {"a": rng.normal(size=[N, 3]).astype("float32"), "n": None, "s": np.array([f"w{i}" for i in range(N)])}
    weights = rng.normal(size=N)
    return lambda: loops.ArrayFeed((data, np.arange(N), weights), BATCH, **settings)


def sparse_matrix():
    from scipy import sparse

    matrix = sparse.random(N, 4, density=0.3, format="csr", random_state=0, dtype=np.float32)
    return loops.ArrayFeed((matrix, np.arange(N)), BATCH, shuffle=True)


def python_batches(pass_index):
    for i in range(0, N, BATCH):
        yield np.arange(i, min(i + BATCH, N)) + 100 * pass_index, {"y": np.ones([min(BATCH, N - i), 2]) * i}


class Own(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.arange(BATCH) + index * BATCH, np.ones([BATCH, 1]) * index


def dataset(*, unknown=False, nested=True):
    data = tf.data.Dataset.from_tensor_slices((np.arange(N), np.arange(2 * N).reshape(N, 2)) if nested else np.arange(N))
    if unknown:
        data = data.filter(lambda *_: True)
    return loops.DatasetFeed(data.shuffle(9, seed=1, reshuffle_each_iteration=False).batch(BATCH))


def special():
    ragged = tf.ragged.constant([[i] * (i % 4) for i in range(N)], dtype=tf.int64)
    sparse = tf.sparse.from_dense(np.eye(N, dtype="float32"))
    return loops.DatasetFeed(tf.data.Dataset.from_tensor_slices({"r": ragged, "s": sparse, "t": [f"w{i}" for i in range(N)]}).batch(BATCH))


FEEDS = {
    "arrays": arrays(),
    "arrays, shuffled": arrays(shuffle=True, seed=3),
    "arrays, without tail": arrays(shuffle=True, drop_remainder=True),
    "arrays, smaller than a batch": lambda: loops.ArrayFeed(np.arange(2), BATCH),
    "sparse matrix": sparse_matrix,
    "generator": lambda: loops.GeneratorFeed(python_batches),
    "PyDataset": lambda: loops.PyDatasetFeed(Own()),
    "dataset": dataset,
    "dataset of one tensor": lambda: dataset(nested=False),
    "dataset of unknown length": lambda: dataset(unknown=True),
    "ragged, sparse, strings": special,
}


@pytest.mark.parametrize("kind", FEEDS)
def test_the_parts_of_all_workers_are_the_batches_of_the_whole_feed(kind):
    for count in (2, 3):
        assert_tiles(FEEDS[kind], count, passes=1 if "dataset" in kind else 2)


def test_reading_goes_on_from_any_position():
    part = part_of(arrays(shuffle=True)(), 1, 2)
    assert_same(batches(part, 1)[2:], batches(part, 1, first=2))


def test_sizes_that_differ_are_cut_in_the_same_proportions():
    part = part_of(loops.GeneratorFeed(lambda: iter([(np.arange(4), np.arange(12))])), 1, 2)
    assert [leaf.tolist() for leaf in batches(part)[0]] == [[2, 3], [6, 7, 8, 9, 10, 11]]


def test_a_feed_has_one_part_for_each_worker():
    feed = arrays()()
    assert part_of(feed, 0, 1) is feed
    assert part_of(feed, 1, 2) is part_of(feed, 1, 2) and part_of(part_of(feed, 1, 2), 1, 2) is not feed


def test_a_worker_gathers_only_its_own_rows_of_an_array_on_a_disk(tmp_path, monkeypatch):
    """Rows are counted where they are read: each worker reads a half, and no row twice."""
    path = tmp_path / "rows"
    np.arange(40 * 3, dtype="float32").reshape(40, 3).tofile(path)
    read = []
    take = np.take
    monkeypatch.setattr(np, "take", lambda a, index, **more: read.extend(np.asarray(index)) or take(a, index, **more))
    of_workers = []
    for worker in range(2):
        read.clear()
        array = np.memmap(path, "float32", "r", shape=(40, 3))
        for _ in part_of(loops.ArrayFeed(array, 8, shuffle=True), worker, 2).blocks(Position()):
            pass
        of_workers.append(sorted(read))
    assert [len(rows) for rows in of_workers] == [20, 20]
    assert sorted(of_workers[0] + of_workers[1]) == list(range(40))


POLICIES = tf.data.experimental.AutoShardPolicy


def with_policy(policy):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policy
    return loops.DatasetFeed(tf.data.Dataset.range(8).batch(4).with_options(options))


@pytest.mark.parametrize("policy", [POLICIES.AUTO, POLICIES.DATA])
def test_a_pipeline_gives_a_worker_its_part_of_each_batch(policy):
    assert [batch.tolist() for batch in batches(part_of(with_policy(policy), 1, 2))] == [[2, 3], [6, 7]]


def test_a_pipeline_that_is_sharded_already_is_taken_as_it_is():
    assert [batch.tolist() for batch in batches(part_of(with_policy(POLICIES.OFF), 1, 2))] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("policy", [POLICIES.FILE, POLICIES.HINT])
def test_policies_that_would_change_the_global_batches_are_refused(policy):
    with pytest.raises(ValueError, match=f"AutoShardPolicy.{policy.name} would give each worker other examples"):
        part_of(with_policy(policy), 0, 2)
