"""Records of any length are those that TensorFlow writes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from loops.summaries.records import record


@pytest.mark.parametrize("length", [0, 1, 255, 4095, 4096, 4097, 70_000, 300_001])
def test_the_bytes_are_those_that_tensorflow_writes(tmp_path, length):
    contents = [np.random.default_rng(length).bytes(length), bytes(length), b"\xff" * length]
    with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
        for content in contents:
            writer.write(content)
    assert b"".join(map(record, contents)) == (tmp_path / "records").read_bytes()
