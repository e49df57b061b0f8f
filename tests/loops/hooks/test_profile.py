"""A profile tells what is waiting from what is computing, changes no number, and leaves the loop as it was."""

import io
import pathlib
import time

import pytest
import tensorflow as tf

import loops
from loops import hooks
from tests.loops import tiny


def loop_on(kind, **settings):
    x, y = tiny.data(16 * 20)
    return loops.TrainLoop(tiny.Classifier(random=True), tiny.feed_of(kind, x, y), **settings)


def test_a_profile_is_of_the_steps_that_were_asked_for_and_changes_no_number(capsys):
    loop, reference = loop_on("known"), loop_on("known")
    timing = loops.profile(loop, steps=30, after=10)
    assert timing.steps == 30 and loop.progress.step == 40
    assert timing.compute > 0 and timing.data >= 0 and timing.compile == 0
    heading, table = capsys.readouterr().out.split("\n", 1)
    assert heading.startswith("Steps 11 to 40: ") and table.startswith(timing.table() + "\n")
    reference.run(steps=40)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(reference.task))
    assert [hook.name for hook in loop.hooks] == [hook.name for hook in reference.hooks]


def test_a_loop_that_was_used_before_goes_on_as_it_was():
    loop, reference = loop_on("array"), loop_on("array")
    loop.run(epochs=1)
    assert loops.profile(loop, steps=5, after=2).steps == 5
    loop.run(epochs=3)
    reference.run(epochs=3)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(reference.task))
    assert loop.history.history == reference.history.history


def slow_batches():
    x, y = tiny.data(16)
    while True:
        time.sleep(0.1)  # far longer than a step takes on a busy machine
        yield x, y


def test_waiting_within_a_call_is_told_from_computing():
    spec = (tf.TensorSpec([16, tiny.N_FEATURES], tf.float32), tf.TensorSpec([16], tf.int64))
    source = loops.DatasetFeed(tf.data.Dataset.from_generator(slow_batches, output_signature=spec))
    hook = hooks.Profile(6, 15, stream=io.StringIO())
    loop = loops.TrainLoop(tiny.Classifier(), source, [hook])
    loop.run(steps=20)
    assert hook.timing.steps == 10
    assert hook.timing.data > 10 * 0.1 / 4
    assert hook.timing.share("data") > hook.timing.share("hooks")


def test_the_profile_of_a_run_names_its_hooks_and_ends_with_the_run():
    out = io.StringIO()
    loop = loop_on("array", evaluate={"val": loops.ArrayFeed(tiny.data(32), 16)})
    loop = loops.TrainLoop(loop.task, loop.feed, [hooks.Profile(1, 1000, stream=out), hooks.LambdaHook(every="5 steps")])
    loop.run(epochs=1)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("Steps 1 to 20: ")
    assert any(line.startswith("tracing and compiling") for line in lines)
    assert any(line.startswith("  LambdaHook") for line in lines)


def test_a_trace_for_tensorboard_is_written_on_request(tmp_path):
    loops.profile(loop_on("array"), steps=3, after=5, trace_dir=tmp_path)
    assert list(pathlib.Path(tmp_path).rglob("*.xplane.pb"))


def test_what_cannot_be_profiled_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"use the hook hooks\.Profile"):
        loops.profile(loop_on("array", workdir=tmp_path))
    with pytest.raises(ValueError, match="1 or more"):
        loops.profile(loop_on("array"), steps=0)
    with pytest.raises(ValueError, match=r"Profile\(first, last\) takes"):
        hooks.Profile(9, 3)
    loop = loop_on("array")
    hook = hooks.LambdaHook(every=None)
    loop.attach(hook)
    with pytest.raises(ValueError, match="already"):
        loop.attach(hook)
