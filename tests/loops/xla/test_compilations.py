"""What XLA compiles, and how often, whatever `start`, `n` and the step of a window are: read in XLA's own dump of one process."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

PROGRAM = """
import json, pathlib, sys
import numpy as np, keras, loops
from keras import layers

model = keras.Sequential([keras.Input([4]), layers.Dense(2)])
task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
feed = loops.ArrayFeed((np.zeros([100, 4]), np.zeros([100, 2])), 16)
looks = [loops.hooks.LambdaHook(every=f"{n} steps", on_window_end=lambda *_: None) for n in (3, 5)]
loops.TrainLoop(task, feed, looks, compile="xla").run(epochs=4)
dump = pathlib.Path(sys.argv[1])
(dump / "of_the_dense_net.json").write_text(json.dumps([file.name for file in dump.iterdir()]))

keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input([12, 12, 1]), layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(8, 3, activation="relu"),
    layers.Dropout(0.2), layers.Flatten(), layers.Dense(16, activation="relu"), layers.Dropout(0.5), layers.Dense(10),
])
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
x = np.random.default_rng(0).normal(size=[64, 12, 12, 1]).astype("float32")
loops.fit(model, x, np.arange(64) % 10, batch_size=16, epochs=2, verbose=0, compile="xla")
"""


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """What XLA says about the programs of a dense net and of a net of convolutions."""
    folder = tmp_path_factory.mktemp("dump")
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_as_text"}
    root = pathlib.Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], cwd=root, env=env, check=True, timeout=300, capture_output=True)
    return folder


def test_only_a_new_block_shape_compiles(dump):
    names = json.loads((dump / "of_the_dense_net.json").read_text())
    windows = [name for name in names if "inference_run" in name and name.endswith("before_optimizations.txt")]
    assert len(windows) == 2, windows  # full blocks, and the ragged last batch


def test_xla_ends_with_plain_convolutions_no_scatter_and_random_numbers_that_are_drawn_once(dump):
    programs = [path.read_text() for path in dump.glob("*cpu_after_optimizations.txt")]
    program = max(programs, key=len)
    layouts = re.findall(r" convolution\(.*dim_labels=(\S+?)[,\s]", program)
    assert layouts and set(layouts) == {"b01f_01io->b01f"}, layouts
    assert not re.search(r" (scatter|select-and-scatter|reduce-window)\(", program)
    # One for each of the two masks, the output of the first convolution and that of the pooling; what is in them is nowhere else.
    assert len(re.findall(r" conditional\(", program)) == 4
    bodies = [body for body in program.split("\n}\n") if "constant(3528531795)" in body]  # a multiplier of Philox
    assert len(bodies) == 2, len(bodies)
