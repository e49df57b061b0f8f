"""What would make a resumed run differ is named before training, and what is named really differs; the rest is not accused."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds import dataset_inspection, dataset_position
from loops.feeds.dataset_inspection import Pipeline, Replay, findings


@pytest.fixture(autouse=True)
def _no_global_seed():
    """Which another test may have set in this process, and which would be the seed of pipelines that have none."""
    tf.random.set_seed(None)


def numbers(n=40):
    return tf.data.Dataset.range(n)


def with_options(dataset, **values):
    options = tf.data.Options()
    for name, value in values.items():
        setattr(options, name, value)
    return dataset.with_options(options)


def generated():
    return tf.data.Dataset.from_generator(lambda: iter(range(9)), output_signature=tf.TensorSpec([], tf.int64))


def noise(x):
    return tf.cast(x, tf.float32) + tf.random.uniform([])


TABLE = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [3, 4]), -1)
GENERATOR = tf.random.Generator.from_seed(1)
COUNT = tf.Variable(1, dtype=tf.int64)

FINE = {
    "plain": lambda: numbers().batch(4),
    "seeded": lambda: numbers().shuffle(9, seed=0).batch(4).prefetch(2),
    "seeded, one order": lambda: numbers().shuffle(9, seed=0, reshuffle_each_iteration=False).batch(4),
    "parallel, in order": lambda: numbers().interleave(lambda x: numbers(2).map(lambda y: x + y), num_parallel_calls=2, deterministic=True),
    "order not asked to be lost": lambda: numbers().map(lambda x: x + 1, deterministic=False).batch(4),
    "stateless": lambda: numbers().map(lambda x: tf.random.stateless_uniform([], tf.stack([x, 1]))).batch(4),
    "a table": lambda: numbers().map(lambda x: TABLE.lookup(tf.cast(x, tf.int32))).batch(4),
    "arrays": lambda: tf.data.Dataset.from_tensor_slices({"a": np.zeros([9, 2]), "b": np.zeros(9)}).cache().batch(2),
    "random": lambda: tf.data.Dataset.random(seed=1).take(9).batch(2),
    "a seeded mixture": lambda: tf.data.Dataset.sample_from_datasets([numbers(), numbers(3)], seed=1).batch(2),
}
NAMED = {
    "no seed": (lambda: numbers().shuffle(9).batch(4), ["shuffle has no seed"]),
    "no seed, one order": (lambda: numbers().shuffle(9, reshuffle_each_iteration=False).batch(4), ["shuffle has no seed"]),
    "no seed within interleave": (
        lambda: numbers().interleave(lambda x: numbers(4).shuffle(4)),
        ["shuffle has no seed", "it shuffles within a mapped function"],
    ),
    "a mixture without a seed": (lambda: tf.data.Dataset.sample_from_datasets([numbers(), numbers(3)]), ["Dataset.random"]),
    "any order": (lambda: numbers().map(lambda x: x + 1, num_parallel_calls=2, deterministic=False), ["map with deterministic=False"]),
    "any order of files": (
        lambda: numbers().interleave(lambda x: numbers(2), num_parallel_calls=2, deterministic=False),
        ["interleave with deterministic=False"],
    ),
    "any order by option": (
        lambda: with_options(numbers().map(lambda x: x + 1), deterministic=False).batch(2),
        ["options have deterministic"],
    ),
    "hidden state": (
        lambda: numbers().map(noise).batch(2),
        ["draws random numbers from hidden state (RandomUniform)", "RandomUniform keeps state"],
    ),
    "hidden state in a filter": (
        lambda: numbers().filter(lambda x: tf.random.uniform([], seed=3) > 0.5),
        ["hidden state (RandomUniform)", "RandomUniform keeps state"],
    ),
    "a generator's variable": (
        lambda: numbers().map(lambda x: GENERATOR.uniform([])),
        ["draws from a tf.random.Generator", "cannot save the position"],
    ),
    "a variable": (lambda: numbers().map(lambda x: x + COUNT), ["cannot save the position"]),
    "a Python generator": (lambda: generated().batch(2), ["reads from a Python generator (from_generator)"]),
    "py_function": (lambda: numbers().map(lambda x: tf.py_function(lambda v: v, [x], tf.int64)), ["calls Python (py_function)"]),
    "numpy_function": (lambda: numbers().map(lambda x: tf.numpy_function(lambda v: v, [x], tf.int64)), ["calls Python (numpy_function)"]),
    "shuffle below repeat": (lambda: numbers().shuffle(9, seed=1).repeat(3).batch(2), ["shuffles below repeat"]),
}


@pytest.mark.parametrize("name", FINE)
def test_a_pipeline_that_resumes_exactly_is_not_accused(name):
    assert findings(FINE[name]()) == []


@pytest.mark.parametrize("name", NAMED)
def test_what_would_differ_or_be_slow_is_named(name):
    make, expected = NAMED[name]
    found = findings(make())
    assert len(found) == len(expected), found
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence and "\n" not in sentence and sentence.endswith((".", "before.", "out."))


def test_a_global_seed_is_a_seed():
    assert findings(numbers().shuffle(9)) != []
    tf.random.set_seed(3)
    try:
        assert findings(numbers().shuffle(9).batch(2)) == []
    finally:
        tf.random.set_seed(None)


def test_what_cannot_be_inspected_is_said(monkeypatch):
    def refuse(*_):
        raise tf.errors.UnimplementedError(None, None, "AsGraphDef is not implemented\nfor this")

    monkeypatch.setattr(dataset_inspection, "_serialized", refuse)
    pipeline = Pipeline.of(numbers())
    assert pipeline.replay is Replay.WHOLE and pipeline.unsaveable is not None
    (sentence,) = pipeline.findings
    assert "could not be inspected (AsGraphDef is not implemented)" in sentence


def test_large_arrays_are_not_copied_to_be_inspected(monkeypatch):
    monkeypatch.setattr(dataset_inspection, "_INSPECTED_AT_MOST_MB", 1)
    large = tf.data.Dataset.from_tensor_slices(np.zeros([3 << 18], "float32")).map(lambda x: x).batch(2)
    (sentence,) = findings(large)
    assert "3 MB of arrays" in sentence and "loops.ArrayFeed" in sentence
    assert findings(tf.data.Dataset.from_tensor_slices(np.zeros([9], "float32")).batch(2)) == []


def test_long_chains_and_shared_parts_are_looked_into():
    chain = numbers(1)
    for _ in range(1200):
        chain = chain.concatenate(numbers(1))
    assert len(dataset_inspection.parts(chain)) == 2401
    shared = numbers(2).shuffle(2, seed=1)
    for _ in range(12):
        shared = tf.data.Dataset.zip(shared, shared).map(lambda a, b: a + b)
    assert len(dataset_inspection.parts(shared)) == 26
    assert loops.DatasetFeed(shared.batch(2)).steps_per_epoch == 1


def test_looking_into_a_pipeline_does_not_disturb_it():
    def passes(look):
        dataset = numbers().shuffle(40, seed=3).batch(4)
        if look:
            findings(dataset)
        return [[b.tolist() for b in dataset.as_numpy_iterator()] for _ in range(2)]

    assert passes(True) == passes(False)


def goes_on(make, folder):
    """Whether the rest of a pass, and the pass after it, are the same after the position was restored in a dataset made anew."""
    dataset, again = make(), make()
    first, other = iter(dataset), iter(again)
    for _ in range(3):
        next(first)
    assert dataset_position.save(first, folder)
    dataset_position.restore(other, folder)
    rest, next_pass = ([[np.asarray(b).tolist() for b in it] for it in its] for its in ((first, other), (iter(dataset), iter(again))))
    return rest[0] == rest[1], next_pass[0] == next_pass[1]


def test_an_unseeded_shuffle_is_right_for_the_rest_of_the_pass_and_wrong_in_the_next(tmp_path):
    assert goes_on(lambda: numbers().shuffle(9).batch(4), tmp_path / "a") == (True, False)
    assert goes_on(lambda: numbers().shuffle(9, reshuffle_each_iteration=False).batch(4), tmp_path / "b") == (True, False)
    assert goes_on(lambda: numbers().shuffle(9, seed=1).batch(4), tmp_path / "c") == (True, True)


@pytest.mark.parametrize(
    "name", ["hidden state", "a generator's variable", "a variable", "a Python generator", "py_function", "numpy_function"]
)
def test_what_is_said_to_be_unsaveable_cannot_be_saved(name, tmp_path):
    make, _ = NAMED[name]
    assert Pipeline.of(make()).unsaveable is not None
    assert not dataset_position.save(iter(make()), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FINE)
def test_what_is_not_said_to_be_unsaveable_can_be_saved(name, tmp_path):
    assert dataset_position.save(iter(FINE[name]()), tmp_path)


@pytest.mark.parametrize(
    ("make", "replay"),
    [
        (lambda s: s, Replay.ITERATORS),
        (lambda s: s.map(lambda x: x).filter(lambda x: x > 1).batch(2).prefetch(1), Replay.ITERATORS),
        (lambda s: s.batch(2).shuffle(3, seed=1), Replay.FIRST_BATCH),
        (lambda s: s.shuffle(3, seed=1, reshuffle_each_iteration=False), Replay.FIRST_BATCH),
        (lambda s: s.repeat(2), Replay.WHOLE),
        (lambda s: s.batch(2).cache(), Replay.WHOLE),
        (lambda s: numbers(2).concatenate(s), Replay.WHOLE),
        (lambda s: numbers(2).flat_map(lambda _: s), Replay.WHOLE),
        (lambda s: numbers(2).cache().repeat(3), Replay.NOTHING),
        (lambda s: numbers(9).cache().shuffle(9, seed=1), Replay.ITERATORS),
    ],
)
def test_how_much_of_a_pass_has_to_be_done_again(make, replay):
    assert Pipeline.of(make(numbers(9).shuffle(9, seed=1))).replay is replay
