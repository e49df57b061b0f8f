"""Programs stay with their task from run to run, and are used again only where nothing has changed that their traces took for constant."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from loops.engine.kept_programs import KeptPrograms
from loops.engine.step import GlobalStep
from loops.tasks import python_inputs
from loops.testing import read_events
from tests.loops import tiny

X = tiny.data(32)[0]


class Noisy(loops.Task):
    """Draws from the seed of the run, and reads a Python number."""

    def __init__(self, **attributes):
        super().__init__()
        self.weight, self.factor = tf.Variable(1.0), 1.0
        vars(self).update(attributes)

    @property
    def traces(self):
        return tiny.traces_of(self)

    def train_step(self, batch):
        tiny.count_trace(self)
        noise = tf.random.stateless_normal([], self.seed()) * self.factor
        self.weight.assign_add(noise)
        return {"noise": noise}

    def eval_step(self, batch):
        return {"noise": tf.random.stateless_normal([], self.seed()) * self.factor}


class Plain(Noisy):
    """The same without the seed."""

    def train_step(self, batch):
        tiny.count_trace(self)
        self.weight.assign_add(self.factor)
        return {"weight": self.weight.read_value()}


def run(task, n=32, epochs=1, **arguments):
    loop = loops.TrainLoop(task, loops.ArrayFeed(X[:n], 16), compile="graph", **arguments)
    return loop.run(epochs=epochs).history


def test_loops_of_one_task_share_its_programs():
    task = Noisy()
    evaluated = {"val": loops.ArrayFeed(X, 16)}
    first = run(task, evaluate=evaluated)
    assert task.traces == 1
    assert run(task, evaluate=evaluated, epochs=3)["noise"][0] == first["noise"][0]
    assert loops.EvalLoop(task, compile="graph").run(evaluated["val"]) == {"noise": first["val_noise"][0]}
    run(task)
    assert task.traces == 1


def test_evaluations_between_two_runs_leave_their_program_to_others(monkeypatch):
    traced, trace = [], GlobalStep._trace
    monkeypatch.setattr(GlobalStep, "_trace", lambda self, spec: traced.append(self.method) or trace(self, spec))
    task, feed = Noisy(), loops.ArrayFeed(X, 16)
    loop = loops.TrainLoop(task, feed, compile="graph")
    loop.run(epochs=1)
    loop.evaluate(feed, "val")
    loops.EvalLoop(task, compile="graph").run(feed)
    loop.run(epochs=2)
    loop.evaluate(feed, "val")
    assert traced == ["train_step", "eval_step"]


def test_another_seed_of_the_run_is_another_program_where_it_is_drawn_from():
    task, plain = Noisy(), Plain()
    drawn = [run(task, seed=seed)["noise"] for seed in (0, 1, 0, 1)]
    assert task.traces == 2 and drawn[:2] == drawn[2:] and drawn[0] != drawn[1]
    assert drawn[1] == run(Noisy(), seed=1)["noise"]
    for seed in (0, 1):
        run(plain, seed=seed)
    assert plain.traces == 1


def test_between_two_runs_of_a_loop_a_changed_number_is_noticed_as_between_two_loops(capsys):
    task = Plain()
    loop = loops.TrainLoop(task, loops.ArrayFeed(X, 16), compile="graph")
    loop.run(epochs=1)
    loop.run(epochs=2)
    assert task.traces == 1 and float(task.weight) == 5.0
    task.factor = 10.0
    loop.run(epochs=3)
    assert task.traces == 2 and float(task.weight) == 25.0
    assert "Retracing the training step: Plain.factor changed from 1.0 to 10.0" in capsys.readouterr().out
    run(task)
    assert task.traces == 2
    loop.run(epochs=4)  # the other loop has given the program back
    assert task.traces == 2 and float(task.weight) == 65.0


def test_a_number_that_changes_while_a_run_is_on_is_warned_of_and_noticed_by_the_next(capsys):
    task = Plain()
    change = hooks.LambdaHook(on_epoch_end=lambda loop, logs: setattr(task, "factor", 3.0))
    run(task, epochs=2, hooks=[change])
    assert "Plain.factor changed from 1.0 to 3.0, but the traced step keeps the old value" in capsys.readouterr().out
    assert float(task.weight) == 5.0
    run(task)
    assert float(task.weight) == 11.0 and task.traces == 2
    task.factor = 1.0
    run(task)
    assert float(task.weight) == 13.0 and task.traces == 3


def test_what_a_hook_changes_before_the_first_step_counts_from_it_on():
    task = Plain()
    run(task)
    for mode in ("graph", "xla", "xla"):
        task.factor, task.weight = 1.0, tf.Variable(0.0)
        change = hooks.LambdaHook(on_epoch_begin=lambda loop: setattr(task, "factor", 2.0))
        loops.TrainLoop(task, loops.ArrayFeed(X, 16), [change], compile=mode).run(epochs=1)
        assert float(task.weight) == 4.0


class CountsInPython(Plain):
    def train_step(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        self.totals["train"] += 1
        return super().train_step(batch)

    def eval_step(self, batch):
        self.totals["eval"] += 1
        return super().eval_step(batch)


def test_what_only_traces_change_is_no_reason_to_trace_again():
    task = CountsInPython(totals={"train": 0, "eval": 0}, calls=0)
    for _ in range(3):
        run(task, evaluate={"val": loops.ArrayFeed(X, 16)})
    assert task.traces == 1 and task.totals == {"train": 1, "eval": 1}
    task.totals["eval"] = 7  # somebody else's change is one
    run(task)
    assert task.traces == 2


def test_a_program_whose_traces_saw_different_values_is_not_kept():
    task = Plain()
    half = loops.FeedSchedule({0: loops.ArrayFeed(X, 16), 1: loops.ArrayFeed(X[:24], 8)})
    change = hooks.LambdaHook(on_epoch_begin=lambda loop: setattr(task, "factor", 1.0 + loop.progress.epoch))
    loops.TrainLoop(task, half, [change], compile="graph").run(epochs=2)
    assert task.traces == 2
    task.factor = 1.0
    run(task)
    assert task.traces == 3


def test_a_task_with_too_much_to_compare_keeps_nothing(monkeypatch):
    monkeypatch.setattr(python_inputs, "_MOST", 20)
    task = Plain(rows=[{"index": object()} for _ in range(50)])
    for _ in range(2):
        run(task)
    assert task.traces == 2 and len(KeptPrograms.of(task)) == 0


@pytest.mark.parametrize(
    "value, change",
    [
        (["a"] * 100, lambda value: value.__setitem__(70, "b")),
        ({i: float(i) for i in range(100)}, lambda value: value.__setitem__(70, 0.0)),
        (np.zeros([2_000_000], "float32"), lambda value: value.__setitem__(0, 1.0)),
        ({"a", "b"}, lambda value: value.add("c")),
        (float("nan"), None),
        (np.random.default_rng(0), None),
    ],
    ids=["long list", "long dict", "large array", "set", "NaN", "generator"],
)
def test_values_of_many_kinds_are_compared(value, change):
    task = Plain(held=value)
    run(task)
    run(task)
    assert task.traces == 1
    if change is not None:
        change(task.held)
        run(task)
        assert task.traces == 2


class Summarizing(Plain):
    def train_step(self, batch):
        tf.summary.scalar("mine", self.weight)
        return super().train_step(batch)


def test_summaries_of_a_step_go_to_the_writer_of_each_run(tmp_path):
    task = Summarizing()
    run(task)
    for name in ("a", "b"):
        run(task, hooks=[hooks.TensorBoard(tmp_path / name)])
        assert len(read_events(tmp_path / name)["train"]["mine"]) == 2
    assert task.traces == 3
    run(task)
    run(task)
    assert task.traces == 4


def test_a_step_with_hidden_random_state_is_traced_for_each_run():
    class Hidden(Plain):
        def train_step(self, batch):
            return {**super().train_step(batch), "drawn": tf.random.normal([])}

    task = Hidden()
    run(task)
    run(task)
    assert task.traces == 2


def test_a_step_that_draws_numbers_of_numpy_is_traced_for_each_run():
    class Drawing(Plain):
        def train_step(self, batch):
            return {**super().train_step(batch), "drawn": float(np.random.normal())}

    task = Drawing()
    assert run(task)["drawn"] != run(task)["drawn"] and task.traces == 2


def test_copies_of_a_task_have_programs_of_their_own():
    task = Plain()
    run(task)
    for other in (copy.copy(task), copy.deepcopy(task)):
        assert len(KeptPrograms.of(task)) == 1 and len(KeptPrograms.of(other)) == 0
        before = float(task.weight)
        other.weight = tf.Variable(100.0)
        run(other)
        assert (float(task.weight), float(other.weight)) == (before, 102.0)


def test_programs_of_other_replicas_are_not_used(two_replicas):
    with two_replicas.scope():
        task = tiny.Classifier(keras.optimizers.SGD(0.1))
    x, y = tiny.data(32)

    def fit(**arguments):
        return loops.TrainLoop(task, loops.ArrayFeed((x, y), 16), compile="graph", **arguments).run(epochs=1)

    fit(strategy=two_replicas)
    traces = task.traces
    fit()
    fit(strategy=two_replicas)
    assert task.traces == traces
