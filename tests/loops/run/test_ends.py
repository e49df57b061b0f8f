"""However a run ends, every hook gets its on_train_end, and what was learnt so far is there."""

import os
import signal

import pytest

import loops
from loops import hooks
from loops.run.workdir import RunFolder
from tests.loops import tiny


class Ends(hooks.Hook):
    def __init__(self):
        self.outcomes = []

    def on_train_end(self, loop):
        self.outcomes.append(loop.outcome)


class Raises(hooks.Hook):
    def __init__(self, method):
        def fail(*arguments):
            raise OSError(f"{method} failed")

        setattr(self, method, fail)


def loop_with(*given, **settings):
    return loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed(tiny.data(64), 16), given, compile="eager", **settings)


@pytest.fixture
def default_interrupts():
    """Python's own handler of SIGINT, in jobs too that a shell started in the background, which ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_reaching_the_target_is_finished_and_a_hooks_stop_is_stopped():
    for hook, outcome in (
        (hooks.LambdaHook(), "finished"),
        (hooks.LambdaHook(on_epoch_end=lambda loop, logs: loop.stop("enough")), "stopped"),
    ):
        end = Ends()
        loop = loop_with(end, hook)
        loop.run(epochs=2)
        assert end.outcomes == [loop.outcome] == [outcome]
    assert loop.stop_reason == "enough"
    assert loop.progress.step == 4


def test_ctrl_c_ends_after_the_call_in_progress_with_everything_in_the_workdir(tmp_path, default_interrupts):
    end = Ends()
    interrupt = hooks.LambdaHook(every="6 steps", on_window_end=lambda loop, window: os.kill(os.getpid(), signal.SIGINT))
    loop = loop_with(end, interrupt, workdir=tmp_path / "run")
    loop.run(epochs=1000)
    assert end.outcomes == [loop.outcome] == ["interrupted"]
    assert loop.progress.step == 6
    assert len(loop.history.epoch) == 1
    assert (tmp_path / "run" / "checkpoints" / "last.weights.h5").exists()
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fit_raises_the_interrupt_when_it_has_ended_cleanly(default_interrupts):
    import keras

    model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    end = Ends()
    interrupt = hooks.LambdaHook(every="2 steps", on_window_end=lambda loop, window: os.kill(os.getpid(), signal.SIGINT))
    x, _ = tiny.data(64)
    with pytest.raises(KeyboardInterrupt):
        loops.fit(model, x, x[:, :3], epochs=1000, verbose=0, hooks=[end, interrupt], compile="eager")
    assert end.outcomes == ["interrupted"]


@pytest.mark.parametrize("method", ["on_train_begin", "on_epoch_begin", "on_window_end", "on_epoch_end", "on_evaluate_end"])
def test_if_one_hook_fails_the_others_still_end(method):
    end = Ends()
    loop = loop_with(Raises(method), end, evaluate={"val": loops.ArrayFeed(tiny.data(16), 16)})
    with pytest.raises(OSError, match=f"{method} failed"):
        loop.run(epochs=1)
    assert end.outcomes == ["failed"]


def test_an_error_in_on_train_end_reaches_the_caller_after_all_others_ended():
    end = Ends()
    loop = loop_with(Raises("on_train_end"), end)
    with pytest.raises(OSError, match="on_train_end failed"):
        loop.run(epochs=1)
    assert len(end.outcomes) == 1
    assert loop.outcome == "failed"


def test_an_error_in_the_data_surfaces_and_hooks_end():
    class Broken(loops.ArrayFeed):
        def blocks(self, position):
            yield next(super().blocks(position))
            raise OSError("the disk is gone")

    feed = Broken(tiny.data(64), 16)
    feed.block_steps = 2
    end = Ends()
    loop = loops.TrainLoop(tiny.Classifier(), feed, [end], compile="eager")
    with pytest.raises(OSError, match="the disk is gone"):
        loop.run(epochs=1)
    assert end.outcomes == ["failed"]


def test_an_unfinished_epoch_ends_in_no_epoch_end():
    ended = []
    loop = loop_with(hooks.LambdaHook(on_epoch_end=lambda loop, logs: ended.append(loop.progress.epoch)))
    loop.run(steps=6)
    assert ended == [0]
    assert loop.progress.epoch == 1
    assert loop.history.epoch == [0]


def test_a_state_that_could_not_be_handed_over_is_saved_at_the_end(tmp_path, monkeypatch):
    tried, save = [], RunFolder.save

    def failing_first(folder, state, *more):
        tried.append(state.step)
        if len(tried) == 1:
            raise OSError("the disk is full")
        save(folder, state, *more)

    monkeypatch.setattr(RunFolder, "save", failing_first)
    loop = loops.TrainLoop(tiny.Classifier(), loops.ArrayFeed(tiny.data(64), 16), workdir=tmp_path / "run", compile="eager")
    with pytest.raises(loops.SaveError):  # which tells of the first try
        loop.run(epochs=1)
    assert tried == [4, 4]
    assert [path.name for path in (tmp_path / "run/snapshots").iterdir() if path.name.isdigit()] == ["4"]
