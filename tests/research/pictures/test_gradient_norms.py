"""The hook that keeps the norms of gradients keeps those of its steps, by layer, through a restart."""

from __future__ import annotations

import keras
import numpy as np

import loops
from research.pictures.gradient_norms import GradientNorms

X = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")


def trained_by(hook, **settings):
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    # Names whose alphabetical order is not theirs in the net.
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, name="layer_9"), keras.layers.Dense(1, name="layer_10")])
    task = loops.SupervisedTask(model, loss="mse", optimizer=keras.optimizers.SGD(0.1))
    return loops.TrainLoop(task, loops.ArrayFeed((X, X.sum(-1, keepdims=True)), batch_size=16), hooks=[hook], **settings)


def test_they_are_those_of_the_last_step_of_each_window_by_layer():
    hook = GradientNorms(every="3 steps")
    loop = trained_by(hook)
    model = loop.task.model
    start = model.get_weights()
    loop.run(epochs=1)
    assert hook.layers == ["layer_9", "layer_10"] and hook.steps == [3, 6]
    # The same steps in NumPy.
    first, bias, last, bias_2 = start
    losses = []
    for step in range(6):
        x = X[16 * step : 16 * step + 16]
        hidden = x @ first + bias
        error = hidden @ last + bias_2 - x.sum(-1, keepdims=True)
        losses.append(np.mean(error**2))
        grad_out = 2 * error / len(x)
        grads = [x.T @ (grad_out @ last.T), (grad_out @ last.T).sum(0), hidden.T @ grad_out, grad_out.sum(0)]
        if step in (2, 5):
            expected = [np.linalg.norm(grads[0]), np.linalg.norm(grads[2])]
            np.testing.assert_allclose(hook.norms[step // 3], expected, rtol=1e-4)
        first, bias, last, bias_2 = (v - 0.1 * g for v, g in zip((first, bias, last, bias_2), grads, strict=True))
    np.testing.assert_allclose(hook.losses, [np.mean(losses[:3]), np.mean(losses[3:])], rtol=1e-4)
    assert hook.by_layer()["layer_10"] == [row[1] for row in hook.norms]


def test_a_resumed_run_keeps_them(tmp_path):
    whole, begun, resumed = (GradientNorms(every="2 steps") for _ in range(3))
    trained_by(whole, compile="eager").run(epochs=2)
    trained_by(begun, workdir=tmp_path, compile="eager").run(epochs=1)
    trained_by(resumed, workdir=tmp_path, compile="eager").run(epochs=2)
    assert resumed.steps == whole.steps and resumed.norms == whole.norms and resumed.layers == whole.layers
