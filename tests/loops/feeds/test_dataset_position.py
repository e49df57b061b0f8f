"""A `tf.data` pipeline goes on bit for bit after a kill at any position, in a dataset built anew: this pass and all passes after it."""

from __future__ import annotations

import json
import os
import pathlib
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.feeds import Position, dataset_position
from loops.feeds.from_keras import feed_for
from loops.feeds.reader import open_reader
from tests.loops.feeds.pipelines import ALWAYS_SAVED, NEVER_SAVED, PIPELINES, generated, numbers

PASSES = 3
WAYS = {"a pass an epoch": ("graph", False), "passes continued": ("graph", True), "blocks": ("xla", False)}  # (mode, continuing)


class Reader:
    """Drives a reader as the loop does, one batch a step."""

    def __init__(self, feed, mode, continuing, position=None, saved=None, passes=None):
        self.position = position or Position()
        self.reader = open_reader(
            feed, self.position, mode, continuing=continuing, passes=passes, saved=saved, resuming=position is not None
        )

    def end_pass(self):
        self.position = Position(self.position.pass_index + 1)

    def step(self):
        """The next batch; None if the pass ended instead."""
        if not self.reader.ready():
            return self.end_pass()
        known = self.reader.available
        if isinstance(self.reader.source, loops.feeds.Block):
            batch = tf.nest.map_structure(lambda t: t[self.reader.start], self.reader.source.tensors)
        else:
            batch = next(self.reader.source, None)
        if batch is None:
            self.reader.end_pass()
            return self.end_pass()
        self.reader.consumed(1)
        self.position = Position(self.position.pass_index, self.position.batch + 1)
        if known is not None and self.reader.available == 0 and not self.reader.ready():
            self.end_pass()
        return tuple(np.asarray(leaf).tobytes() for leaf in tf.nest.flatten(batch))

    def to_the_end(self, passes):
        """All batches up to the end of pass `passes`, each with the position after it."""
        found = []
        while self.position.pass_index < passes:
            batch = self.step()
            if batch is not None:
                found.append(batch)
        self.reader.close()
        return found


def undisturbed(make, mode, continuing):
    return Reader(loops.DatasetFeed(make()), mode, continuing, passes=PASSES).to_the_end(PASSES)


def with_saves(make, mode, continuing, folder):
    """The batches of a run that saves wherever it can, and its saves: (position, batches seen by then, where it was saved or None)."""
    reader, seen, saves = Reader(loops.DatasetFeed(make()), mode, continuing, passes=PASSES), [], []
    while reader.position.pass_index < PASSES:
        at = folder / f"{len(saves)}"
        at.mkdir()
        written = reader.reader.save(at)
        assert written or not list(at.iterdir())
        if not saves or saves[-1][0] != reader.position:
            saves.append((reader.position, len(seen), at if written else None))
        else:
            at.rmdir() if not written else None
        batch = reader.step()
        if batch is not None:
            seen.append(batch)
    reader.reader.close()
    return seen, saves


def drawn(saves, mode, seed):
    """Some positions: an end of a pass, the last batch of a pass, one anywhere; all if the environment has EVERY_POSITION."""
    if os.environ.get("EVERY_POSITION"):
        return saves
    rng = random.Random(seed)
    ends = [s for s in saves[1:] if s[0].batch == 0]
    last = [a for a, b in zip(saves, saves[1:], strict=False) if b[0].batch == 0]
    return [rng.choice(ends), rng.choice(saves), *([rng.choice(last)] if mode == "graph" else [])]


def pipelines_and_ways():
    """Every pipeline in one of the ways, each way with a third of them; all pairs in the matrix."""
    for i, name in enumerate(PIPELINES):
        of_every_run = "a pass an epoch" if name in NEVER_SAVED | ALWAYS_SAVED else list(WAYS)[i % len(WAYS)]
        for way in WAYS:
            yield pytest.param(name, way, marks=[] if way == of_every_run else [pytest.mark.matrix])


@pytest.mark.parametrize(("name", "way"), pipelines_and_ways())
def test_a_killed_pipeline_goes_on_with_the_same_batches(name, way, tmp_path):
    mode, continuing = WAYS[way]
    make = PIPELINES[name]
    expected = undisturbed(make, mode, continuing)
    seen, saves = with_saves(make, mode, continuing, tmp_path)
    assert seen == expected, "saving disturbed the run"
    for position, count, saved in drawn(saves, mode, f"{name} {mode} {continuing}"):
        found = Reader(loops.DatasetFeed(make()), mode, continuing, position, saved, PASSES - position.pass_index).to_the_end(PASSES)
        assert found == expected[count:], f"after {position} ({'saved' if saved else 'counted'})"
    if mode == "graph":
        done = [saved is not None for position, _, saved in saves if position != Position()]
        assert any(done) == (name not in NEVER_SAVED)
        assert all(done) or name not in ALWAYS_SAVED


FRESH = """
import json, pathlib, sys
import tensorflow as tf
import loops
from loops.feeds import Position
from tests.loops.feeds.pipelines import PIPELINES
from tests.loops.feeds.test_dataset_position import PASSES, Reader
tf.random.set_seed(3)
for name, pass_index, batch, saved in json.load(open(sys.argv[1])):
    saved = pathlib.Path(saved) if saved else None
    reader = Reader(loops.DatasetFeed(PIPELINES[name]()), "graph", False, Position(pass_index, batch), saved)
    print("FOUND", json.dumps([leaf.hex() for b in reader.to_the_end(PASSES) for leaf in b]))
"""


def test_a_fresh_process_goes_on_with_the_same_batches(tmp_path):
    names = ["shuffle, parallel map, prefetch", "cache, shuffle", "filter", "shuffle, batch, repeat", "generator", "shuffle of a shuffle"]
    cases, expected = [], []
    tf.random.set_seed(3)  # which another test may have done before in this process, and which tf.data mixes into the seeds of pipelines
    for name in names:
        folder = tmp_path / str(len(cases))
        folder.mkdir()
        seen, saves = with_saves(PIPELINES[name], "graph", False, folder)
        for position, count, saved in (saves[len(saves) // 2 + 1], next(s for s in saves[1:] if s[0].batch == 0)):
            cases.append([name, position.pass_index, position.batch, str(saved) if saved else None])
            expected.append([leaf.hex() for batch in seen[count:] for leaf in batch])
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "cases.json")],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[3],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line.removeprefix("FOUND ")) for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert found == expected


class Squares(keras.utils.PyDataset):
    """Orders its batches anew at every end of an epoch, from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.calls, self.rng, self.order = [], np.random.default_rng(3), np.arange(5)

    @property
    def num_batches(self):
        return 5

    def __getitem__(self, index):
        return np.full([2, 1], self.order[index], "float32"), np.full([2, 1], index, "float32")

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")
        self.rng.shuffle(self.order)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_pydataset_hears_of_the_epochs_that_were_done_before(mode):
    data = Squares()
    expected = Reader(feed_for(data), mode, False, passes=PASSES).to_the_end(PASSES)
    for position in (Position(), Position(1), Position(2), Position(0, 3), Position(2, 4)):
        again = Squares()
        reader = Reader(feed_for(again), mode, False, position, passes=PASSES - position.pass_index)
        assert reader.to_the_end(PASSES) == expected[5 * position.pass_index + position.batch :], position
        assert again.calls == data.calls == ["end", *["begin", "end"] * PASSES]


def test_a_python_generator_goes_on_by_counting():
    def rows():
        return ((np.full([2, 1], i, "float32"), np.full([2, 1], -i, "float32")) for i in range(9))

    reader = Reader(feed_for(rows()), "graph", True)
    expected = [reader.step() for _ in range(9)]
    resumed = Reader(feed_for(rows()), "graph", True, Position(0, 4))
    assert [resumed.step() for _ in range(5)] == expected[4:]


def test_skipping_is_announced_in_one_line_and_restoring_is_not(tmp_path, capsys):
    feed = loops.DatasetFeed(generated().batch(3))
    feed.restored_iterator(Position(1, 4), None, continuing=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Resuming: reading and dropping 4 batches, because TensorFlow cannot save the position in this pipeline")
    assert "from_generator" in line
    feed = loops.DatasetFeed(PIPELINES["shuffle, repeat"]())
    feed.restored_iterator(Position(2, 1), None, continuing=False)
    assert "dropping 2 whole passes and 1 batches, because the position was not saved" in capsys.readouterr().out
    make = PIPELINES["shuffle"]
    reader = open_reader(loops.DatasetFeed(make()), Position(), "graph")
    assert reader.ready() and next(reader.source) is not None and reader.save(tmp_path)
    loops.DatasetFeed(make()).restored_iterator(Position(0, 1), tmp_path, continuing=False)
    loops.DatasetFeed(make()).restored_iterator(Position(3, 0), None, continuing=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_run_that_was_killed_before_its_first_step_begins_anew(mode, tmp_path):
    make = PIPELINES["shuffle"]
    expected = undisturbed(make, mode, False)
    first = open_reader(loops.DatasetFeed(make()), Position(), mode, passes=1)
    assert not first.save(tmp_path)
    first.close()
    assert Reader(loops.DatasetFeed(make()), mode, False, Position(), passes=PASSES).to_the_end(PASSES) == expected


def test_passes_that_this_process_read_are_not_read_again(capsys):
    make = PIPELINES["shuffle, repeat"]
    expected = Reader(loops.DatasetFeed(make()), "xla", False, passes=PASSES).to_the_end(PASSES)
    feed, found = loops.DatasetFeed(make()), []
    for index in range(PASSES):
        for block in feed.blocks(Position(index)):
            found += [(block.tensors[i].numpy().tobytes(),) for i in range(block.n)]
    assert found == expected
    assert capsys.readouterr().out == ""


def test_the_same_feed_goes_back_to_what_it_saved(tmp_path):
    """As a rollback does, within one process."""
    feed = loops.DatasetFeed(PIPELINES["shuffle, parallel map, prefetch"]())
    reader = Reader(feed, "graph", False)
    seen = [reader.step() for _ in range(9)]
    position = reader.position
    assert reader.reader.save(tmp_path)
    expected = reader.to_the_end(PASSES)
    assert len(seen) == 9 and Reader(feed, "graph", False, position, tmp_path).to_the_end(PASSES) == expected
    with pytest.raises(ValueError, match="cannot go back to batch 2 of pass 1"):
        feed.restored_iterator(Position(1, 2), None, continuing=False)


def test_saving_again_before_anything_was_read_loses_nothing(tmp_path):
    make = PIPELINES["cache, shuffle"]
    seen, saves = with_saves(make, "graph", False, tmp_path)
    for position, count, saved in [s for s in saves if s[2] is not None][:9]:
        again = Reader(loops.DatasetFeed(make()), "graph", False, position, saved)
        at = tmp_path / f"again {position.pass_index} {position.batch}"
        written = again.reader.save(at)
        resumed = Reader(loops.DatasetFeed(make()), "graph", False, position, at if written else None)
        assert resumed.to_the_end(PASSES) == seen[count:], position


def test_data_that_ends_too_early_is_refused():
    with pytest.raises(ValueError, match="ended before batch 9 of pass 0"):
        loops.DatasetFeed(numbers().batch(3)).restored_iterator(Position(0, 9), None, continuing=False)


def test_a_state_that_does_not_fit_gets_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no saved position"):
        dataset_position.restore(iter(numbers()), tmp_path)
    assert dataset_position.save(iter(numbers().batch(3)), tmp_path)
    with pytest.raises(ValueError, match="does not fit this pipeline"):
        dataset_position.restore(iter(numbers().shuffle(4, seed=1).batch(3)), tmp_path)
    (data,) = tmp_path.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(ValueError, match="does not fit this pipeline, or is damaged"):
        dataset_position.restore(iter(numbers().batch(3)), tmp_path)


def test_a_position_that_cannot_be_saved_leaves_nothing_behind(tmp_path):
    assert not dataset_position.save(iter(generated()), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not dataset_position.save(numbers().as_numpy_iterator(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_written_is_an_error_not_a_refusal(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((tf.errors.OpError, OSError)):
        dataset_position.save(iter(numbers()), tmp_path / "file")
