"""What all trackers share, with a tracker in memory: what is logged at which step, and each point once, whatever fails or is killed."""

from __future__ import annotations

import pathlib
import shutil
import sys
import time

import numpy as np
import pytest

from loops import hooks
from loops.hooks import _tracker_thread
from loops.hooks._tracked_points import Point, TrackedPoints
from loops.hooks._tracker import Tracker
from tests.loops.hooks import tracked_runs
from tests.loops.hooks.tracked_runs import EPOCHS, KILLS


class Store:
    """Runs of a tracker, by id: the points that it has, how often it was opened, and its endings."""

    def __init__(self):
        self.points, self.opened, self.endings = {}, {}, {}
        self.broken = 0  # how many calls fail from now on

    def only(self):
        (points,) = self.points.values()
        return sorted(points)


class InMemory(Tracker):
    """A tracker that takes points as W&B does: of a step that it has it takes no more."""

    def __init__(self, store, every="2 steps"):
        super().__init__(every=every, weights=True, timeout=60.0)
        self.store = store

    def client(self, loop, identity, pictures):
        return Client(self.store, identity)


class Client:
    def __init__(self, store, identity):
        self.store, self.identity = store, identity

    def open(self):
        self.check()
        self.store.opened[self.identity] = self.store.opened.get(self.identity, 0) + 1
        self.last = max((step for _, step, _ in self.store.points.setdefault(self.identity, [])), default=-1)

    def send(self, points):
        for point in points:
            self.check()
            if point.step > self.last:
                self.store.points[self.identity] += [(name, point.step, value) for name, value in point.values.items()]

    def end(self, ending):
        self.check()
        self.store.endings.setdefault(self.identity, []).append(ending)

    def abandon(self):
        raise OSError("that fails as well")

    def check(self):
        if self.store.broken:
            self.store.broken -= 1
            raise ConnectionError("nobody is there")


@pytest.fixture
def quick_tries(monkeypatch):
    monkeypatch.setattr(_tracker_thread, "_SECONDS_BETWEEN_TRIES", 0.01)


def test_points_are_those_of_history_and_tensorboard_at_their_steps(tmp_path):
    store = Store()
    loop = tracked_runs.make(tmp_path / "run", InMemory(store))
    loop.run(epochs=EPOCHS)
    found = [p for p in store.only() if p[0] == "batch/loss" or not p[0].startswith(("batch/", "learning_rate"))]
    wanted = tracked_runs.expected(loop)
    assert [point[:2] for point in found] == [point[:2] for point in wanted]
    np.testing.assert_allclose([point[2] for point in found], [point[2] for point in wanted], rtol=1e-6)
    assert sorted(step for name, step, _ in store.only() if name == "learning_rate") == [6, 12, 18]
    ((ending,),) = store.endings.values()
    assert (ending.outcome, ending.reason, ending.step) == ("finished", None, 18)
    assert [path.name for path in ending.weights] == ["best.weights.h5"]


def test_killed_anywhere_the_same_run_goes_on_whatever_the_tracker_has_got_by_then(tmp_path, monkeypatch):
    store, workdir = Store(), tmp_path / "run"
    lock = tracked_runs.talking(monkeypatch, Client)
    hook = InMemory(store)
    loop = tracked_runs.make(workdir, hook)
    kills = [kill for kill in KILLS if kill[0] in ("hook", "before_write", "step")]
    with tracked_runs.KillPoints(workdir, hook, lock) as copies:
        loop.run(epochs=EPOCHS)
    wanted = store.only()
    ((run, points),) = store.points.items()
    steps = sorted({step for _, step, _ in points})
    for i, (name, count, _) in enumerate(kills):
        copies.restore((name, count))
        has = steps[: len(steps) * i // len(kills)]
        store.points = {run: [point for point in points if point[1] in has]}
        tracked_runs.make(workdir, InMemory(store)).run(epochs=EPOCHS)
        assert store.only() == wanted, (name, count)


def test_a_run_that_begins_anew_with_another_config_is_another_run(tmp_path):
    store, workdir = Store(), tmp_path / "run"
    for config in ({"rate": 1}, {"rate": 1}, {"rate": 2}):
        with pytest.raises(ZeroDivisionError):
            fail = hooks.LambdaHook(on_evaluate_end=lambda loop, name, logs: 1 / 0)
            tracked_runs.make(workdir, InMemory(store), fail, config=config).run(epochs=1)
        shutil.rmtree(workdir / "snapshots", ignore_errors=True)
    assert sorted(store.opened.values()) == [1, 2]
    assert {ending.reason for endings in store.endings.values() for ending in endings} == {"ZeroDivisionError: division by zero"}


@pytest.mark.parametrize("workdir", [True, False])
def test_a_tracker_that_comes_back_gets_what_it_missed(workdir, tmp_path, quick_tries):
    store, undisturbed = Store(), Store()
    store.broken = 7
    wait = hooks.LambdaHook(on_epoch_end=lambda loop, logs: time.sleep(0.3))
    loop = tracked_runs.make(tmp_path / "run" if workdir else None, InMemory(store), InMemory(undisturbed), wait)
    with pytest.warns(UserWarning, match=r"InMemory could not log \(ConnectionError: nobody is there\). Training goes on.") as caught:
        loop.run(epochs=EPOCHS)
    assert len([w for w in caught if "InMemory" in str(w.message)]) == 1
    assert store.only() == undisturbed.only()
    assert [ending.outcome for endings in store.endings.values() for ending in endings] == ["finished"]


def test_a_tracker_that_stays_away_does_not_stop_training(tmp_path, quick_tries):
    store = Store()
    store.broken = 1 << 30
    with pytest.warns(UserWarning, match="InMemory could not"):
        loop = tracked_runs.make(tmp_path / "run", InMemory(store))
        loop.run(epochs=1)
    assert loop.outcome == "finished"
    store.broken = 0
    tracked_runs.make(tmp_path / "run", InMemory(store)).run(epochs=1)  # complete, and the tracker gets all of it now
    assert {step for _, step, _ in store.only()} == {2, 3, 4, 6}


def test_a_disk_that_is_full_does_not_stop_training_and_the_tracker_gets_its_points(tmp_path):
    store, hook = Store(), None
    hook = InMemory(store)
    block = hooks.LambdaHook(on_epoch_begin=lambda loop: (tmp_path / "run" / "trackers").write_text("not a folder"))
    with pytest.warns(UserWarning, match="InMemory could not write .*run.json"):
        loop = tracked_runs.make(tmp_path / "run", hook, block)
        loop.run(epochs=1)
    assert loop.outcome == "finished" and {step for _, step, _ in store.only()} == {2, 3, 4, 6}


def test_an_evaluation_and_files_after_training_are_added_to_the_run(tmp_path):
    store = Store()
    hook = InMemory(store)
    loop = tracked_runs.make(tmp_path / "run", hook)
    with pytest.raises(RuntimeError, match="InMemory has no run yet"):
        hook.add_files(loop, "a.png")
    with pytest.raises(RuntimeError, match="while a training loop runs"):
        hook.image("a", np.zeros([2, 2]), 1)
    loop.run(epochs=1)
    logs = loop.evaluate(loop.evaluations["val"], "test")
    hook.add_files(loop, "a.png")
    (endings,) = store.endings.values()
    assert endings[1].results["test_loss"] == logs["test_loss"] and endings[2].files == [pathlib.Path("a.png")]


def test_points_of_a_file_that_ends_within_a_line_are_read(tmp_path):
    points = TrackedPoints(tmp_path / "p.jsonl", keep=False)
    for step in (1, 2):
        points.add(Point(step, 0.0, {"loss": float("nan")}))
    whole = points.length
    with (tmp_path / "p.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "ti')
    again = TrackedPoints(tmp_path / "p.jsonl", keep=True)
    again.start_over()
    number, found = again.take(10)
    assert [point.step for point in found] == [1, 2] and np.isnan(found[1].values["loss"])
    assert again.cut(whole + 100) == 100 - len('{"step": 3, "ti')
    assert again.cut(whole) == 0 and again.length == whole
    again.taken(number, 2)  # of points that were dropped since: nothing


@pytest.mark.parametrize(("hook", "package"), [("WandB", "wandb"), ("MLflow", "mlflow")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(hook, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'hooks.{hook} needs the package {package}: pip install "tapeloops\[{package}\]"'):
        getattr(hooks, hook)()
