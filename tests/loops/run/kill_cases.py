"""Runs that are killed and carried on: how each is made, what it leaves, and a kill that needs no process of its own."""

import contextlib
import dataclasses
import pathlib
import shutil

import keras
import numpy as np
import tensorflow as tf

import loops
from loops import fault_points, hooks, testing

EPOCHS = 4
BATCH = 16
FEATURES = 6
TECHNIQUES = ("dropout", "batch_norm", "adam", "schedule", "plateau", "early_stopping", "ema", "gan")
SOURCES = ("array", "dataset", "memmap")
NOISE = {"dropout": lambda: keras.layers.Dropout(0.3), "batch_norm": keras.layers.BatchNormalization}


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        source: "array", "dataset" or "memmap".
        mode: "graph", "xla" or "eager".
        replicas: 1 or 2.
        technique: what there is besides a dense network and SGD; several are joined by "+".
    """

    source: str
    mode: str
    replicas: int
    technique: str

    def __str__(self):
        return f"{self.source}-{self.mode}-{self.replicas}-{self.technique}"

    def has(self, technique):
        return technique in self.technique.split("+")


class Gan(loops.Task):
    """Two networks, two optimizers, noise from `self.seed()`, a variable and a Python counter of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input([3]), keras.layers.Dense(8, "relu"), keras.layers.Dense(FEATURES)])
        self.critic = keras.Sequential(
            [keras.Input([FEATURES]), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
        )
        self.optimizers_of = {"generator": keras.optimizers.Adam(3e-3), "critic": keras.optimizers.RMSprop(3e-3)}
        self.seen = tf.Variable(0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.epochs_begun = 0

    def train_step(self, batch):
        x = batch[0]
        loss_of = keras.losses.BinaryCrossentropy(from_logits=True)
        with tf.GradientTape() as critic_tape, tf.GradientTape() as generator_tape:
            fake = self.generator(tf.random.stateless_normal([tf.shape(x)[0], 3], self.seed()))
            real_score, fake_score = self.critic(x, training=True), self.critic(fake, training=True)
            ones, zeros = tf.ones_like(real_score), tf.zeros_like(fake_score)
            critic_loss = self.compute_loss(loss_of, ones, real_score) + self.compute_loss(loss_of, zeros, fake_score)
            generator_loss = self.compute_loss(loss_of, ones, fake_score)
        self.minimize(critic_loss, critic_tape, self.optimizers_of["critic"], self.critic.trainable_variables)
        self.minimize(generator_loss, generator_tape, self.optimizers_of["generator"], self.generator.trainable_variables)
        self.seen.assign_add(1.0)
        return {"loss": critic_loss, "generator_loss": generator_loss, "seen": loops.Last(self.seen.read_value())}

    def eval_step(self, batch):
        score = self.critic(batch[0], training=False)
        return {"loss": tf.reduce_mean(score)}

    def state_dict(self):
        return {"epochs_begun": self.epochs_begun}

    def load_state_dict(self, state):
        self.epochs_begun = state["epochs_begun"]


class GlobalSeed(loops.SupervisedTask):
    """Draws from Keras's own seed generator, to which no attribute of the task leads."""

    def train_step(self, batch):
        x, y = batch
        return super().train_step((x + 0.1 * keras.random.normal([FEATURES]), y))


class CountEpochs(hooks.Hook):
    """Counts in the task, and logs what it counted: Python state that shows in the history. Freezes a layer if that is the technique."""

    def __init__(self, freeze):
        self.freeze = freeze

    phase = hooks.Phase.DECIDE
    every = None

    def on_epoch_begin(self, loop):
        if isinstance(loop.task, Gan):
            loop.task.epochs_begun += 1
        if self.freeze and loop.progress.epoch == 1:
            loop.task.model.layers[0].trainable = False

    def on_epoch_end(self, loop, logs):
        if isinstance(loop.task, Gan):
            loop.log("epochs_begun", loop.task.epochs_begun)


def rows(case):
    """A ragged last batch where that costs no compilation."""
    return 12 * BATCH if case.mode == "xla" else 12 * BATCH + 5


def arrays(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=[n, FEATURES]).astype("float32")
    return x, (x[:, :1] - x[:, 1:2] ** 2 + rng.normal(size=[n, 1])).astype("float32")


def feed(case, folder):
    x, y = arrays(rows(case))
    if case.source == "dataset":
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(50, seed=3).batch(BATCH, drop_remainder=case.mode == "xla")
        return loops.DatasetFeed(dataset.prefetch(2))
    if case.source == "memmap":
        path = pathlib.Path(folder, "x.npy")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, x)
        x = np.load(path, mmap_mode="r")
    return loops.ArrayFeed((x, y), BATCH, shuffle=True, seed=5)


def task(case):
    keras.utils.set_random_seed(11)
    if case.has("gan"):
        return Gan()
    noise = [layer for name, layer in NOISE.items() if case.has(name)]
    model = keras.Sequential([keras.Input([FEATURES]), keras.layers.Dense(8, "tanh"), *(layer() for layer in noise), keras.layers.Dense(1)])
    decays = case.has("schedule") or case.has("plateau")
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 10, 0.9) if decays else 0.05
    if case.has("ema"):
        optimizer = keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.9)
    elif case.has("adam"):
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    kind = GlobalSeed if case.has("global_seed") else loops.SupervisedTask
    return kind(model, loss="mse", optimizer=optimizer, metrics=["mae"])


def make(case, workdir, strategy, **arguments):
    """The loop of a case, as a fresh process would make it."""
    keras.utils.clear_session(free_memory=False)
    with strategy.scope():
        made = task(case)
    chosen = [
        hooks.Snapshot("5 steps | 1 epoch"),
        hooks.TensorBoard(workdir, update_freq=3, histogram_freq=0),
        CountEpochs(case.has("frozen")),
    ]
    if case.has("plateau"):
        chosen.append(hooks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=10.0))
    if case.has("early_stopping"):
        chosen.append(hooks.EarlyStopping("val_loss", min_delta=0.2, patience=1, restore_best_weights=True))
    if case.has("unfreeze"):
        made.model.layers[0].trainable = False
        layer = made.model.layers[0].name
        chosen.append(hooks.Unfreeze(layer, monitor="val_loss", min_delta=10.0, patience=1, learning_rate_factor=0.5))
    if case.has("load_weights"):
        loaded = [np.full(w.shape, 0.1, "float32") for w in made.model.weights]
        chosen.append(hooks.LoadWeights(loaded, min_delta=10.0, patience=2))
    validation = loops.ArrayFeed(arrays(40, seed=1), 20)
    if case.has("evaluated"):  # in the midst of an epoch
        chosen.append(hooks.Evaluate(loops.ArrayFeed(arrays(30, seed=2), 10), "early", every=loops.triggers.At(3, 16, 29, 42)))
    loop = loops.TrainLoop(
        made,
        feed(case, workdir.parent),
        chosen,
        evaluate={"val": validation},
        workdir=workdir,
        compile=case.mode,
        strategy=strategy if case.replicas > 1 else None,
        **arguments,
    )
    loop.clock = testing.FakeClock()  # what is looked at every two seconds would be looked at whenever the machine is slow
    return loop


def results(loop):
    """Everything that has to be the same, bit for bit: name -> something comparable."""
    found = {f"variable {i} {v.name}": np.asarray(v).tobytes() for i, v in enumerate(local(loop.task))}
    found["history"] = repr(loop.history.history)
    found["epochs"] = repr(loop.history.epoch)
    found["stop"] = repr((loop.outcome, loop.stop_reason, loop.progress.step, loop.progress.examples))
    found["csv"] = (loop.workdir / "history.csv").read_bytes()
    found["task"] = repr(loop.task.state_dict())
    for run, tags in testing.read_events(loop.workdir).items():
        for tag, points in tags.items():
            # Metrics as of a look and speeds depend on when somebody looked; what steps reported, and epochs, do not.
            if tag.startswith(("epoch_", "batch_loss", "batch_seen", "evaluation_")) and "per_second" not in tag:
                found[f"events {run} {tag}"] = repr(points)
    best = loop.workdir / "checkpoints" / "best.weights.h5"
    if best.exists():
        found["best weights"] = repr(weights_in(best))
    return found


def local(of):
    return loops.tasks.replicas.local_variables(of.tracked.all_variables())


def weights_in(path):
    import h5py

    found = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append((name, item[()].tobytes())) if isinstance(item, h5py.Dataset) else None)
    return sorted(found)


def differing(a, b):
    """Names of what differs."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


class Copies:
    """Copies the workdir at crash points while the run goes on: each copy is what a SIGKILL at that instant would leave on the disk.

    So one run gives both what is expected and the folders of as many kills as are asked for.

    Args:
        workdir: the folder that is copied.
        points: (name, count) of each instant; a count of None stands for every time, and the last copy is kept.
    """

    def __init__(self, workdir, *points):
        self.workdir, self._points, self._folders = pathlib.Path(workdir), points, {}
        self._counts = dict.fromkeys(fault_points.NAMES, 0)

    def __enter__(self):
        self._real, fault_points.reached = fault_points.reached, self._note
        return self

    def __exit__(self, kind, error, trace):
        fault_points.reached = self._real

    def restore(self, point):
        """Makes the copy of `point` the workdir that the next process finds, at the same path: event files are recognized by it."""
        shutil.rmtree(self.workdir)
        shutil.copytree(self._folders[point], self.workdir)

    def _note(self, name, times=1):
        before = self._counts[name]
        self._counts[name] += times
        for point, count in self._points:
            if point == name and (count is None or before < count <= self._counts[name]):
                folder = self._folders[point, count] = self.workdir.with_name(f"{self.workdir.name}-{point}-{count}")
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(shutil.Error):  # what a thread moves away meanwhile
                    shutil.copytree(self.workdir, folder)


class Killed(BaseException):
    """Not an Exception: nobody handles it."""


class Kill:
    """As a SIGKILL at a crash point: what is on disk at that instant is what the next process finds, whatever this one still does.

    Args:
        workdir: the folder that is frozen.
        name: the crash point, or None to count only.
        count: at which time.
    """

    def __init__(self, workdir, name=None, count=0):
        self.workdir, self.frozen = pathlib.Path(workdir), pathlib.Path(f"{workdir}-frozen")
        self.name, self.count = name, count
        self.reached = dict.fromkeys(fault_points.NAMES, 0)
        self.struck = False

    def __enter__(self):
        self._real, fault_points.reached = fault_points.reached, self._note
        return self

    def __exit__(self, kind, error, trace):
        fault_points.reached = self._real
        if self.struck:
            shutil.rmtree(self.workdir)
            self.frozen.rename(self.workdir)
        return kind is Killed

    def _note(self, name, times=1):
        before = self.reached[name]
        self.reached[name] += times
        if not self.struck and name == self.name and before < self.count <= self.reached[name]:
            with contextlib.suppress(shutil.Error):  # what a thread moves away meanwhile
                shutil.copytree(self.workdir, self.frozen)
            self.struck = True
        if self.struck and name in (fault_points.HOOK, fault_points.STEP, fault_points.EVALUATION):
            raise Killed  # in the training thread, as soon as it comes by
