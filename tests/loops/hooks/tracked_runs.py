"""A small run that a tracker follows, killed at any point: what the tests of all trackers share."""

import contextlib
import threading
import time

import numpy as np

import loops
from loops import hooks, testing
from tests.loops import tiny
from tests.loops.run.kill_cases import Copies

EPOCHS, STEPS = 3, 6  # steps of an epoch
CONFIG = {"epochs": EPOCHS, "optimizer": {"name": "adam", "learning_rate": np.float32(0.5)}, "hidden": [5], "clip": None}

# Where the process is killed, and whether the tracker has got everything by then or lags behind.
KILLS = [
    ("step", 2, "behind"),  # before the first snapshot
    ("hook", 60, "caught up"),
    ("before_write", 3, "behind"),
    ("half_written", 4, "caught up"),
    ("evaluation", 2, "caught up"),
    ("step", 15, "behind"),
    ("before_prune", 5, "caught up"),
]


def make(workdir, hook, *more, **arguments):
    """The loop, as a fresh process would make it: evaluated at epochs, and at steps between."""
    task = tiny.Classifier()
    feed = loops.ArrayFeed(tiny.data(16 * STEPS), 16, shuffle=True, seed=5)
    val, early = loops.ArrayFeed(tiny.data(32, seed=1), 16), loops.ArrayFeed(tiny.data(16, seed=2), 16)
    chosen = [hooks.Evaluate(early, "early", every=loops.triggers.At(3, 8, 16)), hook, *more]
    if workdir is not None:
        chosen += [hooks.Snapshot("4 steps"), hooks.TensorBoard(workdir, update_freq=1)]
    arguments = {"evaluate": {"val": val}, "workdir": workdir, "compile": "graph", "config": CONFIG, **arguments}
    loop = loops.TrainLoop(task, feed, chosen, **arguments)
    loop.clock = testing.FakeClock()
    return loop


def expected(loop):
    """(name, step, value) of each point that a tracker with every="2 steps" gets: from the history, TensorBoard and the task."""
    events = testing.read_events(loop.workdir)
    points = []
    for name, values in loop.history.history.items():
        if not name.startswith("early_"):
            points += [(name, (epoch + 1) * STEPS, value) for epoch, value in zip(loop.history.epoch, values, strict=True)]
    for tag, evaluated in events["early"].items():
        if tag.startswith("evaluation_"):
            name = tag.removeprefix("evaluation_").removesuffix("_vs_iterations")
            points += [(f"early_{name}", step, value) for step, value in evaluated]
    points += [("epoch", (epoch + 1) * STEPS, float(epoch)) for epoch in loop.history.epoch]
    losses = dict(events["train"]["batch_loss"])
    points += [("batch/loss", step, (losses[step - 1] + losses[step]) / 2) for step in range(2, EPOCHS * STEPS + 1, 2)]
    return sorted(points)


class KillPoints(Copies):
    """Copies the workdir at the points of `KILLS`, while no thread talks to a tracker.

    Args:
        workdir: the folder of the run.
        hook: the tracker's hook.
        talking: a lock that is held while its thread talks to the tracker.
        settle: what to wait for, beside the thread, until the tracker has caught up.
    """

    def __init__(self, workdir, hook, talking, settle=lambda: None):
        super().__init__(workdir, *((name, count) for name, count, _ in KILLS))
        self._hook, self._talking, self._settle = hook, talking, settle
        self._caught_up = {(name, count) for name, count, state in KILLS if state == "caught up"}

    def _note(self, name, times=1):
        before = self._counts[name]
        if any(point == name and before < count <= before + times for point, count in self._points):
            if any(point == name and before < count <= before + times for point, count in self._caught_up):
                wait_until(lambda: self._hook._thread is None or self._hook._points.length and not self._hook._points._waiting)
                self._settle()
            with self._talking:
                super()._note(name, times)
        else:
            super()._note(name, times)


def wait_until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)


def talking(monkeypatch, kind):
    """A lock that is held in each call of a client of this class."""
    lock = threading.RLock()  # `end` sends

    def locked(method):
        def call(*arguments):
            with lock:
                return method(*arguments)

        return call

    for name in ("open", "send", "end"):
        monkeypatch.setattr(kind, name, locked(getattr(kind, name)))
    return lock


@contextlib.contextmanager
def failing(monkeypatch, kind, *names):
    """Methods of a client fail in this context."""

    def fail(*arguments, **named):
        raise OSError("nobody is there")

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(kind, name, fail)
        yield
