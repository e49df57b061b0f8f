"""compile="auto" chooses by rules where it can, measures without leaving a trace where it cannot, and chooses the same the next time."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.engine import compile_mode, mode_cache
from loops.engine.program import Program
from loops.engine.step import GlobalStep
from loops.feeds.py_dataset import PyDatasetFeed
from tests.loops import tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TAPELOOPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch):
    """Has every run measured, and XLA found so many times as fast; returns what was measured."""
    monkeypatch.setattr(compile_mode, "_SHORT_SECONDS", 0.0)
    seen = []

    def faster(times):
        class Timer(compile_mode._Timer):
            def do_round(self):
                super().do_round()
                seen.append(self._program.mode)

            @property
            def once(self):
                return self.seconds

            @once.setter
            def once(self, value):
                pass

            @property
            def seconds(self):
                return 1.0 / times if self._program.mode == "xla" else 1.0

        monkeypatch.setattr(compile_mode, "_Timer", Timer)
        return seen

    return faster


def small():
    """Plain SGD is compiled in half of the time of Adam."""
    return tiny.Classifier(keras.optimizers.SGD(0.05))


def trained(compile="auto", task=None, epochs=1, feed=None, **arguments):
    loop = loops.TrainLoop(task or small(), feed or loops.ArrayFeed(tiny.data(96), 16), compile=compile, **arguments)
    loop.run(epochs=epochs)
    return loop


@pytest.mark.parametrize(("times", "mode"), [(3.0, "xla"), (1.05, "graph")])
def test_what_is_faster_is_taken_and_gives_the_bits_of_that_mode(times, mode, measured, cache, capsys):
    seen, ragged = measured(times), loops.ArrayFeed(tiny.data(100), 16)
    loop = trained(feed=ragged)
    assert loop.mode == mode and set(seen) == {"graph", "xla"} and len(list(cache.iterdir())) == 1
    assert f"compile='auto' takes {mode}: XLA does {times:.2f} times" in capsys.readouterr().out
    # The program that was measured is the one that trains: one for whole blocks and one for the tail, and nothing was compiled again.
    assert mode == "graph" or loop.execution.program.compilations == 2
    given = trained(mode, feed=ragged)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(given.task))
    assert loop.history.history == given.history.history


def test_a_hopeless_program_is_given_up_after_its_first_steps(measured, capsys):
    seen = measured(1 / 7)
    assert trained().mode == "graph" and not seen
    assert "one step that XLA compiled takes 7 times that of a graph" in capsys.readouterr().out


def test_real_clocks_choose_too():
    why = choice().why
    assert why["mode"] in ("graph", "xla") and min(why["microseconds_per_step"].values()) > 0


def test_a_choice_is_remembered_for_the_same_step(measured, capsys):
    seen = measured(3.0)
    trained()
    count = len(seen)
    measured(0.3)
    assert trained().mode == "xla" and len(seen) == count
    assert "as was measured earlier" in capsys.readouterr().out
    other = tiny.Classifier(keras.optimizers.SGD(0.05, momentum=0.9))
    assert trained(task=other).mode == "graph", "another step is measured by itself"


def test_a_choice_is_remembered_however_fast_the_data_came(measured, monkeypatch, capsys):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return tuple(part[16 * index : 16 * (index + 1)] for part in tiny.data(96))

    seen = measured(3.0)
    for seconds in (1e9, 0.0):  # all six batches fill a block; each is a block of its own
        monkeypatch.setattr("loops.feeds.stacking._SECONDS", seconds)
        monkeypatch.setattr("loops.feeds.stacking._FIRST_SECONDS", seconds)
        trained(feed=PyDatasetFeed(Batches(), read_ahead=True))
    assert "as was measured earlier" in capsys.readouterr().out and len(seen) == 2 * compile_mode._ROUNDS


def test_a_measurement_leaves_no_trace_even_in_variables_that_nobody_tracks(measured):
    measured(0.5)
    outside = tf.Variable(0, dtype=tf.int64)

    class Counts(tiny.Classifier):
        def __init__(self):
            super().__init__(
                keras.optimizers.SGD(0.05, momentum=0.9)
            )  # only one operation takes its slots, and the graph does not list them

        def train_step(self, batch):
            outside.assign_add(1)
            return super().train_step(batch)

    loop = trained(task=Counts())
    assert int(outside) == loop.progress.step
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(trained("graph", task=Counts()).task))


def choice(task=None, feed=None, steps=10**9, strategy=None):
    """What is chosen for a task, which is traced and not trained."""
    task, strategy = task or small(), strategy or tf.distribute.get_strategy()

    def program(mode):
        return Program(GlobalStep(task, "train_step", strategy), mode)

    return compile_mode.choose(program, feed or loops.ArrayFeed(tiny.data(100), 16), steps=steps, guarded=False)


def dataset():
    return tf.data.Dataset.from_tensor_slices(tiny.data(96)).batch(16)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"steps": 10_000}, "the run is short"),
        ({"steps": None}, "the length of the run is not known"),
        ({"feed": lambda: loops.DatasetFeed(dataset())}, "the data cannot be read twice"),
        ({"feed": lambda: loops.NoFeed(3)}, "the data cannot be read twice"),
    ],
)
def test_what_is_not_worth_a_measurement_or_cannot_be_measured_is_a_graph(arguments, reason, cache):
    chosen = choice(**{name: value() if callable(value) else value for name, value in arguments.items()})
    assert chosen.why == {"mode": "graph", "reason": reason} and chosen.program.mode == "graph" and not cache.exists()


def test_several_replicas_are_a_graph(two_replicas):
    with two_replicas.scope():
        task = tiny.Classifier()
    assert choice(task, strategy=two_replicas).why["reason"] == "there are several replicas"


class Obstructed(tiny.Classifier):
    """Has an operation in its step that is none for XLA."""

    def __init__(self, obstacle):
        super().__init__()
        self.obstacle, self.conv = obstacle, keras.layers.DepthwiseConv2D([2, 3], depth_multiplier=6)

    def train_step(self, batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = self.loss(y, self.model(self.obstacle(self, x), training=True))
        self.minimize(loss, tape, self.optimizer, [*self.model.trainable_variables, *self.conv.trainable_variables])
        return {"loss": loss}


def _printing(task, x):
    tf.print(tf.reduce_sum(x))
    return x


def _asserting(task, x):
    tf.debugging.assert_less(x, 1e9)
    return x


OBSTACLES = {
    "PrintV2": _printing,
    "Assert": _asserting,
    "RandomStandardNormal": lambda task, x: x + tf.random.normal([6]),
    "EagerPyFunc": lambda task, x: tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), x.shape),
    "DepthwiseConv2dNativeBackprop": lambda task, x: keras.ops.reshape(task.conv(keras.ops.reshape(x, [-1, 2, 3, 1])), [-1, 6]),
}


@pytest.mark.parametrize("op", OBSTACLES)
def test_what_xla_cannot_do_or_would_drop_keeps_to_the_graph_and_is_named(op):
    assert op in choice(Obstructed(OBSTACLES[op])).why["reason"]


def test_convolutions_in_a_forced_xla_program_are_warned_of_by_the_name_of_their_layer():
    feed, one_device = loops.ArrayFeed(tiny.data(96), 16), tf.distribute.get_strategy()
    kinds = [(keras.layers.DepthwiseConv2D, {"depth_multiplier": 6}, True), (keras.layers.Conv2D, {"filters": 6}, False)]
    for kind, size, warned in [*kinds, (keras.layers.Conv2D, {"filters": 6, "dtype": "bfloat16"}, True)]:
        task = Obstructed(OBSTACLES["DepthwiseConv2dNativeBackprop"])
        task.conv = kind(kernel_size=[2, 3], name="edges", **size)
        sentence = compile_mode.warning(Program(GlobalStep(task, "train_step", one_device), "xla"), feed)
        assert ("inside a loop, as of 'edges'" in (sentence or "")) is warned, (kind, sentence)
    assert compile_mode.warning(Program(GlobalStep(tiny.Classifier(), "train_step", one_device), "xla"), feed) is None


def test_what_xla_fails_to_compile_keeps_to_the_graph():
    class Spelling(tiny.Classifier):
        def train_step(self, batch):
            logs = super().train_step(batch)
            return {**logs, "words": tf.cast(tf.strings.length(tf.strings.as_string(batch[1][0])), tf.float32)}

    why = choice(Spelling()).why
    assert why["mode"] == "graph" and "cannot compile" in why["reason"] and "\n" not in why["reason"]


def test_a_resumed_run_keeps_the_mode_that_it_began_in(measured, tmp_path, cache):
    measured(3.0)
    begun = trained(workdir=tmp_path / "run", epochs=1)
    written = json.loads((tmp_path / "run" / "config.json").read_text())["loop"]
    assert written["compile"] == "auto" and written["mode"] == "xla" and written["why_mode"]["microseconds_per_step"]
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    begun.run(epochs=3)
    for file in cache.iterdir():
        file.unlink()
    measured(0.1)
    again = trained(workdir=tmp_path / "moved", epochs=3)
    assert again.mode == "xla"
    tiny.assert_same_bits(tiny.state(again.task), tiny.state(begun.task))


def test_a_short_run_that_goes_on_for_long_keeps_its_mode(tmp_path, monkeypatch):
    trained(workdir=tmp_path / "run", epochs=1)
    monkeypatch.setattr(compile_mode, "_SHORT_SECONDS", 0.0)
    assert trained(workdir=tmp_path / "run", epochs=3).mode == "graph"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAPELOOPS_CACHE", str(tmp_path / "file" / "cache"))
    assert mode_cache.put("key", {"mode": "xla"}) == {"mode": "xla"} and mode_cache.get("key") is None


@pytest.mark.parametrize("written", ["{", "[]", '{"mode": "warp"}'])
def test_a_damaged_memory_is_replaced(written, cache):
    cache.mkdir()
    (cache / "key.json").write_text(written)
    assert mode_cache.get("key") is None
    assert mode_cache.put("key", {"mode": "xla"}) == mode_cache.get("key") == {"mode": "xla"}


def test_the_first_of_two_measurements_stands(cache):
    assert mode_cache.put("key", {"mode": "xla"}) == {"mode": "xla"}
    assert mode_cache.put("key", {"mode": "graph"}) == {"mode": "xla"}
    assert np.array_equal(sorted(p.name for p in cache.iterdir()), ["key.json"])
