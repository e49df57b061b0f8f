"""Fingerprints: equal for equal data in whatever form, different where it differs, and cheap for data of any size."""

from __future__ import annotations

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds import dataset_fingerprint, fingerprints
from loops.feeds.fingerprints import fingerprint
from loops.feeds.from_keras import feed_for

X = np.random.default_rng(0).normal(size=[1000, 50]).astype("float32")
Y = np.arange(1000) % 3
TEXTS = ["a", "bcd", "", "é"]


def with_nan():
    x = X.copy()
    x[3] = np.nan
    return x


@pytest.mark.parametrize(
    "forms",
    [
        [X, X.copy(), np.asfortranarray(X), X.astype(">f4"), X.astype("float64"), tf.constant(X)],
        [with_nan(), with_nan(), tf.constant(with_nan())],
        [X.astype(ml_dtypes.bfloat16), tf.cast(X, tf.bfloat16)],
        [Y, tf.constant(Y), Y.astype(">i8")],
        [np.array(TEXTS), np.array(TEXTS, object), np.array([t.encode() for t in TEXTS], object), tf.constant(TEXTS)],
        [np.zeros([300, 200, 200], "uint8"), tf.zeros([300, 200, 200], tf.uint8)],
        [np.float32(3), np.array(3.0)],
        [np.zeros([0, 3]), np.zeros([0, 3], "float32")],
    ],
    ids=["floats", "nan", "bfloat16", "integers", "texts", "large rows", "a value", "nothing"],
)
def test_equal_data_has_one_fingerprint(forms):
    assert len({fingerprint(form) for form in forms}) == 1


@pytest.mark.parametrize("n, shape", [(200, [4]), (100_000, []), (100_000, [30]), (40, [300, 200])], ids=str)
@pytest.mark.parametrize("row", [0, -1])
def test_the_first_and_the_last_value_count_however_much_there_is(n, shape, row):
    a = np.zeros([n, *shape], "uint8")
    b = a.copy()
    b[row].flat[row if shape else 0] = 1 if shape else 0
    if not shape:
        b[row] = 1
    assert fingerprint(a) != fingerprint(b)


def test_other_order_shape_text_or_type_is_other_data():
    different = [X, X[::-1], X[:, ::-1], X.reshape(500, 100), X.astype("int32"), np.array(["ab", "c"]), np.array(["a", "bc"])]
    assert len({fingerprint(data) for data in different}) == len(different)


def test_a_bounded_part_is_read_of_data_of_any_size():
    class Counted:
        """Looks like 80 GB of rows on a disk."""

        shape, dtype = (10_000_000, 1000), np.dtype("float64")
        read = places = 0

        def __getitem__(self, rows):
            part = np.zeros([rows.stop - rows.start, 1000])
            self.read, self.places = self.read + part.nbytes, self.places + 1
            return part

    data = Counted()
    fingerprint(data)
    assert data.read <= 256 * 8000 and data.places <= 256


def test_ragged_and_sparse_data_weights_and_missing_parts():
    def of(values, weights=None, **arguments):
        return feed_for(values, np.arange(4.0), weights, batch_size=2, **arguments).describe()

    ragged, other = (tf.ragged.constant([[1, 2], [3], [4], [last]]) for last in (5, 6))
    assert of(ragged) == of(ragged) != of(other)
    sparse, other = (tf.sparse.from_dense([[1, 0], [0, 2], [0, 0], [0, last]]) for last in (5, 6))
    assert of(sparse) == of(sparse) != of(other)
    weights = np.ones(4), np.array([1, 1, 1, 2.0])
    assert of(np.ones([4, 1]), weights[0])["fingerprint"].keys() == {
        "inputs",
        "labels (part 1 of the batch)",
        "sample_weight (part 2 of the batch)",
    }
    assert of(ragged, weights[0]) != of(ragged, weights[1])
    assert of(ragged, class_weight={0: 1.0}) != of(ragged, class_weight={0: 2.0})
    assert list(loops.ArrayFeed({"a": X, "b": None, "c": [X, X]}).fingerprint) == ["inputs/a", "inputs/c/0", "inputs/c/1"]
    assert fingerprints.class_weight_text({1: 2, 0: 1.5}) == "{0: 1.5, 1: 2.0}"


class Numbers(keras.utils.PyDataset):
    def __init__(self, first):
        super().__init__()
        self.first = first

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.full([2, 1], index + self.first, "float32"), np.zeros([2, 1])


def test_of_what_python_makes_the_first_batches_are_described():
    one, same, other = (loops.PyDatasetFeed(Numbers(first)).describe() for first in (0, 0, 1))
    assert one == same and one["first_batches"]["inputs, batch 0"] != other["first_batches"]["inputs, batch 0"]
    assert one["first_batches"]["labels (part 1 of the batch), batch 1"] == other["first_batches"]["labels (part 1 of the batch), batch 1"]
    assert "inputs, batch 1" in loops.GeneratorFeed(lambda: iter([(X, Y), (X, Y)])).describe()["first_batches"]


# tf.data.

Data = tf.data.Dataset


@tf.autograph.experimental.do_not_convert
def plus(n):
    return lambda i: i + n


@pytest.mark.parametrize(
    "make",
    [
        lambda n: Data.from_tensor_slices((X + n, Y)).shuffle(100).repeat().batch(4),
        lambda n: Data.range(9).map(plus(n)).cache().shuffle(9).batch(2).prefetch(1),
        lambda n: Data.zip((Data.range(9).shuffle(9), Data.range(9).map(plus(n)))).batch(2),
        lambda n: (
            Data.from_generator(lambda: iter([1]), output_signature=tf.TensorSpec([], tf.int64)).concatenate(Data.range(n, 9)).batch(2)
        ),
    ],
    ids=["arrays", "below a shuffle", "beside a shuffle", "beside python"],
)
def test_other_sources_of_a_pipeline_show(make):
    first, same, other = (dataset_fingerprint.fingerprint(make(n)) for n in (0, 0, 1))
    assert first == same and first != other


def test_file_names_count_without_their_folders(tmp_path):
    for folder, text in (("a", "one\n"), ("b", "one\n"), ("c", "two\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.txt").write_text(text)
    read = [dataset_fingerprint.fingerprint(tf.data.TextLineDataset([str(tmp_path / f / "part.txt")]).batch(1)) for f in "abc"]
    assert read[0] == read[1] != read[2]


@pytest.mark.parametrize("reshuffle", [True, False])
def test_looking_changes_nothing_that_the_pipeline_gives(reshuffle):
    def passes(look):
        tf.random.set_seed(3)
        dataset = Data.range(20).map(plus(1)).shuffle(20, seed=1, reshuffle_each_iteration=reshuffle).repeat(2).batch(4)
        if look:
            dataset_fingerprint.fingerprint(dataset)
        return [batch.numpy().tolist() for _ in range(2) for batch in dataset]

    assert passes(look=True) == passes(look=False)


def test_what_draws_calls_python_or_leaves_something_behind_is_not_read(tmp_path):
    called = []

    def python(i):
        called.append(i)
        return i

    for dataset in (
        Data.random(seed=1).take(4),
        Data.range(4).map(lambda i: i + tf.random.uniform([], maxval=9, dtype=tf.int64)),
        Data.range(4).map(lambda i: tf.py_function(python, [i], tf.int64)),
        Data.range(4).cache(str(tmp_path / "cache")),
    ):
        found = dataset_fingerprint.fingerprint(dataset.batch(2))
        plain = dataset_fingerprint.fingerprint(Data.range(4).batch(2))
        assert found in ({}, plain), "only the part below is read"
    assert not called and not list(tmp_path.iterdir())
