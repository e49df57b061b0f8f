"""Which captured variables a graph can write, at any depth, and that nothing else is said to be written."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf

from loops.graphs.written_resources import written_captures


def written(function, variables, *arguments):
    names = {id(v.handle): name for name, v in variables.items()}
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    return {names[id(handle)]: by for handle, by in written_captures(graph) if id(handle) in names}


@pytest.fixture
def v():
    return {name: tf.Variable([1.0, 2.0]) for name in ("read", "write")}


def test_at_any_depth(v):
    inner = tf.function(lambda x: v["write"].assign_add(x * v["read"]), autograph=False)
    steps = {
        "itself": lambda x: v["write"].assign(x + v["read"]),
        "call": lambda x: inner(x),
        "cond": lambda x: tf.cond(x[0] > v["read"][0], lambda: inner(x), lambda: x),
        "switch": lambda x: tf.switch_case(tf.cast(x[0], tf.int32), [lambda: v["read"] + x, lambda: inner(x)]),
        "while": lambda x: tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, inner(y)), (0, x)),
        "map": lambda x: tf.map_fn(lambda y: inner(y[None] + x), x, fn_output_signature=tf.TensorSpec([2])),
        "nested": lambda x: tf.while_loop(
            lambda i, _: i < 3, lambda i, y: (i + 1, tf.cond(y[0] > 0.0, lambda: inner(y), lambda: v["read"] * y)), (0, x)
        ),
    }
    for name, step in steps.items():
        assert set(written(step, v, tf.TensorSpec([2]))) == {"write"}, name


@pytest.mark.parametrize(
    ("by", "write"),
    {
        "AssignSubVariableOp": lambda v: v.assign_sub(v),
        "ResourceScatterUpdate": lambda v: v.scatter_update(tf.IndexedSlices([1.0], [0])),
        "ResourceApplyGradientDescent": lambda v: tf.raw_ops.ResourceApplyGradientDescent(var=v.handle, alpha=0.1, delta=[1.0, 1.0]),
    }.items(),
)
def test_in_any_way(by, write, v):
    def step():
        write(v["write"])
        return tf.gather(v["read"], [0]), tf.gather_nd(v["read"], [[0]]), tf.shape(v["read"]), v["read"][:1]

    assert written(step, v) == {"write": by}


def test_of_a_model_what_training_updates_and_nothing_in_evaluation():
    model = keras.Sequential([keras.Input([4]), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
    variables = {variable.path.split("/")[-1]: variable.value for variable in model.variables}
    spec = tf.TensorSpec([8, 4])
    assert set(written(lambda x: model(x, training=True), variables, spec)) == {"moving_mean", "moving_variance", "seed_generator_state"}
    assert written(lambda x: model(x, training=False), variables, spec) == {}


def test_other_state_is_found_too():
    iterator = iter(tf.data.Dataset.range(3))
    graph = tf.function(lambda: next(iterator)).get_concrete_function().graph
    assert [by for _, by in written_captures(graph)] == ["IteratorGetNext"]
