"""Rows are written once, into memory that TensorFlow reads and that is used again; what somebody holds is never written over."""

import gc
import pickle

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds.buffers import Buffers


def address(of):
    return np.asarray(memoryview(of)).ctypes.data


DTYPES = ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "uint16", "uint32", "uint64", "bool", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_has_the_memory_of_its_array(dtype):
    buffers = Buffers()
    array = buffers.array([5, 3], np.dtype(dtype))
    array[:] = np.arange(15).reshape(5, 3)
    tensor = buffers.tensor(array)
    assert address(tensor) == array.ctypes.data and array.ctypes.data % 64 == 0
    assert tensor.dtype == tf.as_dtype(dtype)
    np.testing.assert_array_equal(tensor.numpy(), np.arange(15).reshape(5, 3).astype(dtype))


def test_a_type_that_cannot_be_shared_is_copied():
    array = Buffers().array([4], np.dtype(ml_dtypes.bfloat16))
    array[:] = [1, 2, 3, 4]
    tensor = Buffers.tensor(array)
    assert tensor.dtype == tf.bfloat16 and tensor.numpy().tolist() == [1, 2, 3, 4]


def test_memory_is_used_again_once_its_tensor_and_all_that_was_cut_from_it_are_gone():
    buffers, dtype = Buffers(), np.dtype("float32")

    def made(value):
        array = buffers.array([16, 16], dtype)
        array[:] = value
        return buffers.tensor(array)

    first = made(1)
    place, part = address(first), first[8:]
    del first
    second = made(2)
    assert address(second) != place and (part.numpy() == 1).all()
    del part
    gc.collect()
    assert address(made(3)) == place
    assert (second.numpy() == 2).all()
    assert not pickle.loads(pickle.dumps(buffers))._free


def test_passes_over_arrays_write_into_two_blocks_and_allocate_no_more():
    data = np.arange(3 * 8 * 4 * 1000, dtype="float32").reshape(-1, 1000)
    feed = loops.ArrayFeed(data, 4, shuffle=True)
    feed.block_steps, order = 8, []
    places = set()
    for index in range(4):
        for block in feed.blocks(loops.Position(index)):
            places.add(address(block.tensors))
            order.append(block.tensors.numpy()[:, :, 0].reshape(-1))
    assert len(places) == 2
    assert all(sorted(np.concatenate(order[i : i + 3])) == data[:, 0].tolist() for i in range(0, 12, 3))


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_are_those_of_numpy_however_the_array_lies_in_memory(shuffle):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=[37, 6])
    arrays = {
        "float64": dense,
        "float32": dense.astype("float32"),
        "columns first": np.asfortranarray(dense.astype("float32")),
        "part": dense.astype("float32")[:, 1:4],
        "backwards": dense.astype("float32")[::-1],
        "big-endian": dense.astype(">f4"),
        "integers": rng.integers(0, 9, [37, 2]).astype(">i2"),
        "flags": rng.random(37) < 0.5,
        "images": rng.integers(0, 255, [37, 2, 3, 1]).astype("uint8"),
    }
    feed = loops.ArrayFeed(arrays, 5, shuffle=shuffle, seed=3)
    feed.block_steps = 3
    order = feed._orders.of(1) if shuffle else np.arange(37)
    found = [(block, i) for block in feed.blocks(loops.Position(1)) for i in range(block.n)]
    for name, array in arrays.items():
        rows = np.concatenate([block.tensors[name].numpy()[i] for block, i in found])
        expected = array[order].astype("float32") if array.dtype.kind == "f" else array[order]
        np.testing.assert_array_equal(rows, expected, err_msg=name)
        assert all(not block.tensors[name].numpy()[block.n :].any() for block, _ in found), "padding is zeros"


def test_arrays_that_change_between_two_passes_are_read_anew():
    data = np.zeros([8, 2], "float32")
    feed = loops.ArrayFeed(data, 4)
    (before,) = feed.blocks(loops.Position(0))
    data[:] = 1
    (after,) = feed.blocks(loops.Position(1))
    assert not before.tensors.numpy().any() and after.tensors.numpy().all()
