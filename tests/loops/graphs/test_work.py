"""Work is counted from shapes: against counts by hand, for batches of known and of unknown size."""

import keras
import pytest
import tensorflow as tf

from loops.graphs.work import is_grouped, work_of
from loops.xla.replaced_ops import FastOps


def work(function, *shapes, batch=10, dtype=tf.float32):
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    return work_of(tf.function(function, autograph=False).get_concrete_function(*specs).graph, batch)


@pytest.mark.parametrize("size", [10, None])
def test_a_product_is_two_operations_for_each_term(size):
    found = work(lambda x, w: tf.matmul(tf.reshape(tf.nn.relu(x), [-1, 4]), w), [size, 3, 4], [4, 5])
    assert (found.products, found.batched, found.elements) == (2 * 10 * 3 * 4 * 5, 0, 120)
    transposed = work(lambda x, y: tf.matmul(x, y, transpose_a=True), [size, 4], [size, 5])
    assert transposed.products == 2 * 10 * 4 * 5


def test_products_of_long_stacks_and_of_bfloat16_are_counted_apart():
    stacks = work(lambda a, b: tf.einsum("abcd,aecd->acbe", a, b), [None, 100, 2, 4], [None, 5, 2, 4])
    assert (stacks.products, stacks.batched) == (0, 2 * 10 * 2 * 100 * 5 * 4)
    short = work(tf.matmul, [10, 4], [4, 5], dtype=tf.bfloat16)
    assert (short.products, short.bfloat16) == (0, 2 * 10 * 4 * 5)


@pytest.mark.parametrize("size", [10, None])
def test_a_convolution_and_each_of_its_gradients_sum_the_same_products(size):
    def gradients(x, w):
        return tf.gradients(tf.nn.conv2d(x, w, 1, "VALID") ** 2, [x, w])

    found = work(gradients, [size, 8, 8, 3], [3, 3, 3, 5])
    assert found.convolutions == 3 * (2 * 10 * 6 * 6 * 5 * 27) and found.convolving == 3 and not found.grouped


def test_strides_are_counted_apart():
    found = work(lambda x, w: tf.nn.conv2d(x, w, 2, "SAME"), [10, 8, 8, 3], [3, 3, 3, 5])
    assert (found.convolutions, found.strided) == (0, 2 * 10 * 4 * 4 * 5 * 27)


def test_groups_are_known_in_all_three_operations():
    def gradients(x, w):
        return tf.gradients(tf.nn.conv2d(x, w, 1, "SAME") ** 2, [x, w])

    specs = [tf.TensorSpec([None, 8, 8, 4]), tf.TensorSpec([3, 3, 2, 6])]
    graph = tf.function(gradients, autograph=False).get_concrete_function(*specs).graph
    assert [is_grouped(op) for op in graph.get_operations() if op.type.startswith("Conv2D")] == [True] * 3


def test_the_body_of_a_loop_counts_as_often_as_it_turns():
    def turns(x, w):
        return tf.while_loop(lambda i, x: i < 7, lambda i, x: (i + 1, tf.matmul(x, w)), (0, x), maximum_iterations=7)[1]

    found = work(turns, [4, 4], [4, 4])
    assert found.products == 7 * 2 * 4 * 4 * 4
    assert found.compiled < found.operations


def test_a_recurrent_layer_turns_as_often_as_its_input_is_long():
    layer = keras.layers.SimpleRNN(3)
    layer.build([None, 20, 2])
    assert work(lambda x: layer(x), [None, 20, 2]).products == 2 * 10 * (20 + 1) * (2 * 3 + 3 * 3)  # Keras calls the cell once before


def test_what_xla_takes_in_the_place_of_a_kernel_counts_as_the_kernel():
    def gradients(x, w):
        pooled = tf.nn.max_pool2d(tf.nn.conv2d(x, w, 1, "VALID"), 2, 2, "VALID")
        return tf.gradients(pooled * tf.random.stateless_normal(pooled.shape, [1, 2]), [x, w])

    def replaced(x, w):
        with FastOps():
            return gradients(x, w)

    plain, under_xla = (work(function, [10, 8, 8, 3], [3, 3, 3, 5]) for function in (gradients, replaced))
    assert (under_xla.convolutions, under_xla.convolving) == (plain.convolutions, plain.convolving) == (3 * 2 * 10 * 36 * 5 * 27, 3)
