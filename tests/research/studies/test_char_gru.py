"""A recurrent network reads on where it stopped, from batch to batch and from process to process."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import config_dict

import loops
from loops import hooks, testing
from research import runner, study
from research.configs import char_gru as config_file
from research.data import text
from research.studies import char_gru
from research.study import InputError


def config(**changes) -> config_dict.ConfigDict:
    made = config_file.get_config()
    small = {"units": 8, "embedding": 4, "dropout": 0.1, "window": 10, "batch_size": 64, "sample__length": 20, **changes}
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in small.items()})
    return made


@pytest.fixture(autouse=True, scope="module")
def corpus():
    """The first pages of the handbook."""
    load = text.load
    whole = load("handbook")
    pages = dataclasses.replace(whole, train=whole.train[:9_000], val=whole.val[:500], test=whole.test[:700])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text, "load", lambda name, **how: pages if name == "handbook" else load(name, **how))
        yield pages


def still(**changes) -> study.Study:
    """The study with weights that do not move, large enough for the state to matter."""
    made = study.build(config(optimizer__name="sgd", optimizer__learning_rate=0.0, dropout=0.0, **changes))
    made.model.set_weights([4.0 * weight for weight in made.model.get_weights()])
    return made


def streams_of(made: study.Study, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """State and losses when every stream is read in one go."""
    x, y, _ = text.streams(numbers, count=count, length=-(-len(numbers) // count))
    logits, state = made.model([tf.constant(x), tf.zeros([count, 8])])
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=np.maximum(y, 0), logits=logits).numpy()
    return state.numpy(), losses[y >= 0]


@pytest.fixture(scope="module")
def read(corpus):
    """The study with weights that do not move, and its losses when the text was read twice, window by window."""
    made = still()
    return made, loops.TrainLoop(made.task, made.train, compile="graph").run(epochs=2).history["loss"]


def test_reading_window_by_window_is_reading_in_one_go(read, corpus):
    made, losses = read
    _, expected = streams_of(made, corpus.train, 64)
    assert losses[0] == pytest.approx(expected.mean(), rel=1e-5)
    forgetful = loops.ArrayFeed((*made.train._arrays[:2], np.ones(len(made.train._arrays[2]), bool)), batch_size=64)
    assert abs(loops.TrainLoop(made.task, forgetful, compile="graph").run(epochs=1).history["loss"][0] - expected.mean()) > 1e-3


def test_every_pass_begins_without_a_memory(read):
    losses = read[1]
    assert losses[0] == losses[1]


def test_evaluation_reads_its_text_as_a_whole(read, corpus):
    found = loops.EvalLoop(read[0].task, compile="graph").run(read[0].test)
    _, losses = streams_of(read[0], corpus.test, 16)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_windows_calls_and_evaluations_leave_no_trace_in_what_is_learnt():
    """The state goes on across them; evaluation has one of its own."""
    whole, pieces = (study.build(config()) for _ in range(2))
    loops.TrainLoop(whole.task, whole.train, compile="graph").run(steps=9)
    looking = hooks.LambdaHook(on_window_end=lambda *_: None, every="2 steps")
    evaluating = hooks.Evaluate(pieces.evaluate["val"], name="val", every="3 steps")
    loop = loops.TrainLoop(pieces.task, pieces.train, hooks=[looking, evaluating], compile="graph")
    for steps in (1, 4, 9):
        loop.run(steps=steps)
    assert np.any(whole.task.state) and not np.any(pieces.task.evaluation_state)
    for a, b in zip(whole.task.tracked.all_variables(), pieces.task.tracked.all_variables(), strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("compile", ["graph", pytest.param("eager", marks=pytest.mark.matrix)])
def test_a_run_that_was_killed_goes_on_with_its_state_bit_for_bit(tmp_path, compile):
    steps = 11 if compile == "graph" else 8

    def run(workdir):
        made = study.build(config())
        snapshot = hooks.Snapshot(every="3 steps")
        loop = loops.TrainLoop(made.task, made.train, hooks=[snapshot], evaluate=made.evaluate, workdir=workdir, compile=compile)
        loop.run(steps=steps)
        return loop

    undisturbed = run(tmp_path / "whole")
    with testing.crash_at("step", count=5, how="raise"), pytest.raises(testing.InjectedCrash):
        run(tmp_path / "killed")
    resumed = run(tmp_path / "killed")
    assert 0 < steps < undisturbed.feed.steps_per_epoch  # in the middle of a pass
    pairs = zip(undisturbed.task.tracked.all_variables(), resumed.task.tracked.all_variables(), strict=True)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs) and np.any(resumed.task.state)


def test_what_it_writes_is_printed_and_kept(tmp_path, capsys):
    small = config(epochs=1, window=100, sample__prompt="The ")
    run = runner.train(study.build(small), small, workdir=tmp_path / "run", compile="graph")
    written = (tmp_path / "run" / "sample.txt").read_text()
    assert written.startswith("The ") and len(written) == 4 + 20 + 1
    assert all(line in capsys.readouterr().out for line in written.splitlines()) and run.test["loss"] > 0


def test_near_temperature_zero_the_likeliest_character_is_written():
    made, corpus = study.build(config()), text.load("handbook")
    written = char_gru.sample(made.model, corpus, prompt="data", length=6, temperature=1e-6)
    read = "data"
    for _ in range(6):
        logits, _ = made.model([tf.constant(corpus.encode(read)[None], tf.int32), tf.zeros([1, 8])])
        read += corpus.decode([int(np.argmax(logits[0, -1]))])
    assert written == read
    assert char_gru.sample(made.model, corpus, prompt="data", length=6, seed=1) == char_gru.sample(
        made.model, corpus, prompt="data", length=6, seed=1
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "shakespeare"}, "'shakespeare'"),
        ({"dataset": "tinyshakespeare"}, "could not be downloaded"),
        ({"window": 0}, "window length"),
        ({"batch_size": 10**6}, "choose fewer"),
        ({"units": 0}, "cannot be built"),
        ({"sample__prompt": "\u00e9"}, "does not occur"),
    ],
)
def test_what_cannot_be_used_is_named(changes, said, monkeypatch):
    def offline(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.delenv("TAPELOOPS_DATA", raising=False)
    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))


def test_several_devices_are_refused(two_replicas):
    with pytest.raises(InputError, match="leave out --strategy"):
        study.build(config(), strategy=two_replicas)
