"""Batches that Python makes: the right ones in the right order, from any position, made ahead by workers, waiting for nobody."""

import itertools
import os
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds.from_keras import AdapterFeed, feed_for
from loops.feeds.reader import open_reader
from loops.feeds.stacking import Stacker, groups
from loops.testing import FakeClock
from tests.loops import tiny


def numbers(feed, position=None):
    """The number that each batch of a pass is made of."""
    return [
        int(v) for block in feed.blocks(position or loops.Position()) for v in tf.nest.flatten(block.tensors)[0].numpy()[: block.n, 0, 0]
    ]


class Numbered(keras.utils.PyDataset):
    """Batch i is made of the number i; the last one is smaller."""

    def __init__(self, n=10, **kwargs):
        super().__init__(**kwargs)
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rows = 2 if i == self.n - 1 else 4
        return np.full([rows, 1], i, "float32"), np.full([rows], i)


class Endless(Numbered):
    @property
    def num_batches(self):
        return None


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_pydataset_can_be_read_from_any_position(workers, shuffle):
    feed = loops.PyDatasetFeed(Numbered(workers=workers, max_queue_size=2), shuffle=shuffle, seed=3)
    feed._stacker.size = 3
    for index in (0, 2):
        whole = numbers(feed, loops.Position(index))
        assert sorted(whole) == list(range(10)) and (whole == list(range(10))) == (not shuffle)
        for batch in (1, 4, 9):
            assert numbers(feed, loops.Position(index, batch)) == whole[batch:]
    if shuffle:
        assert numbers(feed, loops.Position(0)) != numbers(feed, loops.Position(1))


def test_an_endless_pydataset_is_read_on_and_on():
    feed = loops.PyDatasetFeed(Endless())
    assert feed.endless and feed.steps_per_epoch is None
    block = next(iter(feed.blocks(loops.Position(0, 10**9))))
    assert block.tensors[0].numpy()[0, 0, 0] == np.float32(10**9)


class Meeting(Numbered):
    """A batch is ready when two are being made at the same time."""

    def __init__(self, **kwargs):
        super().__init__(n=8, **kwargs)
        self.barrier, self.alone = threading.Barrier(2), True

    def __getitem__(self, i):
        if not self.alone:
            self.barrier.wait(timeout=30)
        return super().__getitem__(i)


def test_workers_make_batches_at_the_same_time():
    data = Meeting(workers=2)
    feed = loops.PyDatasetFeed(data)
    data.alone = False
    assert numbers(feed) == list(range(8))


class OfProcess(Numbered):
    def __getitem__(self, i):
        return np.full([4, 1], i, "float32"), np.full([4], os.getpid())


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_processes_make_batches_if_asked():
    feed = loops.PyDatasetFeed(OfProcess(6, workers=2, use_multiprocessing=True))
    made = list(feed.blocks(loops.Position()))
    assert [i for block in made for i in block.tensors[0].numpy()[: block.n, 0, 0].tolist()] == list(range(6))
    assert all(os.getpid() not in block.tensors[1].numpy()[: block.n] for block in made)


def test_an_error_of_a_worker_arrives_in_the_training_thread():
    class Broken(Numbered):
        def __getitem__(self, i):
            if i == 5:
                raise OSError("the disk is gone")
            return super().__getitem__(i)

    loop = loops.TrainLoop(tiny.Classifier(), loops.PyDatasetFeed(Broken(workers=2)))
    with pytest.raises(OSError, match="the disk is gone"):
        list(loop.feed.blocks(loops.Position()))


class OwnOrder(keras.utils.PyDataset):
    """Real batches, in another order in each epoch; notes what it is told, and by which thread."""

    def __init__(self):
        super().__init__()
        self.told, self.order = [], np.arange(100)

    def __len__(self):
        return 7

    def __getitem__(self, i):
        self.told.append("read")
        x, y = tiny.data(100)
        rows = self.order[16 * i : 16 * (i + 1)]
        return x[rows], y[rows]

    def on_epoch_end(self):
        self.told.append(("end", threading.current_thread() is threading.main_thread()))
        self.order = np.roll(self.order, 7)


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_a_pydataset_hears_of_an_end_of_an_epoch_when_it_was_trained_on(compile):
    data = OwnOrder()
    feed = loops.PyDatasetFeed(data)
    at = []

    class Look(loops.hooks.Hook):
        every = "1 steps"

        def on_window_end(self, loop, window):
            at.append((loop.progress.step, sum(isinstance(t, tuple) for t in data.told)))

    loop = loops.TrainLoop(tiny.Classifier(), feed, [Look()], compile=compile)
    loop.run(epochs=2)
    assert at == [(s, 1 if s < 7 else 2 if s < 14 else 3) for s in range(1, 15)]
    assert [t for t in data.told if t != "read"] == [("end", True)] * 3
    assert data.told.count("read") == 2 + 14


def with_a_bad_row():
    x, y = tiny.data(16 * 12)
    x[16 * 5 + 3] = np.nan
    return x, y


@pytest.fixture(scope="module")
def without_the_bad_batch():
    """The state after 22 steps on all batches but the bad one."""
    x, y = with_a_bad_row()
    rest = [(x[16 * i : 16 * (i + 1)], y[16 * i : 16 * (i + 1)]) for i in range(12) if i != 5]
    task = tiny.Classifier()
    loops.TrainLoop(task, loops.GeneratorFeed(lambda: iter(rest))).run(steps=22)
    return tiny.state(task)


@pytest.mark.parametrize("kind", ["pydataset", "own order", "generator"])
def test_a_bad_step_is_found_and_skipped(kind, without_the_bad_batch):
    x, y = with_a_bad_row()

    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return x[16 * i : 16 * (i + 1)], y[16 * i : 16 * (i + 1)]

    class Told(Rows):
        def on_epoch_end(self):
            pass

    made = {"pydataset": Rows, "own order": Told, "generator": Rows}[kind]()
    feed = loops.GeneratorFeed(lambda: (made[i] for i in range(12))) if kind == "generator" else loops.PyDatasetFeed(made)
    feed._stacker.size = 4
    assert feed.seekable == (kind == "pydataset")
    task = tiny.Classifier()
    loops.TrainLoop(task, feed, on_nonfinite="skip").run(steps=22)
    tiny.assert_same_bits(tiny.state(task), without_the_bad_batch)


def test_generators_begin_anew_with_each_pass_and_may_know_its_number():
    def plain():
        return ((np.full([2, 1], i),) for i in range(4))

    def of_pass(index):
        return ((np.full([2, 1], 10 * index + i),) for i in range(4))

    assert [numbers(loops.GeneratorFeed(plain), loops.Position(p)) for p in (0, 1)] == [[0, 1, 2, 3]] * 2
    feed = loops.GeneratorFeed(of_pass)
    assert [numbers(feed, loops.Position(p)) for p in (0, 1, 2)] == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert numbers(loops.GeneratorFeed([b for b in plain()]), loops.Position(3)) == [0, 1, 2, 3]


def test_a_pass_over_an_iterator_is_its_next_batches(capsys):
    def endless():
        return ((np.full([2, 1], i),) for i in itertools.count())

    feed = loops.GeneratorFeed(endless(), steps_per_epoch=3)
    assert [numbers(feed, loops.Position(p)) for p in (0, 1)] == [[0, 1, 2], [3, 4, 5]]
    assert numbers(feed, loops.Position(0)) == [6, 7, 8]  # as the validation data of the next epoch
    assert capsys.readouterr().out == ""
    assert numbers(loops.GeneratorFeed(endless(), steps_per_epoch=3), loops.Position(2, 1)) == [7, 8]
    assert capsys.readouterr().out == "Resuming: reading and dropping 7 batches of a Python generator.\n"


def test_a_generator_run_is_carried_on_with_the_same_bits(tmp_path, capsys):
    def batches(index):
        x, y = tiny.data(100, seed=index)
        return ((x[16 * i : 16 * (i + 1)], y[16 * i : 16 * (i + 1)]) for i in range(7))

    whole = loops.TrainLoop(tiny.Classifier(random=True), loops.GeneratorFeed(batches))
    whole.run(epochs=3)
    loops.TrainLoop(tiny.Classifier(random=True), loops.GeneratorFeed(batches), workdir=tmp_path / "run").run(steps=10)
    assert "Note on the data: A Python generator cannot be saved" in capsys.readouterr().out
    loop = loops.TrainLoop(tiny.Classifier(random=True), loops.GeneratorFeed(batches), workdir=tmp_path / "run")
    loop.run(epochs=3)
    assert "reading and dropping 3 batches of a Python generator" in capsys.readouterr().out
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(whole.task))


def test_the_next_block_is_made_while_steps_run():
    """A source that gives its second block only while the first is being trained on would stop a loop that cuts when it needs."""
    in_step, x = threading.Event(), np.ones([4, 1], "float32")

    class Waiting(tiny.Classifier):
        def train_step(self, batch):
            in_step.set()
            return {"loss": tf.reduce_sum(batch[0])}

    def batches():
        yield (x,)
        yield (x,)  # looked at for the type
        for _ in range(3):
            assert in_step.wait(timeout=30)
            in_step.clear()
            yield (x,)

    feed = loops.GeneratorFeed(batches)
    feed._stacker.size = 1
    loop = loops.TrainLoop(Waiting(), feed, compile="eager")
    loop.run(epochs=1)
    assert loop.progress.step == 5


def test_nobody_waits_for_a_full_block_of_slow_batches():
    clock = FakeClock(tick=0.01)

    def slow():
        for i in range(10):
            clock.advance(0.1 if i < 6 else 0.0)
            yield i

    # Training waits for the first ones, so these are shorter.
    assert list(groups(slow(), 4, lambda batch: 0, clock)) == [[0, 1], [2, 3], [4, 5], [6, 7, 8, 9]]
    assert list(groups(range(7), 3, lambda batch: batch == 4, FakeClock())) == [[0, 1, 2], [3], [4], [5, 6]]


def test_batches_of_python_have_keras_types():
    batch = ({"a": np.array([[1.5], [2.5]]), "b": np.zeros([2, 3], "float64")}, np.array(["x", "y"]), None)
    stacker = Stacker([batch, ({"a": np.array([[1.5]]), "b": np.zeros([1, 3], "float64")}, np.array(["x"]), None)], "generator")
    x, y, weight = stacker.element_spec
    assert x["a"] == tf.TensorSpec([None, 1], tf.float64) and x["b"] == tf.TensorSpec([None, 3], tf.float64)
    assert y == tf.TensorSpec([None], tf.string) and weight is None
    block = next(stacker.blocks([batch, batch]))
    assert block.tensors[1].numpy()[0].tolist() == [b"x", b"y"] and block.tensors[2] is None


def test_what_keras_takes_comes_through_these_feeds_where_it_is_dense():
    assert type(feed_for(Numbered())) is loops.PyDatasetFeed
    assert type(feed_for(b for b in [(np.ones([2, 1]), np.ones(2))])) is loops.GeneratorFeed
    sparse = ((tf.sparse.from_dense(np.eye(3, dtype="float32")), np.ones(3)) for _ in range(3))
    feed = feed_for(sparse)
    assert type(feed) is AdapterFeed and isinstance(feed.element_spec[0], tf.SparseTensorSpec)


def test_class_weights_of_a_pydataset_become_sample_weights():
    feed = feed_for(Numbered(4), class_weight={1: 3.0})
    weights = [row for block in feed.blocks(loops.Position()) for row in block.tensors[2].numpy()[: block.n].tolist()]
    assert weights == [[1] * 4, [3] * 4, [1] * 4, [1] * 2]


class Longer(Numbered):
    def on_epoch_end(self):
        self.n += 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loops.PyDatasetFeed([1, 2]), "takes a keras.utils.PyDataset, got list"),
        (lambda: loops.PyDatasetFeed(Numbered(0)), "0 batches"),
        (lambda: loops.GeneratorFeed(3), "iterable of batches; got int"),
        (lambda: loops.GeneratorFeed(iter([])), "The generator gave no batch"),
        (lambda: loops.GeneratorFeed([(np.ones([2, 1]),), (np.ones([2, 1]), np.ones(2))]), "different structure"),
        (lambda: numbers(loops.GeneratorFeed([(np.ones([2, 1]),)] * 2 + [(np.ones([2, 5]),)])), r"shape \[2, 5\], but its first"),
        (lambda: numbers(loops.GeneratorFeed(lambda: [(np.ones([2, 1]),)] * 3), loops.Position(0, 4)), "ended before batch 4"),
    ],
)
def test_bad_data_gets_a_sentence(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_threads_and_workers_end_with_the_cursor():
    def of_feeds():
        return {t for t in threading.enumerate() if t.name.startswith("feed")} - others

    others = set(threading.enumerate())
    for feed in (loops.PyDatasetFeed(Endless(workers=3)), loops.GeneratorFeed(lambda: ((np.ones([2, 1]),) for _ in itertools.count()))):
        reader = open_reader(feed, loops.Position(), "graph")
        assert reader.ready() and of_feeds()
        reader.close()
        assert not of_feeds()
        forgotten = open_reader(loops.PyDatasetFeed(Endless(), read_ahead=True), loops.Position(), "graph")
        (thread,) = of_feeds()
        del forgotten
        thread.join(timeout=30)
        assert not thread.is_alive()
