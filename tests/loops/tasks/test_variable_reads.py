"""Many variables are read in one call, and what is read stays what it was."""

import keras
import numpy as np
import tensorflow as tf

from loops.tasks.variable_reads import VariableReads


def test_values_are_copies_of_the_moment():
    variables = [keras.Variable(np.arange(6.0).reshape(2, 3), dtype="float32"), tf.Variable([1, 2]), keras.Variable(True, dtype="bool")]
    reads = VariableReads(variables)
    before = reads.arrays()
    variables[0].assign(variables[0] + 1.0)
    np.testing.assert_array_equal(before[0], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(reads.arrays()[0], np.arange(6.0).reshape(2, 3) + 1)
    assert [a.dtype.name for a in before] == ["float32", "int32", "bool"]


def test_small_variables_come_together_and_every_value_in_its_place():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=[2, 3]), np.arange(20_000), rng.normal(size=[]), rng.normal(size=[20_000]), np.zeros([0, 4]), np.arange(3)]
    variables = [tf.Variable(array, dtype="int64" if array.dtype == np.int64 else "float32") for array in arrays]
    reads = VariableReads(variables, watched=[variables[3], variables[0]])
    variables[3].assign(variables[3] * np.inf)
    found, finite = reads.arrays_and_finite()
    assert finite == [False, True] == reads.finite()
    for array, variable, again in zip(found, variables, reads.arrays(), strict=True):
        np.testing.assert_array_equal(array, variable.numpy(), strict=True)
        np.testing.assert_array_equal(again, variable.numpy(), strict=True)
    assert len(reads._values()) == 4, "small floats, small integers, and two that are large"
    assert reads.of(variables, [variables[3], variables[0]]) and not reads.of(variables)


def test_what_is_not_finite_is_found_in_its_place():
    variables = [keras.Variable([1.0, np.nan]), keras.Variable([1], dtype="int32"), keras.Variable([np.inf]), keras.Variable([0.0])]
    assert VariableReads(variables).finite() == [False, True, False, True]
    assert VariableReads([]).finite() == []


def test_it_knows_its_variables():
    a, b = keras.Variable([1.0]), keras.Variable([1.0])
    reads = VariableReads([a, b])
    assert reads.of([a, b]) and not reads.of([b, a]) and not reads.of([a])


def test_one_replica_is_read(two_replicas):
    with two_replicas.scope():
        variable = keras.Variable([2.0])
    np.testing.assert_array_equal(VariableReads([variable]).arrays()[0], [2.0])
