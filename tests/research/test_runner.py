"""Studies are trained, carried on and reported; the parts of a comparison one after the other, each of them once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import pathlib
import signal

import keras
import numpy as np
import pytest
from ml_collections import config_dict

import loops
from loops import hooks, testing
from research import runner
from research.pictures import plots
from research.study import Comparison, InputError, Run, Runs, Study

#: A step of this line takes less time than its trace.
train = functools.partial(runner.train, compile="eager")

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def config(**changes):
    return config_dict.ConfigDict({"study": "no_module", "epochs": 2, "patience": 0, **changes})


def study(kernel=None, **changes):
    """A line fitted to 64 points; `kernel` is what it begins with."""
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
    if kernel is not None:
        model.layers[0].kernel.assign(kernel)
    feeds = [loops.ArrayFeed((X, Y), batch_size=32, shuffle=i == 0) for i in range(3)]
    made = {
        "task": loops.SupervisedTask(model, loss="mse", optimizer=keras.optimizers.Adam(0.01)),
        "model": model,
        "train": feeds[0],
        "evaluate": {"val": feeds[1]},
        "test": feeds[2],
        "monitor": "val_loss",
        "mode": "min",
        "hooks": (),
        "title": "a line",
        "description": "64 points.",
    }
    return Study(**{**made, **changes})


def comparison(concluded=None, **second):
    """Two parts: the second goes on with the weights of the first."""

    def conclude(runs):
        if concluded is not None:
            concluded.append(dict(runs))
        runs.picture("losses", plots.lines({name: run.history.history["loss"] for name, run in runs.items()}))
        return [f"{name}: {run.test['loss']:.6f}" for name, run in runs.items()]

    def continued(before):
        return study(before["first"].study.model.layers[0].kernel.numpy(), **second)

    return Comparison({"first": lambda before: study(), "second": continued}, conclude, "Two lines.")


def shows(run):
    run.picture("curve", plots.lines({"loss": run.history.history["loss"]}))
    return ["It has been shown."]


def digest(workdir):
    """The numbers in all files of weights and the history, by path."""
    kept = {
        path.relative_to(workdir).as_posix(): path for pattern in ("**/history.csv", "**/*.weights.h5") for path in workdir.glob(pattern)
    }
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in kept.items()}


def pictures(workdir, run):
    """tag -> how many times TensorBoard has it, of one of its runs."""
    return {tag: len(points) for tag, points in testing.read_events(workdir)[run].items() if isinstance(points[0][1], list)}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A comparison that was trained, the arguments of its `conclude`, and what was printed."""

    runs: Runs
    concluded: list[dict[str, Run]]
    workdir: pathlib.Path
    said: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir, concluded, said = tmp_path_factory.mktemp("runs") / "whole", [], io.StringIO()
    with contextlib.redirect_stdout(said):
        runs = train(comparison(concluded), config(epochs=3), workdir=workdir)
    return Trained(runs, concluded, workdir, said.getvalue())


def test_a_study_is_trained_and_reported(tmp_path, capsys):
    run = runner.train(study(after=shows), config(epochs=3), workdir=tmp_path / "run")
    assert isinstance(run, Run) and run.saved
    assert len(run.history.epoch) == 3
    assert run.test == loops.EvalLoop(run.study.task).run(run.study.test)
    assert run.logs["val_loss"] == pytest.approx(min(run.history.history["val_loss"]))
    said = capsys.readouterr().out
    assert "It has been shown." in said and "Best val_loss in epoch 3 of 3" in said


def test_what_a_study_shows_is_in_plots_and_tensorboard_and_never_doubled(tmp_path):
    for _ in range(2):
        run = train(study(after=shows), config(), workdir=tmp_path)
    assert len(run.history.epoch) == 2
    assert pictures(tmp_path, "train") == {"learning_curves": 1, "curve": 1}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"learning_curves.png", "curve.png"}
    # Of a run that goes on, the pictures of its new end take the place of the old ones.
    run = train(study(after=shows), config(epochs=4), workdir=tmp_path)
    assert pictures(tmp_path, "train") == {"learning_curves": 1, "curve": 1}
    assert [step for step, _ in testing.read_events(tmp_path)["train"]["curve"]] == [run.loop.progress.step] == [8]


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(study(after=shows, hooks=[hooks.TensorBoard(histogram_freq=1)]), config())
    train(comparison(), config())
    assert list(tmp_path.iterdir()) == []


def test_without_a_monitor_the_last_epoch_counts(tmp_path, capsys):
    run = train(study(monitor=None), config(patience=1), workdir=tmp_path / "run")
    assert run.best is None and "The last epoch of 2" in capsys.readouterr().out
    assert not (tmp_path / "run" / runner.BEST_WEIGHTS).exists()
    assert (tmp_path / "run" / runner.LAST_WEIGHTS).exists()


def test_the_best_weights_are_those_of_the_monitor(tmp_path):
    rises = hooks.LambdaHook(on_epoch_end=lambda loop, logs: loop.log("score", [0.1, 0.9, 0.5][loop.progress.epoch]))
    rises.phase = hooks.Phase.EVALUATE
    run = train(study(monitor="score", mode="max", hooks=[rises]), config(epochs=3), workdir=tmp_path)
    assert run.best == 1
    kept = [v.numpy() for v in run.study.model.weights]
    run.study.model.load_weights(tmp_path / runner.BEST_WEIGHTS)
    for expected, loaded in zip(kept, run.study.model.weights, strict=True):
        np.testing.assert_array_equal(expected, loaded.numpy())


def test_a_study_has_its_own_epochs_steps_and_clip():
    run = train(study(epochs=1, steps_per_epoch=2, clip=0.5), config())
    assert run.loop.progress.step == 2 and run.loop.clip == 0.5


def test_without_a_test_set_the_table_has_no_such_row(capsys):
    run = train(study(test=None), config())
    assert run.test == {}
    said = capsys.readouterr().out
    assert "\nval" in said and "\ntest" not in said


def test_the_parts_of_a_comparison_are_trained_in_order_each_in_its_folder(whole):
    runs = whole.runs
    assert list(runs) == ["first", "second"] and whole.concluded[0] == dict(runs)
    for name in runs:
        assert runs[name].workdir == whole.workdir / name
        assert (whole.workdir / name / runner.BEST_WEIGHTS).exists()
    # The second begins where the first ended.
    assert runs["second"].history.history["loss"][0] < runs["first"].history.history["loss"][-1]
    assert pictures(whole.workdir, "comparison") == {"losses": 1}
    said = whole.said
    assert said.index("first (1 of 2)") < said.index("second (2 of 2)") < said.index(f"second: {runs['second'].test['loss']:.6f}")


def test_a_complete_comparison_trains_nothing_and_concludes_again(whole, capsys):
    concluded = []
    before = digest(whole.workdir)
    again = train(comparison(concluded), config(epochs=3), workdir=whole.workdir)
    said = capsys.readouterr().out
    assert said.count("The run is complete") == 2 and "Epoch 1" not in said
    assert len(concluded) == 1 and digest(whole.workdir) == before and len(before) == 6
    for name, first in whole.runs.items():
        assert again[name].history.history == first.history.history
        assert again[name].test == first.test
    assert pictures(whole.workdir, "comparison") == {"losses": 1}


def test_a_comparison_that_died_in_its_second_part_ends_as_one_that_did_not(whole, tmp_path):
    # Evaluations of the first part: 3 epochs. So this one is in the second epoch of the second.
    with testing.crash_at("evaluation", count=5, how="raise"), pytest.raises(testing.InjectedCrash):
        train(comparison(), config(epochs=3), workdir=tmp_path)
    assert not (tmp_path / "plots").exists()
    train(comparison(), config(epochs=3), workdir=tmp_path, resume="must")
    assert digest(tmp_path) == digest(whole.workdir)


def test_ctrl_c_in_a_part_says_where_and_the_same_call_goes_on(tmp_path, monkeypatch):
    # A shell that started the tests in the background would have this process ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        press = hooks.LambdaHook(on_epoch_begin=lambda loop: signal.raise_signal(signal.SIGINT) if loop.progress.epoch == 1 else None)
        with pytest.raises(runner.Interrupted, match=r"Interrupted in second, epoch 2 of 3.*checkpoints/best"):
            train(comparison(hooks=[press]), config(epochs=3), workdir=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    runs = train(comparison(), config(epochs=3), workdir=tmp_path)
    assert len(runs["second"].history.epoch) == 3


def test_a_workdir_is_of_one_kind(tmp_path):
    train(study(), config(epochs=1), workdir=tmp_path / "one")
    with pytest.raises(InputError, match="holds a single run"):
        train(comparison(), config(epochs=1), workdir=tmp_path / "one")
    train(Comparison({}, lambda runs: ["Nothing to train."], "None."), config(), workdir=tmp_path / "several")
    with pytest.raises(InputError, match="holds a comparison"):
        train(study(), config(epochs=1), workdir=tmp_path / "several")


@pytest.mark.parametrize(("resume", "said"), [("must", "There is no run"), ("never", "is used already")])
def test_resume_holds_for_the_whole_comparison(tmp_path, resume, said):
    workdir = tmp_path / "both"
    if resume == "never":
        workdir.mkdir()
        (workdir / "config.json").write_text("{}")
    with pytest.raises(InputError, match=said):
        train(comparison(), config(), workdir=workdir, resume=resume)


@pytest.mark.parametrize("name", ["", "plots", "comparison", "../up", "a/b", ".hidden"])
def test_a_part_is_named_as_a_folder_can_be(name):
    with pytest.raises(ValueError, match="cannot be named"):
        Comparison({name: lambda before: study()}, lambda runs: [], "")


def test_a_part_is_the_same_whatever_was_made_before():
    made = comparison()
    one = made.make("first", {}, seed=3)
    study()
    two = made.make("first", {}, seed=3)
    assert [v.path for v in one.model.weights] == [v.path for v in two.model.weights]
    for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = made.make("first", {}, seed=4)
    assert not np.array_equal(one.model.get_weights()[0], other.model.get_weights()[0])
