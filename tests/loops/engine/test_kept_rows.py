"""Of a large variable only the rows that are written are kept, and they give back its value, whatever writes them and where."""

import numpy as np
import pytest
import tensorflow as tf

from loops.engine import kept_rows
from loops.engine.backup import Backup, FiniteCheck
from loops.engine.kept_rows import KeptRows, writes_rows
from loops.graphs.written_resources import written_variables

ROWS = 12


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    monkeypatch.setattr(kept_rows, "_LEAST_BYTES", 1)


def variable(dtype=tf.float32, width=3):
    return tf.Variable(tf.cast(tf.reshape(tf.range(ROWS * width), [ROWS, width]), dtype))


def traced(step, rows, jit_compile=None):
    def run(i):
        step(i)

    function = tf.function(run, autograph=False, jit_compile=jit_compile)
    with rows.watching(xla=bool(jit_compile)):
        return function.get_concrete_function(tf.TensorSpec([], tf.int32))


def in_a_loop(v, i):
    tf.while_loop(lambda k: k < 3, lambda k: (v.scatter_nd_add([[i + k], [i + k]], tf.ones([2, 3], v.dtype)), k + 1)[1:], [tf.constant(0)])


def in_a_branch(v, i):
    tf.cond(i % 2 == 0, lambda: v.scatter_nd_update([[i]], [[7, 7, 7]]).read_value(), lambda: v.read_value())


def in_a_function(v, i):
    tf.function(lambda k: v.scatter_sub(tf.IndexedSlices(tf.ones([1, 3], v.dtype), tf.reshape(k, [1]))).read_value()[0])(i)


WRITES = {
    "scatter_update": lambda v, i: v.scatter_update(tf.IndexedSlices(tf.cast([[1, 2, 3]], v.dtype), tf.reshape(i, [1]))),
    "scatter_add, twice the same row": lambda v, i: v.scatter_add(tf.IndexedSlices(tf.ones([2, 3], v.dtype), tf.stack([i, i]))),
    "scatter_nd_update": lambda v, i: v.scatter_nd_update([[[i]], [[i + 1]]], tf.ones([2, 1, 3], v.dtype)),
    "single elements": lambda v, i: v.scatter_nd_add([[i, 0], [i, 2]], tf.ones([2], v.dtype)),
    "an index": lambda v, i: v[i].assign(tf.ones([3], v.dtype)),
    "an index from the end": lambda v, i: v[i - 5].assign(tf.ones([3], v.dtype)),
    "an index and a colon": lambda v, i: v[i, :].assign(tf.ones([3], v.dtype)),
    "two indices": lambda v, i: v[i, 1].assign(tf.cast(5, v.dtype)),
    "a slice": lambda v, i: v[i : i + 2].assign(tf.ones([2, 3], v.dtype)),
    "a slice from the end": lambda v, i: v[-2:].assign(tf.fill([2, 3], tf.cast(i, v.dtype))),
    "a loop": in_a_loop,
    "a branch": in_a_branch,
    "a function": in_a_function,
}


@pytest.mark.parametrize("name", WRITES)
def test_rows_give_back_the_value_at_the_last_settled_state(name):
    v, rows = variable(), KeptRows()
    step = traced(lambda i: WRITES[name](v, i), rows)
    assert written_variables(step.graph, [v]) == [v]
    assert written_variables(step.graph, [v], writes_rows) == []
    step(tf.constant(4))  # before any backup
    for _ in range(2):
        before, backup = v.numpy(), Backup(rows=rows)
        backup.cover_rows([v])
        for i in (2, 3, 2, 6):
            step(tf.constant(i))
        assert not np.array_equal(v.numpy(), before)
        assert FiniteCheck()(backup)
        backup.restore()
        np.testing.assert_array_equal(v.numpy(), before)
        step(tf.constant(8))  # a settled step, which belongs to the next backup's value


@pytest.mark.parametrize("dtype", [tf.float16, tf.int64, tf.uint8, tf.bool])
def test_rows_of_any_type_are_kept_under_xla_too(dtype):
    v, rows = variable(dtype), KeptRows()
    step = traced(lambda i: v.scatter_nd_update([[i]], tf.cast([[1, 0, 1]], dtype)), rows, jit_compile=True)
    before, backup = v.numpy(), Backup(rows=rows)
    backup.cover_rows([v])
    for i in (3, 4, 3):
        step(tf.constant(i))
    np.testing.assert_array_equal(rows.value_before(v), before)


def test_a_row_that_is_not_finite_is_found_until_the_next_settled_state():
    v, rows, check = variable(), KeptRows(), FiniteCheck()
    v.scatter_nd_update([[0]], [[np.inf, 0, 0]])
    step = traced(lambda i: v.scatter_nd_add([[i]], [[tf.where(i == 5, np.nan, 1.0), 0, 0]]), rows)
    for i, finite in ((0, True), (5, False), (1, True)):
        backup = Backup(rows=rows)
        backup.cover_rows([v])
        step(tf.constant(i))
        step(tf.constant(2))
        assert check(backup) is finite
        if not finite:
            backup.restore()


def test_stamps_of_a_byte_last_for_any_number_of_windows():
    v, rows = variable(), KeptRows()
    step = traced(lambda i: v.scatter_nd_add([[i % ROWS]], [[1.0, 0, 0]]), rows)
    for i in range(600):
        if i % 2 == 0:
            before, backup = v.numpy(), Backup(rows=rows)
            backup.cover_rows([v])
        step(tf.constant(i % 7))
        if i % 2:
            np.testing.assert_array_equal(rows.value_before(v), before)


@pytest.mark.parametrize(
    "also",
    [
        lambda v: v.assign_add(tf.ones_like(v)),
        lambda v: v.scatter_nd_add([[0, 0]], [1.0]),  # rows of another depth
        lambda v: v[::2].assign(tf.ones([ROWS // 2, 3])),
        lambda v: tf.raw_ops.ResourceScatterAdd(resource=v.handle, indices=[1], updates=[[1.0, 1.0, 1.0]]),
    ],
)
def test_a_variable_that_is_written_in_another_way_too_is_copied(also):
    v, rows = variable(), KeptRows()
    both = traced(lambda i: [v[i].assign(tf.zeros([3])), also(v)], rows)
    assert written_variables(both.graph, [v], writes_rows) == [v]
    # A step that writes rows only came first in this window: what is copied now is still the value from its beginning.
    first = traced(lambda i: v[i].assign(tf.zeros([3])), rows)
    before, backup = v.numpy(), Backup(rows=rows)
    backup.cover_rows([v])
    first(tf.constant(3))
    backup.cover([v])
    both(tf.constant(4))
    backup.restore()
    np.testing.assert_array_equal(v.numpy(), before)


def test_what_a_graph_only_reads_is_not_written():
    a, b, c, d = (tf.Variable(tf.ones([4, 2])) for _ in range(4))

    def step(n):
        inner = tf.function(lambda x: x + c.sparse_read([0]))

        def body(i):
            tf.cond(i > 0, lambda: a.assign_add(b).read_value(), lambda: a.read_value())
            inner(tf.switch_case(n, [lambda: d.read_value(), lambda: b.read_value()]))
            return i + 1

        tf.while_loop(lambda i: i < n, body, [tf.constant(0)])

    graph = tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int32)).graph
    assert [v is a for v in written_variables(graph, [a, b, c, d])] == [True]


def test_a_backup_copies_only_what_is_written_afterwards():
    written, read = tf.Variable(tf.zeros([1000])), tf.Variable(tf.zeros([1000]))
    backup = Backup([written, read])
    addresses = [np.asarray(memoryview(t)).__array_interface__["data"][0] for t in (written.read_value(), read.read_value())]
    kept = [np.asarray(memoryview(t)).__array_interface__["data"][0] for t in backup.values]
    assert kept == addresses  # no copy was made
    written.assign_add(tf.ones([1000]))
    assert float(backup.values[0][0]) == 0.0
    backup.restore()
    assert float(written[0]) == 0.0
