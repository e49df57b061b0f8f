"""Graphs of layers: shared weights are there once, residual blocks add to what came in, and let the gradient through."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from research import runner, study
from research.configs import functional_graphs as config_file
from research.studies import functional_graphs
from research.studies.functional_graphs import make_model
from research.study import InputError

WIDTH, CLASSES = 12, 10


def make(form, depth):
    """With the kernels that begin at zero drawn at random too."""
    keras.utils.set_random_seed(0)
    model = make_model((8, 8), CLASSES, form=form, depth=depth, width=WIDTH)
    for layer in model.layers:
        if layer.name.endswith("_out") and form != "plain":
            layer.kernel.assign(0.1 * keras.random.normal(layer.kernel.shape, seed=1))
    return model


def config(**changes):
    made = config_file.get_config()
    made.update({"epochs": 1, "width": WIDTH, **changes})
    return made


def test_weights_of_a_shared_layer_are_counted_once_however_often_it_is_applied():
    frame = 64 * WIDTH + WIDTH + WIDTH * CLASSES + CLASSES
    block = 2 * (WIDTH * WIDTH + WIDTH)
    for depth in (1, 7):
        assert make("shared", depth).count_params() == frame + block
        assert make("residual", depth).count_params() == make("plain", depth).count_params() == frame + depth * block
    model = make("shared", 7)
    assert len(model.weights) == len({id(w) for w in model.weights}) == 8
    assert len([layer for layer in model.layers if layer.name.startswith("block")]) == 2


def test_a_shared_layer_learns_from_all_places_where_it_is_applied():
    """Its gradient is the sum of those that its copies in the net without sharing get."""
    shared, copies = make("shared", 3), make("residual", 3)
    for layer in (layer for layer in copies.layers if layer.weights):
        name = "block_1" + layer.name[layer.name.rindex("_") :] if layer.name.startswith("block") else layer.name
        layer.set_weights(shared.get_layer(name).get_weights())
    x = np.random.RandomState(0).normal(size=[5, 8, 8]).astype("float32")
    gradients = []
    for model in (shared, copies):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x)[:, 3] ** 2)
        blocks = [layer.kernel for layer in model.layers if layer.name.endswith("_in")]
        gradients.append(tape.gradient(loss, blocks))
    np.testing.assert_allclose(gradients[0][0], sum(g.numpy() for g in gradients[1]), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("form", functional_graphs.FORMS)
def test_the_graph_is_its_formula(form):
    model = make(form, 3)
    x = np.random.RandomState(0).normal(size=[5, 8, 8]).astype("float32")

    def dense(name, value):
        kernel, bias = model.get_layer(name).get_weights()
        return value @ kernel + bias

    value = np.maximum(dense("first", x.reshape(5, -1)), 0)
    for i in (1, 2, 3):
        name = "block_1" if form == "shared" else f"block_{i}"
        block = dense(f"{name}_out", np.maximum(dense(f"{name}_in", value), 0))
        value = np.maximum(block, 0) if form == "plain" else value + block
    logits = dense("probabilities", value)
    np.testing.assert_allclose(model(x).numpy(), np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=2e-4)


def test_in_a_deep_net_the_gradient_reaches_the_first_block_through_residual_connections_only():
    x = np.random.RandomState(0).normal(size=[50, 8, 8]).astype("float32")
    norms = {}
    for form in ("plain", "residual"):
        model = make(form, 20)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(-tf.math.log(model(x)[:, 0]))
        norms[form] = float(tf.norm(tape.gradient(loss, model.get_layer("block_1_in").kernel)))
    assert norms["plain"] < 1e-3 * norms["residual"]


def test_the_comparison_shows_weights_gradient_and_accuracy_of_each_part(capsys, tmp_path):
    settings = config(forms=("shared",), depths=(2, 5), batch_size=400)
    runs = runner.train(study.build(settings), settings, workdir=tmp_path, compile="eager")
    assert list(runs) == ["shared-2", "shared-5"]
    said = capsys.readouterr().out
    assert said.rstrip().count("first_gradient") >= 1 and f" {runs['shared-5'].study.model.count_params():,} " in said
    assert runs["shared-2"].study.model.count_params() == runs["shared-5"].study.model.count_params()
    assert (tmp_path / "plots" / "depths.png").is_file()
    for run in runs.values():
        assert run.history.history["first_gradient"][0] > 0


def test_residual_nets_begin_as_if_they_had_no_blocks():
    deep, none = (make_model((8, 8), CLASSES, form="residual", depth=depth, width=WIDTH) for depth in (9, 1))
    for name in ("first", "probabilities"):
        none.get_layer(name).set_weights(deep.get_layer(name).get_weights())
    x = np.random.RandomState(0).normal(size=[5, 8, 8]).astype("float32")
    np.testing.assert_array_equal(deep(x).numpy(), none(x).numpy())


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"forms": ("plain", "dense")}, "config.forms names 'dense'"),
        ({"depths": (0,)}, "are 1 or more"),
        ({"dataset": "diabetes"}, "regression"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
