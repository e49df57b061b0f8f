"""Records of scalars made all at once are those that TensorFlow makes and checks one by one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.summaries import event_rows


def written_by_tensorflow(path, steps, values, times):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i, step in enumerate(steps):
            summary = tf.compat.v1.Summary()
            for tag, column in values.items():
                if not np.ma.getmaskarray(column)[i]:
                    tensor = tf.compat.v1.make_tensor_proto(np.float32(np.ma.getdata(column)[i]))
                    tensor.ClearField("float_val")
                    tensor.tensor_content = np.float32(np.ma.getdata(column)[i]).tobytes()
                    value = summary.value.add(tag=tag, tensor=tensor)
                    value.metadata.plugin_data.plugin_name = "scalars"
            if summary.value:
                writer.write(tf.compat.v1.Event(wall_time=times[i], step=step, summary=summary).SerializeToString())
    return path.read_bytes()


NUMBERS = st.floats(width=32)
EDGES = [n for d in range(1, 10) for n in (2 ** (7 * d) - 1, 2 ** (7 * d)) if n < 2**63]
STEPS = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 300) | st.sampled_from(EDGES)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    steps=st.lists(STEPS, min_size=1, max_size=6),
    tags=st.lists(st.text(max_size=9), max_size=3, unique=True),
)
def test_the_bytes_are_those_of_one_message_and_one_write_for_each_step(tmp_path_factory, data, steps, tags):
    several = {"min_size": len(steps), "max_size": len(steps)}
    times = data.draw(st.lists(st.floats(1, 2e9), **several))
    values = {
        tag: np.ma.masked_array(np.float32(data.draw(st.lists(NUMBERS, **several))), data.draw(st.lists(st.booleans(), **several)))
        for tag in tags
    }
    path = tmp_path_factory.mktemp("events") / "events"
    assert event_rows.records(steps, values, times) == written_by_tensorflow(path, steps, values, times)


def test_parts_that_are_serialized_together_have_the_bytes_that_each_has_alone():
    absent = np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False])
    parts = [
        ([126, 127, 128], {"loss": [0.5, 0.25, 0.125]}, 1.0),  # the last number is longer
        ([], {"loss": []}, 1.0),
        ([7], {"mae": [1.0], "loss": [2.0]}, 2.0),
        ([200, 201, 202], {"loss": absent}, [1.0, 2.0, 3.0]),
        ([9], {}, 2.0),
        ([8], {"mae": [3.0], "loss": [4.0]}, 2.5),
    ]
    together = event_rows.records_together([event_rows.Scalars(*part) for part in parts])
    assert together == [event_rows.records(*part) for part in parts]
    assert [bool(records) for records in together] == [True, False, True, True, False, True]


@pytest.mark.parametrize("damaged", [12, -5, -1])
def test_a_byte_that_was_changed_does_not_pass_the_checksum(tmp_path, damaged):
    content = bytearray(event_rows.records([1, 2, 3], {"loss": [0.5, 0.25, 0.125]}, 1.0))
    (tmp_path / "whole").write_bytes(content)
    assert len(list(tf.data.TFRecordDataset(str(tmp_path / "whole")))) == 3
    content[damaged] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(tf.errors.DataLossError):
        list(tf.data.TFRecordDataset(str(tmp_path / "damaged")))


def test_several_threads_that_begin_at_once_write_right_checksums(tmp_path):
    for turn in range(20):
        event_rows._template.cache_clear()
        tags = [f"{'x' * length}{turn}" for length in (3, 40, 90, 150)]
        start = threading.Barrier(len(tags))
        made = {}

        def make(tag, made=made, start=start):
            start.wait()
            made[tag] = event_rows.records([1, 2], {tag: [0.5, 0.25]}, 1.0)

        threads = [threading.Thread(target=make, args=[tag]) for tag in tags]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        (tmp_path / "events").write_bytes(b"".join(made.values()))
        assert len(list(tf.data.TFRecordDataset(str(tmp_path / "events")))) == 2 * len(tags)
