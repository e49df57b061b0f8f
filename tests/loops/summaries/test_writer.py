"""Event files: what is in them, that TensorBoard reads it as it reads TensorFlow's own, and what happens when writing fails."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

from loops import testing
from loops.summaries import event_records, event_rows, projector
from loops.summaries.writer import SummaryWriter


def read_as_tensorboard(directory):
    accumulator = event_accumulator.EventAccumulator(str(directory), size_guidance={event_accumulator.TENSORS: 0})
    accumulator.Reload()
    return accumulator


def events_of(directory):
    (file,) = [os.path.join(directory, name) for name in os.listdir(directory)]
    return [tf.compat.v1.Event.FromString(record) for record in tf.data.TFRecordDataset(file).as_numpy_iterator()]


def test_every_step_is_one_event_with_all_tags_at_its_step_and_time(tmp_path):
    steps = np.array([1, 127, 128, 16_384, 2**40])
    with SummaryWriter(tmp_path) as writer:
        writer.scalars(steps, {"loss": steps / 7, "ü/accuracy": -steps.astype("float32")}, wall_times=steps + 0.5)
    events = events_of(tmp_path)[1:]
    assert [event.step for event in events] == steps.tolist()
    assert [event.wall_time for event in events] == (steps + 0.5).tolist()
    assert [[value.tag for value in event.summary.value] for event in events] == [["loss", "ü/accuracy"]] * 5
    read = testing.read_events(tmp_path)["."]
    assert read["loss"] == [(int(s), float(np.float32(s / 7))) for s in steps]
    assert read["ü/accuracy"] == [(int(s), float(np.float32(-s))) for s in steps]


def test_masked_values_and_steps_without_any_are_left_out(tmp_path):
    values = {
        "a": np.ma.masked_array([1.0, 2.0, 3.0, 4.0], [False, True, False, True]),
        "b": np.ma.masked_array([5.0, 6.0, 7.0, 8.0], [False, False, True, True]),
        "c": np.ma.masked_array([9.0, 9.0, 9.0, 9.0], [True, True, True, True]),
    }
    with SummaryWriter(tmp_path) as writer:
        writer.scalars([1, 2, 3, 4], values)
        writer.scalars([], {"a": []})
        writer.scalars([5], {})
    assert testing.read_events(tmp_path)["."] == {"a": [(1, 1.0), (3, 3.0)], "b": [(1, 5.0), (2, 6.0)]}
    assert [event.step for event in events_of(tmp_path)[1:]] == [1, 2, 3]


def test_nan_and_infinity_are_written_as_they_are(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.scalars([1, 2], {"loss": [np.nan, np.inf]})
    (_, first), (_, second) = testing.read_events(tmp_path)["."]["loss"]
    assert np.isnan(first) and second == np.inf


def write_with_tensorflow(directory, values, picture):
    with tf.summary.create_file_writer(str(directory)).as_default():
        tf.summary.scalar("loss", 0.25, step=3)
        tf.summary.histogram("weights", values, step=3)
        tf.summary.image("picture", picture, step=3)
        tf.summary.text("note", "# title", step=3)


def write_with_ours(directory, values, picture):
    with SummaryWriter(directory) as writer:
        writer.scalars([3], {"loss": [0.25]})
        writer.histogram("weights", values, 3)
        writer.image("picture", picture, 3)
        writer.text("note", "# title", 3)


def test_tensorboard_reads_the_same_as_from_tensorflow(tmp_path):
    rng = np.random.default_rng(0)
    values, picture = rng.normal(size=[40, 5]).astype("float32"), rng.random([2, 4, 6, 3]).astype("float32")
    write_with_tensorflow(tmp_path / "tf", values, picture)
    write_with_ours(tmp_path / "ours", values, picture)
    theirs, ours = read_as_tensorboard(tmp_path / "tf"), read_as_tensorboard(tmp_path / "ours")
    assert ours.Tags() == theirs.Tags()
    for tag in theirs.Tags()["tensors"]:
        expected, actual = theirs.SummaryMetadata(tag), ours.SummaryMetadata(tag)
        assert actual.plugin_data.plugin_name == expected.plugin_data.plugin_name
        assert actual.data_class == expected.data_class, tag
        (a,), (b,) = ours.Tensors(tag), theirs.Tensors(tag)
        assert a.step == b.step == 3
        a, b = tf.make_ndarray(a.tensor_proto), tf.make_ndarray(b.tensor_proto)
        assert a.dtype == b.dtype and a.shape == b.shape
        if tag == "picture":
            assert a[:2].tolist() == b[:2].tolist() == [b"6", b"4"]
            np.testing.assert_allclose(
                [tf.io.decode_png(png).numpy() for png in a[2:]], [tf.io.decode_png(png).numpy() for png in b[2:]], atol=1
            )
        else:
            np.testing.assert_array_equal(a, b)
    assert ours.file_version == theirs.file_version == 2.0


@pytest.mark.parametrize("values", [[], [3.0], [2.0, 2.0], [0, 1, 2, 3], np.linspace(-1, 1, 31), [True, False], np.float16([1, 2.5])])
def test_histograms_have_the_buckets_of_tensorflow(tmp_path, values):
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.histogram("h", tf.constant(values), step=0)
    ((_, expected),) = testing.read_events(tmp_path)["."]["h"]
    np.testing.assert_array_equal(event_records.histogram_buckets(values), expected)


def test_non_finite_values_are_not_counted_in_a_histogram():
    buckets = event_records.histogram_buckets([1.0, np.nan, 2.0, np.inf, -np.inf])
    assert buckets[:, 2].sum() == 2 and buckets[0, 0] == 1.0 and buckets[-1, 1] == 2.0


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (2, 4, 6, 1)])
def test_images_come_back_from_their_png(tmp_path, shape):
    picture = np.random.default_rng(0).integers(0, 256, shape).astype("uint8")
    with SummaryWriter(tmp_path) as writer:
        writer.image("p", picture, 1)
    ((_, (width, height, *files)),) = testing.read_events(tmp_path)["."]["p"]
    assert (width, height) == (b"6", b"4")
    decoded = np.stack([tf.io.decode_png(file).numpy() for file in files])
    np.testing.assert_array_equal(decoded.reshape(shape), picture)


def test_the_shape_of_an_image_is_checked_in_the_caller(tmp_path):
    with SummaryWriter(tmp_path) as writer, pytest.raises(ValueError, match=r"'p' has shape \[4, 4, 2\]"):
        writer.image("p", np.zeros([4, 4, 2]), 1)


def test_graphs_are_readable_by_tensorboard(tmp_path):
    function = tf.function(lambda x: x * 2.0).get_concrete_function(tf.TensorSpec([None]))
    with SummaryWriter(tmp_path) as writer:
        writer.graph(function.graph)
    assert "Mul" in {node.op for node in tf.compat.v1.GraphDef.FromString(read_as_tensorboard(tmp_path).Graph().SerializeToString()).node}


def test_flush_makes_everything_readable_while_the_writer_is_open(tmp_path):
    writer = SummaryWriter(tmp_path)
    for step in range(300):
        writer.scalars([step], {"loss": [step]})
    writer.flush()
    assert len(testing.read_events(tmp_path)["."]["loss"]) == 300
    writer.close()


def test_nothing_is_written_before_the_first_event(tmp_path):
    with SummaryWriter(tmp_path / "run") as writer:
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_two_writers_of_one_run_do_not_share_a_file(tmp_path):
    for step in (1, 2):
        with SummaryWriter(tmp_path) as writer:
            writer.scalars([step], {"loss": [0.0]})
    assert len(os.listdir(tmp_path)) == 2
    assert [step for step, _ in testing.read_events(tmp_path)["."]["loss"]] == [1, 2]


@pytest.mark.parametrize("ask", ["flush", "close", "next call"])
def test_an_error_of_the_background_thread_reaches_the_caller(tmp_path, ask):
    (tmp_path / "file").write_text("")
    writer = SummaryWriter(tmp_path / "file" / "run")
    writer.scalars([1], {"loss": [0.0]})
    with pytest.raises(RuntimeError, match="could not be written to"):
        if ask == "flush":
            writer.flush()
        elif ask == "close":
            writer.close()
        else:
            for _ in range(10_000):
                writer.scalars([1], {"loss": [0.0]})
    if ask != "close":
        with contextlib.suppress(RuntimeError):  # what followed the first error may have failed too
            writer.close()


def test_values_that_do_not_match_the_steps_are_named(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.scalars([1, 2], {"loss": [0.0]})
    with pytest.raises(RuntimeError, match="'loss' has 1 values for 2 steps"):
        writer.close()


def test_a_closed_writer_says_so(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(RuntimeError, match="is closed"):
        writer.scalars([1], {"loss": [0.0]})


def test_the_queue_is_bounded_and_keeps_order(tmp_path):
    gate, order = threading.Event(), []
    writer = SummaryWriter(tmp_path, max_queue=2)
    writer.submit(gate.wait)
    producer = threading.Thread(target=lambda: [writer.submit(lambda i=i: order.append(i)) for i in range(10)])
    producer.start()
    producer.join(0.2)
    assert producer.is_alive()  # blocked by the full queue
    gate.set()
    producer.join()
    writer.close()
    assert order == list(range(10))


def test_scalars_that_wait_together_are_serialized_together_and_keep_their_order(tmp_path, monkeypatch):
    serialized, gate = [], threading.Event()
    monkeypatch.setattr(event_rows, "_matrix", lambda *args, plain=event_rows._matrix: (serialized.append(args[3]), plain(*args))[1])
    with SummaryWriter(tmp_path) as writer:
        writer.submit(gate.wait)
        for epoch in range(20):
            writer.scalars([1000 + 2 * epoch, 1001 + 2 * epoch], {"batch_loss": [0.5, 0.25]})
            writer.scalars([epoch + 1], {"epoch_loss": [1.0], "epoch_mae": [2.0]})
            if epoch == 10:
                writer.text("note", "between", 11)
                gate.set()
    tags = [[value.tag for value in event.summary.value] for event in events_of(tmp_path)[1:]]
    of_epoch = [["batch_loss"], ["batch_loss"], ["epoch_loss", "epoch_mae"]]
    assert tags == [*(11 * of_epoch), ["note"], *(9 * of_epoch)]
    assert len(serialized) <= 8


def test_a_run_killed_while_writing_is_readable_up_to_there(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.scalars([1, 2, 3], {"loss": [1.0, 2.0, 3.0]})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert testing.read_events(tmp_path)["."]["loss"] == [(1, 1.0), (2, 2.0)]


def test_the_projector_plugin_serves_what_was_written(tmp_path):
    from tensorboard.plugins.projector import projector_plugin

    table = np.random.default_rng(0).normal(size=[5, 3]).astype("float32")
    projector.write(tmp_path, {"model/words: a/embeddings": projector.Embedding(table, "a\nb\nc\nd\ne\n")})
    configs, paths = projector_plugin.ProjectorPlugin._read_latest_config_files(None, [("train", str(tmp_path))])
    (embedding,) = configs["train"].embeddings
    assert embedding.tensor_name == "model/words: a/embeddings"
    read = projector_plugin._read_tensor_tsv_file(projector_plugin._rel_to_abs_asset_path(embedding.tensor_path, paths["train"]))
    np.testing.assert_allclose(read, table, rtol=1e-6)
    labels = projector_plugin._rel_to_abs_asset_path(embedding.metadata_path, paths["train"])
    assert pathlib.Path(labels).read_text() == "a\nb\nc\nd\ne\n"
