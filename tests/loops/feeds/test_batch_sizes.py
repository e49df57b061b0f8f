"""A feed knows how many examples a batch has, where the batch dimension is not static too."""

import numpy as np
import pytest
import tensorflow as tf

import loops

X = np.zeros([10, 3], "float32")


def pipeline():
    return tf.data.Dataset.from_tensor_slices(X)


@pytest.mark.parametrize(
    ("feed", "size"),
    [
        (lambda: loops.ArrayFeed(X, 4), 4),
        (lambda: loops.DatasetFeed(pipeline().batch(4, drop_remainder=True)), 4),
        (lambda: loops.DatasetFeed(pipeline().shuffle(10, seed=1).batch(4).prefetch(1)), 4),
        (lambda: loops.DatasetFeed(pipeline().batch(5).unbatch().batch(3, num_parallel_calls=2).map(lambda x: 2 * x).repeat(2)), 3),
        (lambda: loops.NoFeed(3), None),
    ],
)
def test_the_size_of_batches(feed, size):
    feed = feed()
    assert feed.examples_per_batch == size
    if isinstance(feed, loops.DatasetFeed):
        block = feed.blank_block()
        assert block.tensors.shape[1:] == [size, 3] and block.n == block.tensors.shape[0]
