"""`outcome.json` says how a run ended; a run in progress, or one that was killed, has none."""

from __future__ import annotations

import pytest

import loops
from loops.run import outcome_file
from tests.loops import tiny


def loop_of(workdir, *hooks, **settings):
    return loops.TrainLoop(tiny.Classifier(), tiny.feed_of("array", *tiny.data(64)), hooks, workdir=workdir, compile="graph", **settings)


def ended(workdir):
    return [outcome_file.read(workdir).get(name) for name in ("outcome", "reason", "epochs")]


def test_it_says_how_the_last_process_ended(tmp_path):
    def fail(loop, logs):
        during.append(outcome_file.read(tmp_path))
        raise RuntimeError("no more of this\nsecond line")

    during = []
    loop = loop_of(tmp_path)
    loop.run(epochs=1)
    assert ended(tmp_path) == ["finished", None, 1]
    assert outcome_file.read(tmp_path)["step"] == loop.progress.step
    with pytest.raises(RuntimeError, match="no more"):
        loop_of(tmp_path, loops.hooks.LambdaHook(on_epoch_end=fail)).run(epochs=3)
    assert during == [{}]  # what a killed process would leave
    assert ended(tmp_path) == ["failed", "no more of this", 2]
    with pytest.raises(loops.MismatchError):  # a run that is refused did not go on
        loop_of(tmp_path, seed=1).run(epochs=3)
    assert ended(tmp_path) == ["failed", "no more of this", 2]
    loop = loop_of(tmp_path, loops.hooks.LambdaHook(on_epoch_end=lambda loop, logs: loop.stop("enough")))
    loop.run(epochs=5)
    assert ended(tmp_path)[:2] == ["stopped", "enough"]
    loop.save()  # between two runs
    assert ended(tmp_path)[:2] == ["stopped", "enough"]
    assert outcome_file.read(tmp_path / "nowhere") == {}
