"""compile="auto" chooses by a rule from the traced step, the sizes and the length of the run: alike in every process. It writes nothing."""

import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import loops
from loops import fault_points
from loops.engine import compile_mode
from loops.engine.program import Program
from loops.engine.step import GlobalStep
from loops.feeds.py_dataset import PyDatasetFeed
from tests.loops import tiny
from tests.loops.run.kill_cases import Copies

LONG = 10**9


@pytest.fixture
def favours(monkeypatch):
    """Has the rule estimate that XLA does so many times the steps of a graph, and compiles at once."""

    def estimate(times):
        monkeypatch.setattr(compile_mode, "costs_of", lambda work, **_: compile_mode.Costs(times, 1.0, 0.0))

    return estimate


def small():
    """Plain SGD is compiled in half of the time of Adam."""
    return tiny.Classifier(keras.optimizers.SGD(0.05))


def trained(compile="auto", task=None, epochs=1, feed=None, **arguments):
    loop = loops.TrainLoop(task or small(), feed or loops.ArrayFeed(tiny.data(96), 16), compile=compile, **arguments)
    loop.run(epochs=epochs)
    return loop


def choice(task=None, feed=None, steps=LONG, strategy=None, saved=False):
    """What is chosen for a task, which is traced and not trained."""
    task, strategy = task or small(), strategy or tf.distribute.get_strategy()

    def program(mode):
        return Program(GlobalStep(task, "train_step", strategy), mode)

    return compile_mode.choose(program, feed or loops.ArrayFeed(tiny.data(100), 16), steps=steps, saved=saved, guarded=False)


@pytest.mark.parametrize(("times", "mode"), [(3.0, "xla"), (1.05, "graph")])
def test_what_is_taken_gives_the_bits_of_that_mode(times, mode, favours, capsys):
    favours(times)
    ragged = loops.ArrayFeed(tiny.data(100), 16)
    loop = trained(feed=ragged)
    assert loop.mode == mode
    assert ("compile='auto' takes xla: by the rule it does 3.00 times" in capsys.readouterr().out) is (mode == "xla")
    # The program that the choice compiled is the one that trains: one for whole blocks and one for the tail.
    assert mode == "graph" or loop.execution.program.compilations == 2
    given = trained(mode, feed=ragged)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(given.task))
    assert loop.history.history == given.history.history


def test_the_estimate_counts_the_time_to_compile():
    costs = compile_mode.Costs(graph=3e-3, xla=1e-3, compiling=10.0)
    assert compile_mode._by_costs(costs, 5_001)[0] == "xla"
    mode, reason = compile_mode._by_costs(costs, 4_999)
    assert mode == "graph" and reason == "the run is short: XLA would save 10 s, and take 10 s to compile"


def test_a_pipeline_costs_a_graph_a_pull_and_bounds_xla_by_the_stacking():
    work = compile_mode.Work(operations=100)
    arrays, pipeline = compile_mode.costs_of(work), compile_mode.costs_of(work, pipeline=True)
    assert pipeline.graph == arrays.graph + compile_mode._PULLING and arrays.xla < pipeline.xla == compile_mode._STACKING


def dataset(x=None, y=None):
    return tf.data.Dataset.from_tensor_slices(tiny.data(96) if x is None else (x, y))


def python_pipeline():
    return dataset().batch(16).map(lambda x, y: (tf.ensure_shape(tf.numpy_function(lambda v: v, [x], tf.float32), x.shape), y))


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return tuple(part[16 * index : 16 * (index + 1)] for part in tiny.data(96))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"steps": 5}, "the run is short"),
        ({"steps": None}, "the length of the run is not known"),
        ({"feed": lambda: loops.NoFeed(3)}, "the data cannot be read twice"),
        ({"feed": lambda: loops.DatasetFeed(python_pipeline())}, "Python decides what the batches are"),
        ({"feed": lambda: PyDatasetFeed(Batches())}, "Python decides what the batches are"),
        ({"feed": lambda: loops.DatasetFeed(dataset(tf.ragged.constant([[1.0], [1.0, 2.0]]), [0, 1]).batch(2))}, "not dense tensors"),
        ({"feed": lambda: loops.DatasetFeed(dataset([["a"]] * 9, [1] * 9).batch(3))}, "not dense tensors"),
    ],
)
def test_what_is_a_graph_whatever_the_step_does(arguments, reason):
    arguments = {name: value() if callable(value) else value for name, value in arguments.items()}
    chosen = choice(**arguments)
    assert chosen.why["mode"] == chosen.program.mode == "graph" and reason in chosen.why["reason"]


def test_several_replicas_are_a_graph(two_replicas):
    with two_replicas.scope():
        task = tiny.Classifier()
    assert choice(task, strategy=two_replicas).why["reason"] == "there are several replicas"


def test_a_pipeline_is_chosen_for_as_arrays_are(favours):
    favours(3.0)
    feed = loops.DatasetFeed(dataset().shuffle(96, seed=1).batch(16).prefetch(2))
    chosen = choice(feed=feed, saved=True)
    assert chosen.program.mode == "xla" and feed._passes_begun == 0, "nothing of it was read"
    graph, xla = (trained(mode, feed=loops.DatasetFeed(dataset().shuffle(96, seed=1).batch(16)), epochs=2) for mode in ("graph", "auto"))
    assert (graph.mode, xla.mode) == ("graph", "xla")
    np.testing.assert_allclose(graph.history.history["loss"], xla.history.history["loss"], rtol=1e-5)


def test_a_pipeline_that_a_resumed_run_could_not_read_again_is_a_graph_where_the_run_is_saved(favours):
    favours(3.0)
    tf.random.set_seed(None)
    feeds = [loops.DatasetFeed(dataset().shuffle(96).batch(16)) for _ in range(2)]
    assert [choice(feed=feed, saved=saved).program.mode for feed, saved in zip(feeds, (True, False), strict=True)] == ["graph", "xla"]


def model_of(*stack, shape=(64,)):
    model = keras.Sequential([keras.Input(shape), *stack, layers.Dense(10, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return loops.KerasTask(model)


def images(*filters, **arguments):
    convolutions = [layers.Conv2D(n, 3, padding="same", activation="relu", **arguments) for n in filters]
    return model_of(*convolutions, layers.GlobalAveragePooling2D(), shape=(32, 32, 4))


def attention():
    x = keras.Input([128, 64])
    model = keras.Model(x, layers.Dense(10, "softmax")(layers.GlobalAveragePooling1D()(layers.MultiHeadAttention(4, 16)(x, x))))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return loops.KerasTask(model)


CHOICES = {
    "a small net": (lambda: model_of(layers.Dense(32, "relu")), 32, "xla"),
    "batch norm": (lambda: model_of(layers.Dense(64), layers.BatchNormalization()), 128, "xla"),
    "small batches of images": (lambda: images(8, 8), 2, "xla"),
    "large batches of images": (lambda: images(16, 16), 256, "graph"),
    "groups": (lambda: images(16, groups=4), 32, "xla"),
    "attention to long inputs": (attention, 32, "graph"),
    "bfloat16": (lambda: model_of(layers.Dense(512, dtype="bfloat16"), layers.Dense(512, dtype="bfloat16")), 64, "graph"),
}


def noise(shape, batch):
    return loops.ArrayFeed((np.zeros([4 * batch, *shape], "float32"), np.zeros([4 * batch], "int32")), batch)


@pytest.mark.parametrize("name", CHOICES)
def test_choices_for_named_models(name):
    make, batch, mode = CHOICES[name]
    task = make()
    feed = noise(task.model.input_shape[1:], batch)
    step = GlobalStep(task, "train_step", tf.distribute.get_strategy(), fuse=True)
    costs = compile_mode.costs_of(compile_mode.work_of(step.concrete(feed.element_spec).graph, batch))
    assert compile_mode._by_costs(costs, LONG)[0] == mode, costs


PROGRAM = """
import json, pathlib, sys
import numpy as np, keras, loops

model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
loop = loops.TrainLoop(task, loops.ArrayFeed((np.zeros([64, 4]), np.zeros([64, 2])), 16), compile="auto", workdir=sys.argv[1])
loop.run(epochs=10**9, steps=20)
"""


def test_two_processes_choose_alike_and_write_nothing_outside_of_the_workdir(tmp_path):
    root = pathlib.Path(__file__).parents[3]
    program = "from loops.engine import compile_mode\ncompile_mode._COMPILING = compile_mode._COMPILING_OPERATION = 0.0\n" + PROGRAM
    configs = []
    for run in ("a", "b"):
        (home := tmp_path / f"home_{run}").mkdir()
        env = {
            **os.environ,
            "HOME": str(home),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_HOME": str(tmp_path / "keras"),
            "MPLCONFIGDIR": str(tmp_path / "plots"),
            "PYTHONPATH": str(root),
        }
        env.pop("XDG_CACHE_HOME", None)
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / run)], cwd=home, env=env, check=True, timeout=300, capture_output=True
        )
        assert not list(home.iterdir())
        configs.append(json.loads((tmp_path / run / "config.json").read_text())["loop"])
    assert configs[0]["mode"] == configs[0]["why_mode"]["mode"] == "xla" and configs[0]["why_mode"] == configs[1]["why_mode"]


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


@pytest.mark.parametrize(("batch_size", "warned"), [(2, False), (512, True)])
def test_a_forced_xla_program_is_warned_of_where_the_rule_takes_it_for_much_slower(batch_size, warned):
    images = keras.Sequential([keras.Input([12, 12, 8]), layers.Conv2D(16, 3, 2), layers.GlobalAveragePooling2D(), layers.Dense(3)])
    task = loops.SupervisedTask(images, loss="sparse_categorical_crossentropy", optimizer="sgd")
    feed = loops.ArrayFeed((np.zeros([batch_size, 12, 12, 8], "float32"), np.zeros([batch_size], "int32")), batch_size)
    sentence = compile_mode.warning(Program(GlobalStep(task, "train_step", tf.distribute.get_strategy()), "xla"), feed)
    said = r"by the rule of compile='auto' XLA does 0\.\d\d times the steps of a graph, .* in batches of 512; compile='graph' is likely"
    assert (re.match(said, sentence or "") is not None) is warned and (sentence is None) is not warned


def test_what_xla_fails_to_compile_keeps_to_the_graph(favours):
    favours(3.0)

    class Spelling(tiny.Classifier):
        def train_step(self, batch):
            logs = super().train_step(batch)
            return {**logs, "words": tf.cast(tf.strings.length(tf.strings.as_string(batch[1][0])), tf.float32)}

    chosen = choice(Spelling())
    why = chosen.why
    assert why["mode"] == chosen.program.mode == "graph" and "cannot compile" in why["reason"] and "\n" not in why["reason"]


def test_to_choose_leaves_no_trace_even_in_variables_that_nobody_tracks(favours):
    favours(3.0)
    outside = tf.Variable(0, dtype=tf.int64)

    class Counts(tiny.Classifier):
        def train_step(self, batch):
            outside.assign_add(1)
            return super().train_step(batch)

    loop = trained(task=Counts(keras.optimizers.SGD(0.05, momentum=0.9)))
    assert loop.mode == "xla" and int(outside) == loop.progress.step


def test_a_resumed_run_keeps_the_mode_that_it_began_in(favours, tmp_path):
    favours(3.0)
    begun = trained(workdir=tmp_path / "run", epochs=1)
    written = json.loads((tmp_path / "run" / "config.json").read_text())["loop"]
    assert written["compile"] == "auto" and written["mode"] == "xla" and "by the rule" in written["why_mode"]["reason"]
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    begun.run(epochs=3)
    favours(0.1)
    again = trained(workdir=tmp_path / "moved", epochs=3)
    assert again.mode == "xla"
    tiny.assert_same_bits(tiny.state(again.task), tiny.state(begun.task))


def test_a_killed_run_on_a_pipeline_that_auto_took_xla_for_ends_with_the_same_bits(favours, tmp_path, capsys):
    favours(3.0)

    def run():
        feed = loops.DatasetFeed(dataset().shuffle(96, seed=1).batch(16).prefetch(2))
        return trained(feed=feed, workdir=tmp_path / "run", epochs=3, hooks=[loops.hooks.Snapshot("4 steps")])

    killed = (fault_points.STEP, 11)  # of 18, in the midst of the second pass
    with Copies(tmp_path / "run", killed) as copies:
        undisturbed = run()
    copies.restore(killed)
    capsys.readouterr()
    resumed = run()
    assert undisturbed.mode == resumed.mode == "xla" and "reading and dropping" in capsys.readouterr().out
    tiny.assert_same_bits(tiny.state(resumed.task), tiny.state(undisturbed.task))
    assert resumed.history.history == undisturbed.history.history


def test_a_short_run_that_goes_on_for_long_keeps_its_mode(tmp_path, favours):
    loop = trained(workdir=tmp_path / "run", epochs=1)
    favours(3.0)
    loop.run(epochs=2)
    assert loop.mode == "graph" and trained(workdir=tmp_path / "run", epochs=3).mode == "graph"


def test_the_table_in_the_docs_is_the_rule():
    text = (pathlib.Path(compile_mode.__file__).parents[2] / "docs" / "design.md").read_text(encoding="utf-8")
    lines = text.partition("| work of a step | unit |")[2].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    cells = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows]
    amounts = {"1,000": 1e3, "1": 1.0, "1e6": 1e6, "1e9": 1e9}
    seconds = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}
    for (kind, unit), (_, amount, *shown) in zip(compile_mode.UNITS.items(), cells, strict=True):
        found = [float(number) * seconds[of] / amounts[amount.split()[0]] * unit for number, of in map(str.split, shown)]
        assert found == pytest.approx(compile_mode.RULE[kind], rel=0.01), kind
