"""compile="auto" chooses the mode of evaluations and predictions by the rule of training, and a run keeps what it chose."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

import loops
from loops import hooks, triggers
from loops.engine import compile_mode
from loops.engine.kept_programs import KeptPrograms
from loops.engine.program import Program
from loops.engine.progress import Progress
from loops.run.eval_loop import EvalLoop
from tests.loops import tiny

X, Y = tiny.data(96)


@pytest.fixture
def costs(monkeypatch):
    """Has the rule estimate that XLA saves a second a step, and compiles for so many seconds."""

    def estimate(compiling, times=2.0):
        monkeypatch.setattr(compile_mode, "costs_of", lambda work, **_: compile_mode.Costs(times, 1.0, compiling))

    return estimate


def feed(rows=96):
    return loops.ArrayFeed((X[:rows], Y[:rows]), 16)


def modes_of(task, method):
    return sorted(program.mode for program in KeptPrograms.of(task) if program.step.method == method)


@pytest.mark.parametrize(("compiling", "rows", "modes"), [(5.9, 96, ["graph", "xla"]), (6.1, 96, ["graph"]), (3.6, 100, ["graph"])])
def test_a_single_pass_takes_xla_if_it_saves_more_than_compiling(compiling, rows, modes, costs, capsys):
    x, y = tiny.data(rows)
    costs(compiling)  # 100 rows have a smaller last batch, which is compiled, too
    task, on = tiny.Classifier(), loops.ArrayFeed((x, y), 16)
    found = [loops.EvalLoop(task).run(on) for _ in range(2)]
    assert modes_of(task, "eval_step") == modes and capsys.readouterr().out == ""
    assert found[0] == found[1] == loops.EvalLoop(task, compile=modes[-1]).run(on)
    predicted = loops.PredictLoop(task).run(loops.ArrayFeed(x, 16))
    assert modes_of(task, "predict_step") == modes
    np.testing.assert_array_equal(predicted, loops.PredictLoop(task, compile=modes[-1]).run(loops.ArrayFeed(x, 16)))


def test_fewer_steps_than_a_pass_count_as_such_and_a_small_advantage_is_none(costs):
    costs(5.0)
    few, alike = tiny.Classifier(), tiny.Classifier()
    loops.EvalLoop(few).run(feed(), steps=4)
    costs(0.0, times=1.04)
    loops.EvalLoop(alike).run(feed())
    assert modes_of(few, "eval_step") == modes_of(alike, "eval_step") == ["graph"]


def test_xla_compiles_for_the_blocks_that_are_read_and_is_asked_once(costs, monkeypatch):
    costs(0.0)
    task, calls, call = tiny.Classifier(), [], Program.__call__
    monkeypatch.setattr(Program, "__call__", lambda self, *args, **kwargs: (calls.append(kwargs["n"]), call(self, *args, **kwargs))[1])
    loop, counted = loops.EvalLoop(task), []
    for _ in range(2):
        loop.run(feed(64))
        counted.append((calls.count(0), *{p.compilations for p in KeptPrograms.of(task) if p.mode == "xla"}))
    assert counted == [(1, 1), (1, 1)]


def test_who_looks_at_each_batch_gets_a_graph(costs):
    costs(0.0)
    task, seen = tiny.Classifier(), []
    loops.EvalLoop(task).run(feed(), on_batch=lambda batch, logs, last: seen.append(batch))
    assert len(seen) == 7 and modes_of(task, "eval_step") == ["graph"]


def trained(epochs, hooks=(), workdir=None, compile="auto", **arguments):
    loop = loops.TrainLoop(
        tiny.Classifier(), feed(), list(hooks), evaluate={"val": feed(64)}, workdir=workdir, compile=compile, **arguments
    )
    loop.run(epochs=epochs)
    return loop


@pytest.mark.parametrize(("compiling", "mode"), [(11.9, "xla"), (12.1, "graph")])
def test_a_run_counts_all_evaluations_up_to_its_targets(compiling, mode, costs, capsys):
    costs(compiling)
    loop = trained(3)  # three times four steps
    assert loop._parts.decisions["evaluation_modes"] == {"val": mode}
    assert ("takes xla for the evaluation 'val': 3 passes of 4 steps" in capsys.readouterr().out) is (mode == "xla")
    assert modes_of(loop.task, "eval_step")[-1] == mode
    if mode == "xla":
        assert loop.history.history == trained(3, compile="xla").history.history


class Beside(hooks.Hook):
    """Evaluates on something that the loop does not know of before."""

    phase = hooks.Phase.EVALUATE

    def on_window_end(self, loop, window):
        loop.evaluate(feed(32), "val")
        loop.evaluate(feed(32), "other")


def test_what_is_not_known_before_is_a_graph(costs):
    costs(0.0)
    loop = trained(2, [Beside()])
    assert loop._parts.decisions["evaluation_modes"] == {"val": "xla"}
    assert modes_of(loop.task, "eval_step") == ["graph", "xla"]


def test_a_resumed_run_keeps_the_mode_of_its_evaluations(costs, tmp_path):
    costs(11.0)
    run = trained(2, workdir=tmp_path, compile="graph")
    assert run._parts.decisions["evaluation_modes"] == {}
    short = trained(2, workdir=tmp_path / "auto")
    assert short._parts.decisions["evaluation_modes"] == {"val": "graph"}
    longer = trained(5, workdir=tmp_path / "auto")  # now XLA would pay
    assert longer._parts.decisions["evaluation_modes"] == {"val": "graph"}
    assert modes_of(longer.task, "eval_step") == ["graph"]


def test_the_mode_does_not_depend_on_where_a_run_stands(costs, tmp_path):
    costs(11.0)
    loop = trained(3, [hooks.TerminateOnNaN()], workdir=tmp_path)
    assert loop._parts.decisions["evaluation_modes"] == {"val": "xla"}
    at_once = trained(3)
    loop._parts.decisions["evaluation_modes"] = {}  # as after a rollback to a state from before it was chosen
    assert loop._evaluations._mode_of(loop.evaluations["val"], "val") == "xla"
    assert loop.history.history == at_once.history.history


@pytest.mark.parametrize("every", ["1 epoch", "3 epochs", "4 steps", "7 steps", "1 minute", None, triggers.At(3, 5, 90, epochs=(2, 99))])
def test_triggers_say_how_often_they_will_be_due(every):
    trigger, length, epochs = triggers.parse(every), 10, 4
    due = 0
    for step in range(1, epochs * length + 1):
        epoch, within = divmod(step - 1, length)
        progress = dataclasses.replace(Progress(), step=step, epoch=epoch, epoch_ended=within == length - 1)
        due += trigger.due(progress, 0.0)
    assert trigger.times_in(epochs, epochs * length) == due
    both = triggers.AnyOf(trigger, "20 steps")
    assert both.times_in(epochs, epochs * length) == max(due, 2)
    assert triggers.parse("1 epoch").times_in(None, 40) == triggers.parse("1 step").times_in(4, None) == 0


def test_explicit_modes_are_as_given():
    for mode, method in itertools.product(("graph", "xla", "eager"), (EvalLoop,)):
        assert repr(method(tiny.Classifier(), compile=mode)).endswith(f"{mode!r})")
    with pytest.raises(ValueError, match="compile"):
        EvalLoop(tiny.Classifier(), compile="fast")
