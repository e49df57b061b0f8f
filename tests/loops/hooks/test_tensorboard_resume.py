"""TensorBoard's event files stay true when a run is killed and resumed: every point once, none from a future that did not happen."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorflow.python.ops import summary_ops_v2

from loops import hooks, testing
from loops.summaries import event_files
from loops.summaries.writer import SummaryWriter
from tests.loops.hooks.fake_loop import FakeLoop, tiny_model

STEPS = 3


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(autouse=True)
def _writers_die_with_their_process():
    """Here a kill is a loop that is dropped, which leaves its default writer to the process."""
    yield
    summary_ops_v2._summary_state.writer = None


def new_loop(folder, model=None, **options):
    board = hooks.TensorBoard(folder / "logs", update_freq="batch", **options)
    evaluate = hooks.Evaluate(1.5, "test", every="4 steps")
    loop = FakeLoop([board, evaluate], model, steps=STEPS)
    loop.workdir = folder
    return loop, board


def logs_of(epoch):
    return {"loss": 1.0 + epoch, **({"val_loss": 2.0 + epoch} if epoch % 2 else {})}


def go_on(loop, end):
    while loop.progress.step < end:
        epoch = loop.progress.step // STEPS
        loop.epoch(logs_of(epoch), until=min(STEPS, end - epoch * STEPS))


def read_as_tensorboard(folder):
    accumulator = plugin_event_accumulator.EventAccumulator(str(folder), {plugin_event_accumulator.TENSORS: 0})
    accumulator.Reload()
    return accumulator


def write_out(loop):
    """What the thread has reached when the process is killed: everything."""
    loop.hooks[1].state_dict()


def points(folder):
    """run -> tag -> points, without what is written whenever the hook looks, which it does by the clock."""
    return {
        run: {tag: values for tag, values in tags.items() if tag == "batch_loss" or not tag.startswith("batch_")}
        for run, tags in testing.read_events(folder / "logs").items()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("whole")
    loop, _ = new_loop(folder, model)
    loop.begin()
    go_on(loop, 12)
    loop.end("finished")
    return points(folder)


@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8), st.integers(0, 40)), min_size=1, max_size=3))
def test_every_point_is_there_once_however_often_the_run_is_killed(tmp_path_factory, model, undisturbed, cuts):
    folder = tmp_path_factory.mktemp("run")
    loop, board = new_loop(folder / "b", model)
    loop.begin()
    for cut, future, torn in sorted(cuts):
        go_on(loop, max(cut, loop.progress.step))
        saved = loop.saved()
        go_on(loop, min(loop.progress.step + future, 12))
        write_out(loop)
        files = sorted((folder / "b").rglob("*tfevents*"), key=os.path.getmtime)
        if future and files:
            with open(files[-1], "ab") as file:  # a record that was being written
                file.write(b"\x99" * torn)
        loop, board = new_loop(folder / "b", model)
        loop.resume(saved)
    go_on(loop, 12)
    loop.end("finished")
    found = points(folder / "b")
    assert found == undisturbed
    assert [step for step, _ in found["train"]["batch_loss"]] == list(range(1, 13))
    shutil.rmtree(folder)


def test_the_graph_is_written_once(tmp_path, model):
    loop, _ = new_loop(tmp_path, model)
    loop.begin()
    go_on(loop, 4)
    saved = loop.saved()
    again, _ = new_loop(tmp_path, model)
    again.resume(saved)
    go_on(again, 9)
    again.end("finished")
    assert len(testing.read_events(tmp_path / "logs")["train"]["keras"]) == 1


def test_an_evaluation_before_the_snapshot_stays_in_its_run(tmp_path):
    """In the middle of an epoch the logs of an evaluation are there, and only the state knows whose they are."""
    loop, _ = new_loop(tmp_path)
    loop.begin()
    go_on(loop, 5)
    assert json.loads(json.dumps(loop.saved()[0]))["hooks"]["TensorBoard"]["evaluated"] == {"test_loss": ["test", "loss"]}
    saved = loop.saved()
    again, _ = new_loop(tmp_path)
    again.resume(saved)
    go_on(again, 6)
    again.end("finished")
    assert points(tmp_path)["test"]["epoch_loss"] == [(1, 1.5)]


def test_the_state_tells_the_true_lengths_and_reads_nothing(tmp_path, monkeypatch):
    loop, board = new_loop(tmp_path)
    loop.begin()
    go_on(loop, 5)
    for name in ("stat", "exists", "walk", "listdir", "glob"):
        monkeypatch.setattr(tf.io.gfile, name, lambda *args, name=name: pytest.fail(f"{name} was called"))
    state = board.state_dict()
    monkeypatch.undo()
    told = {os.path.join(run, name): length for run, files in state["files"].items() for name, length in files.items()}
    root = tmp_path / "logs"
    assert told == {str(p.relative_to(root)): p.stat().st_size for p in root.rglob("*tfevents*")} and len(told) == 2
    loop.end("interrupted")


def test_files_of_others_are_left_alone(tmp_path):
    logs = tmp_path / "logs"
    with SummaryWriter(logs / "train") as writer:  # an earlier run in the same folder
        writer.scalars([1], {"mine": [1.0]})
    loop, _ = new_loop(tmp_path)
    loop.begin()
    go_on(loop, 3)
    saved = loop.saved()
    go_on(loop, 5)
    write_out(loop)
    with SummaryWriter(logs / "train") as writer, tf.summary.create_file_writer(str(logs / "train")).as_default():  # another hook's
        writer.scalars([9], {"others": [1.0]})
        tf.summary.scalar("tf", 1.0, step=9)
    other = hooks.TensorBoard(logs)
    other.name = "TensorBoard_2"
    second = FakeLoop([other], steps=STEPS)
    second.workdir = tmp_path
    second.begin()
    second.epoch({"second": 1.0})
    second.end("finished")
    again, _ = new_loop(tmp_path)
    again.resume(saved)
    again.end("interrupted")
    assert {"mine", "others", "tf", "epoch_second"} <= set(testing.read_events(logs)["train"])
    assert [step for step, _ in points(tmp_path)["train"]["batch_loss"]] == [1, 2, 3]


def test_a_start_before_the_first_snapshot_leaves_nothing_behind(tmp_path):
    (tmp_path / "logs" / "train").mkdir(parents=True)
    with SummaryWriter(tmp_path / "logs" / "train") as writer:
        writer.scalars([1], {"mine": [1.0]})
    for end in (2, 4, 6):  # killed twice
        loop, _ = new_loop(tmp_path)
        loop.begin()
        go_on(loop, end)
        write_out(loop)
    loop.end("finished")
    assert [step for step, _ in points(tmp_path)["train"]["batch_loss"]] == list(range(1, 7))
    assert "mine" in points(tmp_path)["train"]


def test_another_run_in_the_same_folder_deletes_nothing(tmp_path):
    for name in ("first", "second"):
        loop, _ = new_loop(tmp_path)
        loop.workdir = tmp_path / name
        loop.begin()
        go_on(loop, 3)
        loop.end("finished")
    assert len(points(tmp_path)["train"]["batch_loss"]) == 6


def test_a_moved_folder_is_cut_back_too(tmp_path):
    loop, _ = new_loop(tmp_path / "a")
    loop.begin()
    go_on(loop, 3)
    saved = loop.saved()
    go_on(loop, 8)
    loop.end("interrupted")
    (tmp_path / "a").rename(tmp_path / "b")
    again, _ = new_loop(tmp_path / "b")
    again.resume(saved)
    go_on(again, 6)
    again.end("finished")
    assert [step for step, _ in points(tmp_path / "b")["train"]["batch_loss"]] == list(range(1, 7))
    assert not (tmp_path / "a").exists()


def test_missing_and_shortened_files_are_said_once_and_training_goes_on(tmp_path):
    loop, _ = new_loop(tmp_path)
    loop.begin()
    go_on(loop, 5)
    saved = loop.saved()
    loop.end("interrupted")
    (train,) = (tmp_path / "logs" / "train").iterdir()
    (test,) = (tmp_path / "logs" / "test").iterdir()
    test.unlink()
    train.write_bytes(train.read_bytes()[:-3])
    again, board = new_loop(tmp_path)
    with pytest.warns(UserWarning, match="2 of the event files that this run had written are missing or cut short") as caught:
        again.resume(saved)
    assert len(caught) == 1
    assert board.state_dict()["files"].keys() == {"train"}
    go_on(again, 8)
    again.end("finished")
    assert [step for step, _ in points(tmp_path)["train"]["batch_loss"]][-3:] == [6, 7, 8]


def test_a_tensorboard_that_is_looking_forgets_the_undone_future(tmp_path, model):
    loop, _ = new_loop(tmp_path, model)
    loop.begin()
    go_on(loop, 4)
    saved = loop.saved()
    go_on(loop, 8)
    write_out(loop)
    looking = read_as_tensorboard(tmp_path / "logs" / "train")
    assert [event.step for event in looking.Tensors("batch_loss")][-1] == 8
    again, _ = new_loop(tmp_path, model)
    again.resume(saved)
    go_on(again, 9)
    again.end("finished")
    looking.Reload()
    fresh = read_as_tensorboard(tmp_path / "logs" / "train")
    for accumulator in (looking, fresh):
        assert [event.step for event in accumulator.Tensors("batch_loss")] == list(range(1, 10))
        assert "keras" in accumulator.Tags()["tensors"]
    assert [event.step for event in fresh.Tensors("epoch_loss")] == [0, 1, 2]


def test_points_on_an_axis_of_your_own_are_not_forgotten(tmp_path):
    """TensorBoard drops everything at or behind the step at which a run restarts, whatever its axis."""
    loop, board = new_loop(tmp_path)
    loop.begin()
    board.image("mine", np.zeros([4, 4]), 1000)
    go_on(loop, 3)
    again, _ = new_loop(tmp_path)
    again.resume(loop.saved())
    go_on(again, 6)
    again.end("finished")
    accumulator = read_as_tensorboard(tmp_path / "logs" / "train")
    assert [event.step for event in accumulator.Tensors("mine")] == [1000]
    assert [event.step for event in accumulator.Tensors("batch_loss")] == list(range(1, 7))


def test_going_back_within_the_process_cuts_too(tmp_path):
    loop, board = new_loop(tmp_path)
    loop.begin()
    go_on(loop, 3)
    state, progress = json.loads(json.dumps(board.state_dict())), loop.progress.state_dict()
    go_on(loop, 6)
    loop.progress.load_state_dict(progress)
    loop._looked = dict.fromkeys(loop._looked, 3)
    board.load_state_dict(state)
    go_on(loop, 6)
    loop.end("finished")
    assert [step for step, _ in points(tmp_path)["train"]["batch_loss"]] == list(range(1, 7))


def test_files_of_a_later_process_are_read_later_even_if_its_clock_is_behind(tmp_path, monkeypatch):
    loop, _ = new_loop(tmp_path)
    loop.begin()
    go_on(loop, 3)
    saved = loop.saved()
    loop.end("interrupted")
    monkeypatch.setattr(event_files.time, "time", lambda: 1_000_000_000.0)
    again, _ = new_loop(tmp_path)
    again.resume(saved)
    go_on(again, 6)
    again.end("finished")
    monkeypatch.undo()
    names = sorted(p.name for p in (tmp_path / "logs" / "train").iterdir())
    assert len(names) == 2 and names[1].split(".")[3] > names[0].split(".")[3]
    assert [step for step, _ in points(tmp_path)["train"]["batch_loss"]] == list(range(1, 7))


def test_a_remote_file_system_is_cut_by_writing_anew():
    root = "ram://loops_cut_back"
    writer = SummaryWriter(f"{root}/train", mark="abc")
    writer.scalars([1], {"loss": [1.0]})
    writer.flush()
    ((name, length),) = writer.files.items()
    writer.scalars([2], {"loss": [2.0]})
    writer.close()
    with SummaryWriter(f"{root}/test", mark="abc") as later:
        later.scalars([2], {"loss": [2.0]})
    kept, lost = event_files.cut_back(root, {f"train/{name}": length}, "abc")
    assert (kept, lost) == ({f"train/{name}": length}, [])
    assert tf.io.gfile.stat(f"{root}/train/{name}").length == length
    assert tf.io.gfile.listdir(f"{root}/test") == []


def test_cutting_back_needs_a_mark(tmp_path):
    with pytest.raises(ValueError, match="by their mark"):
        event_files.cut_back(tmp_path, {}, "")


def test_a_state_before_the_beginning_is_refused(tmp_path):
    state = hooks.TensorBoard(tmp_path).state_dict()
    with pytest.raises(RuntimeError, match="a training loop that has begun"):
        hooks.TensorBoard(tmp_path).load_state_dict(state)
