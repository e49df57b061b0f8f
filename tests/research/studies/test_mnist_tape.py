"""The step of the loop by hand gives the same losses when a `TrainLoop` compiles it, and its asserts on shapes hold there too."""

from __future__ import annotations

import contextlib
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import config_dict

import loops
from research import runner, study
from research.configs import mnist_tape as config_file
from research.data import datasets
from research.studies import mnist_tape
from research.study import InputError


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    small = {"epochs": 1, "compare.steps": 10, "compare.warm_up": 2, "batch_size": 64}
    made.update_from_flattened_dict({**small, **{name.replace("__", "."): value for name, value in changes.items()}})
    return made


def test_the_model_is_that_of_the_notes():
    model = mnist_tape.make_model((28, 28), 10)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["Reshape", "Conv2D", "Conv2D", "GlobalAveragePooling2D", "Dense"]
    assert model.count_params() == (9 * 16 + 16) + (9 * 16 * 16 + 16) + (16 * 10 + 10)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The study, trained; what it found in its comparison; its folder; and what was printed."""
    results, compare, said = {}, mnist_tape.compare, io.StringIO()

    def kept(*args, **how):
        results.update(compare(*args, **how))
        return results

    workdir, made = tmp_path_factory.mktemp("tape"), config()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(said):
        patched.setattr(mnist_tape, "compare", kept)
        run = runner.train(study.build(made), made, workdir=workdir, compile="eager")
    return run, results, workdir, said.getvalue()


def test_eager_by_hand_and_compiled_give_the_same_losses_step_by_step(ran):
    by_hand, eager, compiled = (timed.losses for timed in ran[1].values())
    assert len(by_hand) == 12 and by_hand[-1] < by_hand[0]
    assert np.array_equal(by_hand, eager)  # the same kernels, one by one
    np.testing.assert_allclose(compiled, by_hand, rtol=1e-6)
    assert all(timed.rate > 0 for timed in ran[1].values())


def test_the_loop_by_hand_is_the_one_keras_runs():
    x, y = (a[:64] for a in datasets.load("digits", normalization="minmax").train)
    keras.utils.set_random_seed(0)
    model, twin = (mnist_tape.make_model((8, 8), 10) for _ in range(2))
    twin.set_weights(model.get_weights())
    losses = mnist_tape.train_by_hand(model, keras.optimizers.Adam(0.01), [(tf.constant(x), tf.constant(y))] * 3)
    twin.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    np.testing.assert_allclose(losses, [twin.train_on_batch(x, y) for _ in range(3)], rtol=1e-6)


@pytest.mark.parametrize("compile", ["eager", "graph"])
def test_a_shape_that_is_not_the_asserted_one_ends_the_run(compile):
    class Wrong(mnist_tape.TapeTask):
        def train_step(self, batch):
            images, labels = batch
            return super().train_step((images[:-1], labels))

    task = Wrong(mnist_tape.make_model((8, 8), 10), keras.optimizers.Adam())
    data = datasets.load("digits", normalization="minmax").train
    with pytest.raises(tf.errors.InvalidArgumentError, match="[Cc]ondition"):
        loops.TrainLoop(task, loops.ArrayFeed(data, batch_size=16, drop_remainder=True), compile=compile).run(steps=1)


def test_batches_of_a_feed_come_in_its_order_pass_after_pass():
    feed = loops.ArrayFeed(np.arange(10), batch_size=4, shuffle=True, seed=1, drop_remainder=True)
    batches = mnist_tape.batches_of(feed)
    found = [next(batches).numpy().tolist() for _ in range(4)]
    expected = [block.tensors[i].numpy().tolist() for p in (0, 1) for block in feed.blocks(loops.Position(p)) for i in range(block.n)]
    assert found == expected and found[:2] != found[2:]


def test_the_study_prints_the_speed_up(ran):
    run, _, workdir, said = ran
    assert "speed-up" in said and "TrainLoop, compiled" in said
    assert 0 < run.test["accuracy"] <= 1
    assert (workdir / "plots" / "confusion_matrix.png").exists()


@pytest.mark.parametrize(("changes", "said"), [({"dataset": "wine"}, "no images"), ({"batch_size": 0}, "batch_size")])
def test_what_cannot_be_used_is_named(changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))
