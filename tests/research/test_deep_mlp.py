"""The study of deep perceptrons: five nets, what reaches their layers, and the figures that compare them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from ml_collections import config_dict

import loops
from research import deep_mlp, runner, study
from research.configs import deep_mlp as config_file
from research.gradient_norms import GradientNorms
from research.study import InputError


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


def kinds(variant, depth=2):
    model = deep_mlp.make_model((8, 8), 10, variant=variant, depth=depth, units=5)
    return [type(layer).__name__ if not isinstance(layer, keras.layers.Dense) else layer.activation.__name__ for layer in model.layers]


def test_the_hidden_layers_are_what_the_variant_says():
    assert kinds("plain") == ["Flatten", "relu", "relu", "softmax"]
    assert kinds("batch_norm_after") == ["Flatten", *["relu", "BatchNormalization"] * 2, "softmax"]
    assert kinds("batch_norm_before") == ["Flatten", *["linear", "BatchNormalization", "ReLU"] * 2, "softmax"]
    assert kinds("selu") == ["Flatten", "selu", "selu", "softmax"]
    assert kinds("alpha_dropout") == ["Flatten", "selu", "selu", "AlphaDropout", "softmax"]


def test_selu_keeps_the_scale_of_the_signal_and_plain_layers_lose_it():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 64)).astype("float32")

    def last_hidden(variant):
        model = deep_mlp.make_model((64,), 10, variant=variant)
        return keras.Model(model.inputs[0], model.get_layer("hidden_20").output)(x).numpy()

    assert 0.5 < last_hidden("selu").std() < 2
    assert last_hidden("plain").std() < 0.01


def test_all_variants_one_after_the_other(tmp_path, capsys):
    made = config(depth=3, units=8, epochs=1, look_every="20 steps", histogram_freq=0)
    runs = runner.train(study.build(made), made, workdir=tmp_path, compile="graph")
    assert tuple(runs) == deep_mlp.VARIANTS
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"gradient_norms.png", "loss.png", "val_accuracy.png"}
    for name in runs:
        assert {"gradient_norms.png", "confusion_matrix.png"} <= {path.name for path in (tmp_path / name / "plots").iterdir()}
    table = capsys.readouterr().out.rpartition("gradient at step 20")[2]
    for name, run in runs.items():
        assert f"{run.test['accuracy']:.4f}" in next(line for line in table.splitlines() if line.startswith(name))


def test_the_gradients_of_every_layer_are_in_tensorboard(tmp_path):
    from loops import testing

    made = config(variant="selu", depth=2, units=4, epochs=1)
    runner.train(study.build(made), made, workdir=tmp_path, compile="graph")
    tags = testing.read_events(tmp_path)["train"]
    assert sum("kernel/gradient_histogram" in tag for tag in tags) == 3


@pytest.mark.parametrize(("changes", "said"), [({"variant": "resnet"}, "'resnet'"), ({"dataset": "diabetes"}, "regression")])
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))


class TestGradientNorms:
    X = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")

    def loop(self, hook, **settings):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        # Names whose alphabetical order is not theirs in the net.
        model = keras.Sequential([keras.Input([4]), keras.layers.Dense(3, name="layer_9"), keras.layers.Dense(1, name="layer_10")])
        task = loops.SupervisedTask(model, loss="mse", optimizer=keras.optimizers.SGD(0.1))
        return loops.TrainLoop(task, loops.ArrayFeed((self.X, self.X.sum(-1, keepdims=True)), batch_size=16), hooks=[hook], **settings)

    def test_they_are_those_of_the_last_step_of_each_window_by_layer(self):
        hook = GradientNorms(every="3 steps")
        loop = self.loop(hook)
        model = loop.task.model
        start = model.get_weights()
        loop.run(epochs=1)
        assert hook.layers == ["layer_9", "layer_10"] and hook.steps == [3, 6]
        # The same steps in NumPy.
        first, bias, last, bias_2 = start
        losses = []
        for step in range(6):
            x = self.X[16 * step : 16 * step + 16]
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

    def test_a_resumed_run_keeps_them(self, tmp_path):
        whole, begun, resumed = (GradientNorms(every="2 steps") for _ in range(3))
        self.loop(whole).run(epochs=3)
        self.loop(begun, workdir=tmp_path).run(epochs=2)
        self.loop(resumed, workdir=tmp_path).run(epochs=3)
        assert resumed.steps == whole.steps and resumed.norms == whole.norms and resumed.layers == whole.layers
