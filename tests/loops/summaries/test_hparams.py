"""Runs with a config appear in TensorBoard's HParams dashboard, once, however often they were killed."""

from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

import loops
from tests.loops import tiny

CONFIG = {"optimizer": {"name": "sgd", "rate": 0.5}, "hidden": [3, 4], "deep": True, "clip": None, "epochs": 2}


def loop_of(workdir, *hooks):
    feed = tiny.feed_of("array", *tiny.data(64))
    return loops.TrainLoop(tiny.Classifier(), feed, hooks, workdir=workdir, compile="graph", config=CONFIG)


def written(workdir):
    """Tag -> the contents that the dashboard reads, and the text of the config, as TensorBoard loads them."""
    found = {}
    for path in sorted(pathlib.Path(workdir).glob("events*")):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                content = value.metadata.plugin_data.content
                if value.metadata.plugin_data.plugin_name == "hparams":
                    found.setdefault(value.tag, []).append(plugin_data_pb2.HParamsPluginData.FromString(content))
                else:
                    found.setdefault(value.tag, []).append(tf.make_ndarray(value.tensor).item().decode())
    return found


def test_a_run_says_what_it_was_given_and_how_it_ended(tmp_path):
    loop_of(tmp_path).run(epochs=1)
    found = written(tmp_path)
    start = found[metadata.SESSION_START_INFO_TAG][0].session_start_info
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert values == {"optimizer.name": "sgd", "optimizer.rate": 0.5, "hidden": "[3, 4]", "deep": True, "epochs": 2.0}
    assert found[metadata.SESSION_END_INFO_TAG][0].session_end_info.status == api_pb2.STATUS_SUCCESS
    assert '"rate": 0.5' in found["config"][0]
    loop_of(tmp_path).run(epochs=2)
    assert {tag: len(contents) for tag, contents in written(tmp_path).items()} == dict.fromkeys(found, 1)


def test_a_run_that_failed_says_so_and_one_that_goes_on_takes_it_back(tmp_path):
    def fail(loop, logs):
        if loop.progress.epoch == 1:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        loop_of(tmp_path, loops.hooks.LambdaHook(on_epoch_end=fail)).run(epochs=3)
    assert written(tmp_path)[metadata.SESSION_END_INFO_TAG][0].session_end_info.status == api_pb2.STATUS_FAILURE
    loop_of(tmp_path).run(epochs=3)
    (end,) = written(tmp_path)[metadata.SESSION_END_INFO_TAG]
    assert end.session_end_info.status == api_pb2.STATUS_SUCCESS


def test_a_run_without_a_config_writes_none(tmp_path):
    loops.TrainLoop(tiny.Classifier(), tiny.feed_of("array", *tiny.data(64)), workdir=tmp_path, compile="graph").run(epochs=1)
    assert written(tmp_path) == {}
