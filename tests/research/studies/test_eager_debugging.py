"""`--compile=eager`: a breakpoint in `train_step` stops at every step, tensors have values there, and the numbers stay the same."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

import loops
from research import study
from research.configs import classification as config_file
from research.studies import classification


class Debugged(loops.SupervisedTask):
    def train_step(self, batch):
        images, labels = batch
        breakpoint()
        return super().train_step((images, labels))


@pytest.fixture
def stops(monkeypatch):
    """What a debugger sees at each stop: the local variables of the function with the breakpoint."""
    seen = []
    monkeypatch.setattr(sys, "breakpointhook", lambda: seen.append(dict(sys._getframe(1).f_locals)))
    return seen


def small_study(kind: type[loops.SupervisedTask] = loops.SupervisedTask):
    config = config_file.get_config()
    made = study.build(config, seed=0)
    keras.utils.set_random_seed(0)
    model = classification.make_model((8, 8), 10, hidden=(16,))
    return kind(model, loss="sparse_categorical_crossentropy", optimizer=keras.optimizers.Adam(), metrics=["accuracy"]), made.train


def test_a_breakpoint_stops_at_every_step_and_sees_values(stops):
    task, feed = small_study(Debugged)
    loops.TrainLoop(task, feed, compile="eager").run(steps=3)
    assert len(stops) == 3
    expected = next(feed.blocks(loops.Position())).tensors[0][:3]
    assert np.array_equal([stop["images"].numpy() for stop in stops], expected)
    assert all(stop["self"] is task for stop in stops)


def test_compiled_it_stops_only_while_the_step_is_traced(stops):
    task, feed = small_study(Debugged)
    loops.TrainLoop(task, feed, compile="graph").run(steps=3)
    assert stops and not any(hasattr(stop["images"], "numpy") for stop in stops)


def test_eager_gives_the_numbers_of_the_graph():
    def history(compile: str):
        task, feed = small_study()
        logs = loops.TrainLoop(task, feed, compile=compile, steps_per_epoch=15).run(epochs=1).history
        return logs, task.model.get_weights()

    (eager, weights), (graph, expected) = history("eager"), history("graph")
    assert {"loss", "accuracy"} <= set(graph)
    for name in graph:
        np.testing.assert_allclose(eager[name], graph[name], rtol=1e-6)
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
