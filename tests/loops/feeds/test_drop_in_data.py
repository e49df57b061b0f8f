"""What `model.fit` takes as data, `loops.fit` takes: shuffled, weighted, and read when Keras would read it."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

import loops
from loops.feeds.class_weights import weights_of
from loops.feeds.from_keras import feed_for
from loops.feeds.rows import rows_of

N = 24
ROWS = np.arange(N, dtype="float32")[:, None]


def rows_seen(feed, passes=1):
    """The numbers of the rows that each pass gives, from the part "row" of a batch."""
    seen = []
    for index in range(passes):
        batches = feed.iterator(loops.Position(index), continuing=False)
        seen.append(np.concatenate([batch["row"].numpy().ravel() for (batch, *_) in batches]).astype(int))
    return seen


OTHERS = {
    "ragged": lambda: tf.ragged.range(tf.range(N)),
    "sparse": lambda: tf.sparse.from_dense(np.diag(np.arange(1.0, N + 1))),
    "scipy": lambda: scipy.sparse.csr_matrix(np.diag(np.arange(1.0, N + 1))),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_rows_are_shuffled_together_whatever_they_are(kind):
    def make(seed=0):
        return feed_for({"row": ROWS, "bag": OTHERS[kind]()}, ROWS, batch_size=5, shuffle=True, seed=seed)

    first, second = rows_seen(make(), 2)
    assert sorted(first) == sorted(second) == list(range(N))
    assert list(first) != list(range(N)) and list(first) != list(second)
    (again,) = rows_seen(make())
    assert list(again) == list(first) and list(rows_seen(make(1))[0]) != list(first)
    batch, y = next(iter(make().iterator(loops.Position(), continuing=False)))
    bag = batch["bag"]
    of_bag = bag.row_lengths().numpy() if kind == "ragged" else tf.sparse.to_dense(bag).numpy().max(1) - 1
    assert of_bag.astype(int).tolist() == batch["row"].numpy().ravel().astype(int).tolist() == y.numpy().ravel().astype(int).tolist()


def test_a_shuffled_pass_is_read_again_from_any_batch():
    def make():
        return feed_for({"row": ROWS, "bag": OTHERS["ragged"]()}, ROWS, batch_size=5, shuffle=True)

    whole = rows_seen(make(), 2)[1]
    rest = [b["row"].numpy().ravel() for (b, _) in make().iterator(loops.Position(1, 2), continuing=False)]
    assert np.concatenate(rest).astype(int).tolist() == whole[10:].tolist()


def test_rows_of_everything():
    order = np.array([2, 0, 1])
    assert rows_of(np.array([5, 6, 7]), order).tolist() == [7, 5, 6]
    assert rows_of(tf.constant([5, 6, 7]), order).numpy().tolist() == [7, 5, 6]
    dense = np.array([[1, 0], [0, 2], [3, 4]])
    assert rows_of(scipy.sparse.coo_matrix(dense), order).toarray().tolist() == dense[order].tolist()
    assert tf.sparse.to_dense(rows_of(tf.sparse.from_dense(dense), order)).numpy().tolist() == dense[order].tolist()


def test_an_unknown_word_for_shuffle_is_refused():
    with pytest.raises(ValueError, match="`shuffle` must be True, False or 'batch'"):
        feed_for(ROWS, ROWS, shuffle="yes")


# Weights.

CLASSES = np.arange(N) % 3
TARGETS = {
    "numbers": CLASSES,
    "column": CLASSES[:, None],
    "one-hot": keras.utils.to_categorical(CLASSES, 3),
    "floats": CLASSES.astype("float32"),
    "probabilities": keras.utils.to_categorical(CLASSES, 3) * 0.9 + 0.03,
}


@pytest.mark.parametrize("kind", TARGETS)
def test_class_weights_are_those_of_keras(kind):
    weight = {0: 0.5, 2: 4.0}
    expected = keras.src.trainers.data_adapters.data_adapter_utils.class_weight_to_sample_weights(TARGETS[kind], weight)
    np.testing.assert_array_equal(weights_of(TARGETS[kind], weight), expected)


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        (np.zeros([4, 5, 3]), r"needs one class an example.*shape \[4, 5, 3\].*`sample_weight`"),
        (np.array([[2, 0, 1]]), "no one-hot rows"),
        ({"a": CLASSES}, "several outputs"),
        (np.array(["a"]), "dtype"),
    ],
)
def test_targets_without_one_class_an_example_are_refused(y, sentence):
    with pytest.raises(ValueError, match=sentence):
        weights_of(y, {0: 2.0})


class Numbered(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return ROWS[i * 8 : i * 8 + 8], CLASSES[i * 8 : i * 8 + 8]


def batches():
    for i in range(3):
        yield Numbered()[i]


FEEDS = {
    "arrays": lambda: (ROWS, CLASSES),
    "ArrayFeed": lambda: (loops.ArrayFeed((ROWS, CLASSES), 8),),
    "PyDataset": lambda: (Numbered(),),
    "PyDatasetFeed": lambda: (loops.PyDatasetFeed(Numbered()),),
    "generator": lambda: (batches(),),
    "GeneratorFeed": lambda: (loops.GeneratorFeed(batches),),
    "tf.data": lambda: (tf.data.Dataset.from_tensor_slices((ROWS, CLASSES)).batch(8),),
    "DatasetFeed": lambda: (loops.DatasetFeed(tf.data.Dataset.from_tensor_slices((ROWS, CLASSES)).batch(8)),),
    "FeedSchedule": lambda: (loops.FeedSchedule({0: loops.ArrayFeed((ROWS, CLASSES), 8)}),),
}


def test_class_weights_hold_for_every_feed():
    weight, found = {0: 0.5, 2: 4.0}, {}
    for kind, make in FEEDS.items():
        feed = feed_for(*make(), batch_size=8, class_weight=weight)
        feed = feed.feeds[0] if isinstance(feed, loops.FeedSchedule) else feed
        if isinstance(feed, loops.DatasetFeed):
            weights = [batch[2].numpy() for batch in feed.iterator(loops.Position(), continuing=False)]
        else:
            weights = [row for block in feed.blocks(loops.Position()) for row in block.tensors[2].numpy()[: block.n]]
        found[kind] = np.concatenate(weights).tolist()
    assert found == dict.fromkeys(FEEDS, weights_of(CLASSES, weight).tolist())


def test_class_weights_that_cannot_be_applied_are_refused():
    for feed in (loops.NoFeed(3), loops.ArrayFeed((ROWS, CLASSES, ROWS[:, 0]), 8)):
        with pytest.raises(ValueError, match="`class_weight` cannot be applied"):
            feed_for(feed, class_weight={0: 1.0})
    with pytest.raises(ValueError, match="belong into the ArrayFeed's batches"):
        feed_for(loops.ArrayFeed((ROWS, CLASSES), 8), sample_weight=ROWS)


@pytest.mark.parametrize(
    ("y", "weight", "sentence"),
    [
        ({"a": ROWS, "b": ROWS}, {"a": ROWS[:, 0]}, r"there is none for \['b'\]"),
        ({"a": ROWS}, {"a": ROWS[:, 0], "c": ROWS[:, 0]}, r"there is no output \['c'\]"),
        ({"a": ROWS, "b": ROWS}, {"a": ROWS[:, 0], "c": ROWS[:, 0]}, r"there is none for \['b'\]"),
        ([ROWS, ROWS], [ROWS[:, 0]], "2 outputs.*got 1 of them"),
    ],
)
def test_sample_weights_for_some_outputs_name_the_missing_one(y, weight, sentence):
    with pytest.raises(ValueError, match=sentence):
        feed_for(ROWS, y, weight)
    with pytest.raises(ValueError, match=sentence):
        feed_for({"row": ROWS, "bag": OTHERS["ragged"]()}, y, weight)


def test_one_array_of_weights_counts_for_every_output():
    feed = feed_for(ROWS, {"a": ROWS, "b": ROWS}, ROWS[:, 0])
    assert set(feed.element_spec[2]) == {"a", "b"}


# When Python's batches are read.


class Told(keras.utils.PyDataset):
    """Writes down what happens to it, and gives the number of the epoch that a callback has set."""

    def __init__(self, n=4, change=0):
        super().__init__()
        self.n, self.change, self.level, self.log = n, change, 0, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.log.append((i, self.level))
        return np.ones([2, 1], "float32"), np.full([2, 1], self.level, "float32")

    def on_epoch_begin(self):
        self.log.append("begin")

    def on_epoch_end(self):
        self.n += self.change
        self.log.append("end")


class Plain(Told):
    """Overrides neither of Keras's methods."""

    on_epoch_begin = keras.utils.PyDataset.on_epoch_begin
    on_epoch_end = keras.utils.PyDataset.on_epoch_end


def model():
    keras.utils.set_random_seed(0)
    net = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    net.compile("sgd", "mse", jit_compile=False)
    return net


def fit(x, **arguments):
    return loops.fit(model(), x, **{"verbose": 0, "shuffle": False, "compile": "graph", **arguments})


def setting_the_level(data, log):
    return keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: (log.append(f"epoch {epoch}"), setattr(data, "level", epoch + 1)),
        on_epoch_end=lambda epoch, logs: log.append(f"ended {epoch}"),
    )


@pytest.mark.parametrize("kind", [Told, Plain])
def test_a_curriculum_of_a_callback_is_what_is_trained_on(kind):
    data = kind()
    got = fit(data, epochs=3, callbacks=[setting_the_level(data, data.log)]).history["loss"]
    data = kind()
    callback = setting_the_level(data, data.log)
    assert got == model().fit(data, epochs=3, callbacks=[callback], shuffle=False, verbose=0).history["loss"]


@pytest.mark.parametrize("steps", [None, 2])
def test_nothing_of_an_epoch_is_read_before_it_has_begun(steps):
    data = Told()
    fit(data, epochs=4, steps_per_epoch=steps, callbacks=[setting_the_level(data, data.log)])
    begun = data.log.index("epoch 0")
    assert data.log[begun - 1] == "end"  # as Keras calls it once before the first epoch
    expected = []
    for epoch in range(4):
        indices = range(4) if steps is None else range(epoch % 2 * 2, epoch % 2 * 2 + 2)
        expected += [f"epoch {epoch}", "begin", *[(i, epoch + 1) for i in indices], "end", f"ended {epoch}"]
    assert data.log[begun:] == expected


def test_a_generator_is_not_read_ahead_across_an_epoch_either():
    level, read = [0], []

    def endless():
        for i in itertools.count():
            read.append((i, level[0]))
            yield np.ones([2, 1], "float32"), np.ones([2, 1], "float32")

    callback = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: level.__setitem__(0, epoch + 1))
    fit(endless(), epochs=3, steps_per_epoch=3, callbacks=[callback])
    peeked = 2  # Keras looks at as many to learn the types
    assert read[peeked:] == [(2, 1), *[(i, 2) for i in (3, 4, 5)], *[(i, 3) for i in (6, 7, 8)]]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_feed_may_say_that_it_may_be_read_ahead(ahead):
    data = Plain(n=2)
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append(len(data.log)))
    loop = loops.TrainLoop(loops.KerasTask(model()), loops.PyDatasetFeed(data, read_ahead=ahead), [callback], compile="eager")
    loop.run(epochs=3)
    peeked = 2
    assert (seen == [peeked, peeked + 2, peeked + 4]) or (ahead and seen[-1] > peeked + 4)


@pytest.mark.parametrize("is_function", [False, True])
def test_epochs_shorter_than_a_pass_go_on_in_it(is_function):
    def five():
        for i in range(5):
            yield np.ones([2, 1], "float32"), np.full([2, 1], i, "float32")

    def losses(source):
        feed = loops.GeneratorFeed(source)
        loop = loops.TrainLoop(loops.KerasTask(model()), feed, steps_per_epoch=2, compile="graph")
        loop.run(epochs=4)
        return loop.progress.step, loop.history.history["loss"]

    steps, got = losses(five if is_function else itertools.cycle(list(five())).__iter__())
    assert steps == (7 if is_function else 8)  # 2 + 2 + 1 + 2: a pass that ends ends an epoch
    # With a static batch size Keras counts the examples of the batch that is not there any more.
    data = tf.data.Dataset.from_generator(five, output_signature=(tf.TensorSpec([None, 1]), tf.TensorSpec([None, 1])))
    if is_function:
        assert got == model().fit(data, epochs=4, steps_per_epoch=2, verbose=0).history["loss"]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_pydataset_whose_length_changes_is_read_as_keras_reads_it(change, capsys):
    got = fit(Told(4, change), epochs=3)
    expected = model().fit(Told(4, change), epochs=3, shuffle=False, verbose=0)
    assert got.history == expected.history
    assert "had 4 at first" in capsys.readouterr().out


# Data that ends.


def finite(n=3):
    for i in range(n):
        yield np.ones([2, 1], "float32"), np.full([2, 1], i, "float32")


def from_iterator():
    left = finite()
    return tf.data.Dataset.from_generator(lambda: left, output_signature=(tf.TensorSpec([2, 1]), tf.TensorSpec([2, 1])))


@pytest.mark.parametrize(
    ("make", "arguments", "epochs"),
    [
        (finite, {}, [0]),
        (finite, {"steps_per_epoch": 3}, [0]),
        (finite, {"steps_per_epoch": 2}, [0, 1]),
        (from_iterator, {}, [0]),
        (lambda: tf.data.Dataset.range(4).filter(lambda i: i > 9).batch(2).map(lambda i: (i, i)), {}, []),
    ],
)
def test_data_that_ends_ends_the_run_and_leaves_its_history(make, arguments, epochs, capsys):
    history = fit(make(), epochs=3, **arguments)
    assert history.epoch == epochs and len(history.history.get("loss", [])) == len(epochs)
    assert "the data has ended" in capsys.readouterr().out


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_no_mode_asks_empty_data_without_end(compile, capsys):
    empty = tf.data.Dataset.from_tensor_slices((ROWS, ROWS)).filter(lambda x, y: x[0] > 99).batch(2)
    loop = loops.TrainLoop(loops.KerasTask(model()), loops.DatasetFeed(empty), compile=compile)
    loop.run(epochs=2)
    assert loop.progress.step == 0 and loop.outcome == "stopped"
    assert "the data has ended" in capsys.readouterr().out


def test_a_validation_generator_that_ends_is_evaluated_again_whole():
    history = fit(Numbered(), epochs=2, validation_data=finite(5))
    again = fit(Numbered(), epochs=2, validation_data=loops.GeneratorFeed(lambda: finite(5)))
    assert history.history["val_loss"] == again.history["val_loss"] and len(history.history["val_loss"]) == 2


def test_validation_without_a_batch_loses_no_history(capsys):
    history = fit(Numbered(), epochs=2, validation_data=from_iterator())
    assert len(history.history["loss"]) == 2 and len(history.history["val_loss"]) == 1
    assert "no batch for the evaluation 'val'" in capsys.readouterr().out


def test_batches_of_tensors_are_arrays():
    def mixed():
        while True:
            yield tf.ones([2, 1]), np.ones([2, 1], "float32")

    history = fit(mixed(), steps_per_epoch=2)
    assert history.history == model().fit(mixed(), steps_per_epoch=2, verbose=0).history


def test_what_a_distributed_data_set_was_made_from_is_read(two_replicas):
    data = tf.data.Dataset.from_tensor_slices((ROWS, ROWS)).batch(8)
    spread = two_replicas.experimental_distribute_dataset(data)
    assert feed_for(spread).dataset is data
    with pytest.raises(TypeError, match="Give the tf.data.Dataset itself"):
        feed_for(two_replicas.distribute_datasets_from_function(lambda context: data))


@pytest.mark.parametrize("compile", ["graph", "xla"])
def test_a_tensorflow_data_set_that_calls_python_is_not_read_ahead_either(compile):
    level = [0]

    def rows():
        for _ in range(3):
            yield np.ones([2, 1], "float32"), np.full([2, 1], level[0], "float32")

    def losses(train):
        callback = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: level.__setitem__(0, epoch + 1))
        spec = tf.TensorSpec([None, 1])  # with a static size Keras counts the examples of the batch that is not there any more
        return train(tf.data.Dataset.from_generator(rows, output_signature=(spec, spec)), epochs=3, callbacks=[callback]).history["loss"]

    expected = losses(lambda data, **arguments: model().fit(data, verbose=0, **arguments))
    np.testing.assert_allclose(losses(lambda data, **arguments: fit(data, compile=compile, **arguments)), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["function", "PyDataset", "shuffled PyDataset"])
def test_a_run_of_epochs_shorter_than_a_pass_is_carried_on_with_the_same_bits(kind, tmp_path):
    def five():
        for i in range(5):
            yield ROWS[i * 4 : i * 4 + 4] / N, ROWS[i * 4 : i * 4 + 4]

    class Five(Plain):
        def __getitem__(self, i):
            return list(five())[i]

    def run(workdir, *targets):
        for target in targets:
            feed = loops.GeneratorFeed(five) if kind == "function" else loops.PyDatasetFeed(Five(5), shuffle="shuffled" in kind)
            loop = loops.TrainLoop(loops.KerasTask(model()), feed, steps_per_epoch=2, workdir=tmp_path / workdir, compile="graph")
            loop.run(**target)
        return loop.history.history, loop.task.model.get_weights(), loop.progress.step

    whole = run("whole", {"epochs": 5})
    parts = run("parts", {"steps": 3}, {"epochs": 3}, {"steps": 6}, {"epochs": 5})
    assert parts[0] == whole[0] and parts[2] == whole[2] == 9  # 2 + 2 + 1, and again 2 + 2
    np.testing.assert_array_equal(np.concatenate([w.ravel() for w in parts[1]]), np.concatenate([w.ravel() for w in whole[1]]))
