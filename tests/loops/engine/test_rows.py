"""Scalars of steps are told apart by name, whatever order a trace or an eager step returns them in."""

import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from loops.engine.rows import LogSpec, TraceLog, aligned

SIZES = (4, 2, 3)


class Sizes(loops.Feed):
    """Batches of 4, 2 and 3 examples, each a signature of its own."""

    element_spec, steps_per_epoch, seekable = tf.TensorSpec([None]), 3, True

    def blocks(self, position):
        for size in SIZES[position.batch :]:
            yield loops.Block(tf.fill([1, size], float(size)), 1)


class ByShape(loops.Task):
    """Returns other names, in another order, for each size."""

    def train_step(self, batch):
        one, two = batch[0] * 0 + 1.0, loops.Sum(tf.constant(2.0))
        if batch.shape[0] == 4:
            return {"one": one, "two": two, "four": loops.Last(batch[0])}
        if batch.shape[0] == 2:
            return {"two": two, "one": one}
        return {"three": batch[0], "two": two}

    def eval_step(self, batch):
        logs = self.train_step(batch)
        return {f"got{batch.shape[0]}": loops.Collect(batch), **logs}

    def eval_end(self, collected):
        return {"collected": sum(len(values) for values in collected.values())}


@pytest.mark.parametrize("compile", ["eager", "xla"])
def test_names_decide(compile):
    traces, means = [], []

    def look(loop, window):
        traces.append({name: values.tolist() for name, values in window.trace.items()})
        means.append({name: window.mean(name) for name in ("one", "two", "three", "four")})

    loop = loops.TrainLoop(ByShape(), Sizes(), [hooks.LambdaHook(on_window_end=look, every="1 epoch")], compile=compile)
    assert loop.run(epochs=2).history == {"four": [4.0, 4.0], "one": [1.0, 1.0], "three": [3.0, 3.0], "two": [6.0, 6.0]}
    nan = np.nan
    expected = {"one": [1.0, 1.0, nan], "two": [2.0, 2.0, 2.0], "four": [4.0, nan, nan], "three": [nan, nan, 3.0]}
    for trace in traces:
        assert sorted(trace) == sorted(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(trace[name], values)
    assert means == [{"one": 1.0, "two": 6.0, "three": 3.0, "four": 4.0}] * 2
    logs = loop.evaluate(Sizes(), "val")
    assert logs == {"val_four": 4.0, "val_one": 1.0, "val_three": 3.0, "val_two": 6.0, "val_collected": 9.0}


@pytest.mark.parametrize("compile", ["eager", "xla"])
def test_names_decide_after_a_restart_in_mid_epoch(compile, tmp_path):
    undisturbed = loops.TrainLoop(ByShape(), Sizes(), compile=compile).run(epochs=2).history
    for steps in (1, 2, 4, 5, 6):
        history = loops.TrainLoop(ByShape(), Sizes(), compile=compile, workdir=tmp_path / "run").run(steps=steps).history
    assert history == undisturbed


@pytest.mark.parametrize("compile", ["eager", "xla"])
def test_a_name_has_one_reduction(compile):
    class Both(loops.Task):
        def train_step(self, batch):
            return {"x": loops.Sum(batch[0]) if batch.shape[0] == 4 else batch[0]}

    with pytest.raises(
        ValueError, match=r"returned 'x' as (Mean|Sum) and before, for another batch, as .*; a name has to be reduced in one way"
    ):
        loops.TrainLoop(Both(), Sizes(), compile=compile).run(epochs=1)


def test_alignment_keeps_what_is_equal_and_fills_what_is_absent():
    mean, total = loops.Mean, loops.Sum
    a, b = LogSpec({"x": mean, "y": total}), LogSpec({"y": total})
    spec, rows = aligned([(a, tf.constant([4.0, 0.0, 1.0, 4.0, 2.0, 1.0], tf.float64)), (b, tf.constant([2.0, 0.5, 3.0, 1.0], tf.float64))])
    assert spec == a and rows.tolist() == [[4, 0, 1, 4, 2, 1], [2, 0.5, 0, 0, 3, 1]]
    assert spec.reduce(rows) == {"x": 1.0, "y": 5.0}


def test_a_changed_reduction_after_a_retrace_begins_anew():
    trace = TraceLog()
    trace.append(np.array([[1.0, 0.0, 5.0, 1.0]]), 1, LogSpec({"x": loops.Sum}))
    trace.append(np.array([[1.0, 0.0, 7.0, 1.0]]), 1, LogSpec({"x": loops.Last}))
    assert trace.epoch_logs() == {"x": 7.0}
