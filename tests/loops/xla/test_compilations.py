"""XLA compiles a window once for each block shape, whatever `start`, `n` and the step are: counted in XLA's own dump."""

import os
import subprocess
import sys

PROGRAM = """
import numpy as np, keras, loops
model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
feed = loops.ArrayFeed((np.zeros([100, 4]), np.zeros([100, 2])), 16)
looks = [loops.hooks.LambdaHook(every=f"{n} steps", on_window_end=lambda *_: None) for n in (3, 5)]
loops.TrainLoop(task, feed, looks, compile="xla").run(epochs=4)
"""


def test_only_a_new_block_shape_compiles(tmp_path):
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-c", PROGRAM], env=env, check=True, timeout=300, capture_output=True)
    windows = [file.name for file in tmp_path.glob("*before_optimizations.txt") if "inference_run" in file.name]
    assert len(windows) == 2, windows  # full blocks, and the ragged last batch
