"""Carrying a run on: what it refuses, what it says, and what happens when the disk or the clock does not play along."""

import errno
import itertools
import os
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops import hooks
from loops.feeds.from_keras import feed_for
from loops.run import signals
from loops.snapshots.store import SnapshotStore
from tests.loops import tiny
from tests.loops.sampling import sample

BATCH = 16


def array_feed(**arguments):
    return loops.ArrayFeed(tiny.data(100), **{"batch_size": BATCH, **arguments})


def make(workdir, task=None, feed=None, chosen=(), **arguments):
    return loops.TrainLoop(task or tiny.Classifier(), feed or array_feed(), chosen, workdir=workdir, **arguments)


def make_eager(workdir, *given, **arguments):
    """A loop for what does not depend on how steps are compiled: it needs no trace. By itself without Adam, half of an eager step."""
    task = given[0] if given else tiny.Classifier(keras.optimizers.SGD(0.05, momentum=0.9))
    return make(workdir, task, *given[1:], compile="eager", **arguments)


def steps_saved(workdir):
    return SnapshotStore(workdir / "snapshots").steps()


# What may differ, and what may not.


class Wider(tiny.Classifier):
    def __init__(self):
        super().__init__()
        self.model = keras.Sequential([keras.Input([6]), keras.layers.Dense(7, "tanh"), keras.layers.Dense(3, "softmax")])


class Deeper(tiny.Classifier):
    def __init__(self):
        super().__init__()
        dense = keras.layers.Dense
        self.model = keras.Sequential([keras.Input([6]), dense(5, "tanh"), dense(5, "tanh"), dense(3, "softmax")])


REFUSED = {
    "batch size": (lambda: {"feed": array_feed(batch_size=20)}, r"data.batch_size was 16 and is 20 now"),
    "data length": (lambda: {"feed": loops.ArrayFeed(tiny.data(90), BATCH)}, r"data.examples was 100 and is 90 now"),
    "data order": (lambda: {"feed": array_feed(shuffle=True)}, r"data.shuffle was False and is True now"),
    "data type": (lambda: {"feed": loops.DatasetFeed(tf.data.Dataset.from_tensor_slices(tiny.data(100)).batch(BATCH))}, r"data\."),
    "seed": (lambda: {"seed": 1}, r"seed was 0 and is 1 now"),
    "epoch length": (lambda: {"steps_per_epoch": 3}, r"steps_per_epoch was None and is 3 now"),
    "mode": (lambda: {"compile": "eager"}, r"mode was graph and is eager now"),
    "optimizer": (lambda: {"task": tiny.Classifier(keras.optimizers.SGD(0.05))}, r"optimizer.optimizer.class was Adam and is SGD now"),
    "shape": (lambda: {"task": Wider()}, r"the model variable \S*kernel is \[6, 7\] float32 now and was \[6, 5\] float32"),
    "other values": (
        lambda: {"feed": loops.ArrayFeed((tiny.data(100)[0] + 1, 2 - tiny.data(100)[1]), BATCH)},
        r"the data is other data than .* what differs: inputs, labels \(part 1 of the batch\)\. Give what it was",
    ),
    "class weights": (lambda: {"feed": array_feed(class_weight={1: 2.0})}, r"data.class_weight was None and is \{1: 2.0\} now"),
    "structure": (lambda: {"task": Deeper()}, r"is \[5, 5\] float32 now and was \[5, 3\] float32"),
}


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved") / "run"
    make(workdir).run(epochs=1)
    return workdir


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_change_the_numbers_is_refused_and_named(what, saved_run):
    arguments, message = REFUSED[what]
    before = {path: path.stat().st_mtime_ns for path in saved_run.rglob("*") if path.name != ".lock"}
    with pytest.raises(loops.MismatchError, match=message) as raised:
        make(saved_run, **arguments()).run(epochs=2)
    assert "\n" not in str(raised.value)
    assert {path: path.stat().st_mtime_ns for path in saved_run.rglob("*") if path.name != ".lock"} == before, "nothing was touched"


def test_what_may_change_is_announced(tmp_path, capsys):
    make_eager(tmp_path, tiny.Classifier(keras.optimizers.Adam(0.05)), chosen=[hooks.LambdaHook()]).run(epochs=1)
    loop = make_eager(
        tmp_path, tiny.Classifier(keras.optimizers.Adam(0.2, beta_1=0.8)), chosen=[hooks.EarlyStopping("loss", patience=5)], clip=1.0
    )
    loop.run(epochs=2)
    said = capsys.readouterr().out
    for note in (
        "learning rate was given as 0.2", "beta_1 was 0.9 and is 0.8", "clip was None and is", "new hooks begin here: EarlyStopping",
        "hooks that are not there any more: LambdaHook",
    ):  # fmt: skip
        assert note in said
    assert float(loop.learning_rate) == pytest.approx(0.05)


def test_a_run_that_saved_nothing_yet_begins_anew(tmp_path, capsys):
    class Fail(hooks.Hook):
        def on_window_end(self, loop, window):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        make_eager(tmp_path, chosen=[Fail()]).run(epochs=1)
    assert not steps_saved(tmp_path)
    loop = make_eager(tmp_path)
    loop.run(epochs=1)
    assert "saved nothing yet; it begins anew" in capsys.readouterr().out
    assert loop.history.epoch == [0]


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"is used already \(it holds thesis.tex\); give a new one, or delete it\."):
        make(tmp_path)


def test_a_stopped_run_stays_stopped(tmp_path, capsys):
    def chosen():
        return [hooks.EarlyStopping("loss", patience=1, min_delta=100.0)]

    first = make_eager(tmp_path, chosen=chosen())
    first.run(epochs=10)
    assert first.outcome == "stopped" and first.history.epoch == [0, 1]
    again = make_eager(tmp_path, chosen=chosen())
    assert again.run(epochs=20).history == first.history.history
    assert again.outcome == "stopped"
    assert "The run is complete (EarlyStopping" in capsys.readouterr().out


def test_a_damaged_snapshot_is_passed_over_and_kept(tmp_path, capsys):
    whole = make_eager(tmp_path / "whole")
    whole.run(epochs=3)
    make_eager(tmp_path / "run", chosen=[hooks.Snapshot("1 epoch", keep_last=3)]).run(epochs=2)
    newest = tmp_path / "run" / "snapshots" / str(steps_saved(tmp_path / "run")[-1]) / "tensors.bin"
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    loop = make_eager(tmp_path / "run")
    loop.run(epochs=3)
    assert "is damaged" in capsys.readouterr().out
    assert (tmp_path / "run" / "snapshots" / "damaged-14").exists()
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(whole.task))


class Batches(keras.utils.PyDataset):
    """In another order in every epoch, from a seed of its own."""

    def __init__(self):
        super().__init__()
        self.epoch = 0
        self.on_epoch_end()

    def __len__(self):
        return 6

    def __getitem__(self, index):
        x, y = tiny.data(100)
        rows = self.order[BATCH * index : BATCH * (index + 1)]
        return x[rows], y[rows]

    def on_epoch_end(self):
        self.order = np.random.default_rng(self.epoch).permutation(100)
        self.epoch += 1


# In an epoch, at the end of one, in the next one, and after two; each run goes on from the one before.
@pytest.mark.parametrize(("compile", "ends"), [("graph", (4, 6, 8, 15)), pytest.param("xla", (8,), marks=pytest.mark.matrix)])
def test_a_pydataset_is_read_on_where_it_was(compile, ends, tmp_path, capsys):
    whole = make(tmp_path / "whole", feed=feed_for(Batches()), compile=compile)
    whole.run(epochs=3)
    for steps in ends:
        make(tmp_path / "run", feed=feed_for(Batches()), compile=compile).run(steps=steps)
    loop = make(tmp_path / "run", feed=feed_for(Batches()), compile=compile)
    loop.run(epochs=3)
    tiny.assert_same_bits(tiny.state(loop.task), tiny.state(whole.task))
    assert loop.history.history == whole.history.history
    assert "reading and dropping" not in capsys.readouterr().out  # its batches have an index


@pytest.fixture(scope="module")
def two_passes():
    """State and history of a run over whole blocks that was not interrupted. All kinds of feed give these bits."""
    loop = make(None, feed=tiny.feed_of("array", *tiny.data(96)))
    loop.run(epochs=2)
    return tiny.state(loop.task), loop.history.history


@pytest.mark.parametrize("kind", sample(["array", "known", "unknown"], "array", "unknown"))
def test_a_run_that_ended_with_the_last_step_of_a_pass_is_carried_on(kind, two_passes, tmp_path):
    make(tmp_path / "run", feed=tiny.feed_of(kind, *tiny.data(96))).run(steps=6)
    loop = make(tmp_path / "run", feed=tiny.feed_of(kind, *tiny.data(96)))
    loop.run(epochs=2)
    state, history = two_passes
    tiny.assert_same_bits(tiny.state(loop.task), state)
    assert loop.history.history == history


# What would break exactness, said beforehand.


class Drawing(tiny.Classifier):
    def train_step(self, batch):
        x, y = batch
        return super().train_step((x + tf.random.normal(tf.shape(x)), y))


def test_random_ops_with_hidden_state_are_refused_where_a_run_is_saved(tmp_path):
    with pytest.raises(ValueError, match=r"self\.seed\(\)"):
        make(tmp_path / "run", Drawing()).run(steps=1)
    make(None, Drawing()).run(steps=1)


def test_a_pipeline_that_will_not_come_again_is_named(tmp_path, capsys):
    dataset = tf.data.Dataset.from_tensor_slices(tiny.data(100)).batch(BATCH)
    hasty = dataset.map(lambda x, y: (x, y), num_parallel_calls=2, deterministic=False)
    make(tmp_path, feed=loops.DatasetFeed(hasty)).run(steps=1)
    assert "Note on the data: " in capsys.readouterr().out


# Disks and signals.


def failing(monkeypatch, works):
    """Lets the disk be full as long as `works()` is False."""
    real = os.fsync

    def fsync(descriptor):
        if not works():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_is_said_once_training_goes_on_and_later_snapshots_are_tried(tmp_path, monkeypatch, capsys):
    done = []

    class Count(hooks.Hook):
        phase = hooks.Phase.DECIDE

        def on_epoch_end(self, loop, logs):
            done.append(loop.progress.epoch)

    failing(monkeypatch, lambda: len(done) in (1, 4))
    loop = make_eager(tmp_path, chosen=[Count(), hooks.Snapshot("1 epoch", keep_last=10)])
    loop.run(epochs=4)
    said = capsys.readouterr().out
    assert said.count("No space left on device") == 1 and "can be saved again" in said
    assert loop.outcome == "finished" and steps_saved(tmp_path)[-1] == 28


def test_a_run_whose_last_state_could_not_be_saved_ends_with_an_error(tmp_path, monkeypatch):
    failing(monkeypatch, lambda: False)
    loop = make_eager(tmp_path)
    with pytest.raises(loops.SaveError, match="step 14 could not be saved .*No space left"):
        loop.run(epochs=2)
    assert loop.history.epoch == [0, 1], "nothing of what was learnt is lost"


def test_records_that_cannot_be_written_do_not_end_a_run_either(tmp_path, capsys):
    class FullDisk(hooks.Hook):
        phase = hooks.Phase.RECORD

        def on_epoch_end(self, loop, logs):
            raise OSError(errno.ENOSPC, "No space left on device")

    loop = make_eager(tmp_path, chosen=[FullDisk()])
    with pytest.raises(loops.SaveError, match="FullDisk could not be written"):
        loop.run(epochs=3)
    assert loop.progress.epoch == 2
    assert capsys.readouterr().out.count("Training goes on.") == 1
    with pytest.raises(OSError, match="No space left"):
        make_eager(None, chosen=[FullDisk()]).run(epochs=3)


def test_sigterm_saves_and_asks_to_be_run_again(tmp_path):
    class Terminate(hooks.Hook):
        every = "4 steps"

        def on_window_end(self, loop, window):
            if loop.progress.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    loop = make_eager(tmp_path, chosen=[Terminate()])
    with pytest.raises(loops.Preempted) as raised:
        loop.run(epochs=3)
    assert raised.value.code == 75 and loop.outcome == "interrupted"
    assert steps_saved(tmp_path) == [4]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_end_that_does_not_come_about_is_forced(monkeypatch, capsys):
    ended = threading.Event()
    codes = []

    def leave(code):
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    with signals.Interrupts(grace=0.05) as context:
        os.kill(os.getpid(), signal.SIGTERM)
        assert context.requested and context.preempted
        assert ended.wait(60)
    assert codes == [signals.EXIT_PREEMPTED]
    assert "the last snapshot stands" in capsys.readouterr().err


def test_an_end_in_time_is_not_forced(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("the process was ended"))
    others = set(threading.enumerate())
    with signals.Interrupts(grace=3600):
        os.kill(os.getpid(), signal.SIGTERM)
        (timer,) = set(threading.enumerate()) - others
    timer.join(60)
    assert not timer.is_alive(), "nobody is left who would end the process"


def test_save_is_for_hooks_of_a_loop_with_a_workdir(tmp_path):
    class Save(hooks.Hook):
        every = "3 steps"
        phase = hooks.Phase.EVALUATE

        def on_window_end(self, loop, window):
            loop.save()

    make_eager(tmp_path, chosen=[Save(), hooks.Snapshot("100 epochs", keep_last=9)]).run(steps=7)
    assert steps_saved(tmp_path) == [3, 6, 7]
    with pytest.raises(ValueError, match="give TrainLoop or fit a `workdir`"):
        make_eager(None, chosen=[Save()]).run(steps=7)
    with pytest.raises(ValueError, match="hooks.Snapshot has nowhere to save to"):
        make_eager(None, chosen=[hooks.Snapshot()]).run(steps=1)


def test_save_between_two_runs_keeps_what_was_changed_there(tmp_path):
    loop = make_eager(tmp_path)
    with pytest.raises(RuntimeError, match="before the first run"):
        loop.save()
    loop.run(epochs=1)
    loop.learning_rate = 0.003
    loop.save()
    again = make_eager(tmp_path)
    again.run(epochs=1)
    assert float(again.learning_rate) == pytest.approx(0.003)


def test_a_second_run_after_a_refusal_is_refused_again(saved_run):
    loop = make(saved_run, seed=1)
    for _ in range(2):
        with pytest.raises(loops.MismatchError, match="seed was 0 and is 1 now"):
            loop.run(epochs=2)


class Moody(tiny.Classifier):
    def train_step(self, batch):
        logs = super().train_step(batch)
        return {**logs, "mood": tf.random.normal([])}


def test_a_step_that_cannot_resume_is_refused_again(tmp_path):
    loop = make(tmp_path, Moody())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"self\.seed"):
            loop.run(epochs=1)


def test_a_new_schedule_holds_and_is_said(tmp_path, capsys):
    def task(rate):
        return tiny.Classifier(keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(rate, 10, 0.9)))

    make_eager(tmp_path, task(0.05)).run(epochs=1)
    loop = make_eager(tmp_path, task(0.2))
    loop.run(epochs=2)
    said = capsys.readouterr().out
    assert "optimizer.optimizer.schedule" in said and "given as" not in said
    assert float(loop.learning_rate) == pytest.approx(0.2 * 0.9 ** (loop.progress.step / 10), rel=1e-5)


def test_the_best_snapshots_stay(tmp_path):
    rates = iter([0.05, 0.0, 5.0, 5.0, 5.0, 5.0])

    class Rate(hooks.Hook):
        phase = hooks.Phase.DECIDE

        def on_epoch_end(self, loop, logs):
            loop.learning_rate = next(rates)

    kept = hooks.Snapshot("1 epoch", keep_last=1, keep_best="loss")
    loop = make_eager(tmp_path, chosen=[Rate(), kept])
    loop.run(epochs=5)
    best = int(np.argmin(loop.history.history["loss"]))
    assert best < 4 and steps_saved(tmp_path) == [7 * (best + 1), 35]


def test_fit_carries_on_too(tmp_path):
    def fit(workdir, epochs):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input([6]), keras.layers.Dropout(0.2), keras.layers.Dense(3, "softmax")])
        model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
        stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
        arguments = {"validation_split": 0.2, "callbacks": [stop], "workdir": workdir, "verbose": 0}
        return model, loops.fit(model, *tiny.data(100), epochs=epochs, **arguments)

    whole, expected = fit(tmp_path / "whole", 5)
    fit(tmp_path / "run", 2)
    model, history = fit(tmp_path / "run", 5)
    assert history.history == expected.history
    for a, b in zip(model.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


# Variables that only the traced step leads to, when the step is not traced as it was.


class Steps(tiny.Classifier):
    """Counts its steps in a variable that no attribute leads to."""

    def __init__(self, *, built=True):
        super().__init__()
        if not built:
            self.model = keras.Sequential([keras.layers.Dense(5, "tanh"), keras.layers.Dense(3, "softmax")])
        count = tf.Variable(0, dtype=tf.int64)
        self.count = lambda: count

    def train_step(self, batch):
        self.count().assign_add(1)
        return super().train_step(batch)


def _freeze(loop):
    loop.task.model.layers[0].trainable = False


def _retrace(loop):
    loop.retrace("it was asked for")
    loop.save()


RETRACES = [(_freeze, 3, "built by the data"), (_retrace, 2, "built")]
OTHER_RETRACES = sorted(set(itertools.product([_freeze, _retrace], [2, 3], ["built", "built by the data"])) - set(RETRACES), key=str)


@pytest.mark.parametrize(("act", "at", "kind"), [*RETRACES, *(pytest.param(*case, marks=pytest.mark.matrix) for case in OTHER_RETRACES)])
def test_a_retrace_loses_no_variable_that_only_the_step_uses(act, at, kind, tmp_path):
    def run(workdir, steps):
        chosen = [hooks.LambdaHook(every=loops.triggers.At(at), on_window_end=lambda loop, window: act(loop))]
        loop = make(workdir, Steps(built=kind == "built"), chosen=chosen)
        loop.run(steps=steps)
        return loop

    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 3)
    again = run(tmp_path / "parts", 5)
    assert int(again.task.count()) == again.progress.step == 5
    tiny.assert_same_bits(tiny.state(again.task), tiny.state(whole.task))


def test_variables_that_only_the_step_uses_are_saved_in_the_order_of_use():
    counts = [tf.Variable(0, name=f"count_{i}") for i in range(12)]

    class Counts(tiny.Classifier):
        def train_step(self, batch):
            for count in counts[5:] + counts[:5]:
                count.assign_add(1)
            return super().train_step(batch)

    loop = make(None, Counts())
    loop.run(steps=1)
    saved = loop.execution.program.variables()["captured"]
    assert [v.name for v in saved] == [v.name for v in counts[5:] + counts[:5]]


def test_saving_between_runs_after_a_hook_was_attached_keeps_what_only_the_step_uses(tmp_path):
    class Observes(hooks.Hook):
        observes = frozenset({"gradients"})

    loop = make(tmp_path, Steps())
    loop.run(steps=2)
    loop.attach(Observes())
    loop.save()
    again = make(tmp_path, Steps())
    again.run(steps=5)
    assert int(again.task.count()) == 5


def test_a_flag_that_changes_right_after_a_save_that_traced_is_obeyed(tmp_path):
    def act(loop):
        if loop.progress.step == 7:
            _retrace(loop)

    freeze = hooks.LambdaHook(on_epoch_begin=lambda loop: _freeze(loop) if loop.progress.epoch == 1 else None)
    retrace = hooks.LambdaHook(every=loops.triggers.At(7), on_window_end=lambda loop, window: act(loop))
    loop = make(tmp_path, chosen=[freeze, retrace])
    loop.run(epochs=1)
    before = loop.task.model.layers[0].get_weights()
    loop.run(epochs=2)
    tiny.assert_same_bits(loop.task.model.layers[0].get_weights(), before)
