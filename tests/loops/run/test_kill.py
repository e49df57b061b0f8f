"""Killed at any instant and started again, a run gives the bits of the one that was left alone."""

import copy
import functools
import itertools
import os
import random
import shutil

import numpy as np
import pytest

from loops import fault_points
from loops.snapshots.store import SnapshotStore
from tests.loops.run import kill_cases
from tests.loops.run.kill_cases import SOURCES, TECHNIQUES, Case, Copies, Kill
from tests.loops.sampling import sample

ALL = [
    Case(source, mode, replicas, technique)
    for source, mode, replicas, technique in itertools.product(SOURCES, ("graph", "xla"), (1, 2), TECHNIQUES)
]


# Every pair of source, mode and number of replicas, and each group of techniques in both modes and with both numbers of replicas; of them,
# in every run of the suite, each source, each pair of mode and replicas, and each group. The first kill comes in a run from the beginning,
# a second one in the run that goes on from there.
MANY = "dropout+batch_norm+ema+schedule+plateau"
SAMPLE = {
    Case("array", "graph", 2, "gan"): [("step", 1), ("half_written", 3)],
    Case("array", "xla", 1, "gan"): [("hook", 40)],
    Case("dataset", "graph", 1, MANY): [("before_rename", 1), ("evaluation", 1)],
    Case("memmap", "xla", 2, MANY): [("feed", 2)],
    Case("memmap", "xla", 1, MANY): [("feed", 2)],
    Case("memmap", "graph", 1, "adam+early_stopping"): [("before_prune", 1), ("step", 9)],
    Case("dataset", "xla", 2, "adam+early_stopping"): [("before_prune", 2)],
}
ALWAYS = [
    Case("array", "graph", 2, "gan"),
    Case("dataset", "graph", 1, MANY),
    Case("memmap", "xla", 1, MANY),
    Case("dataset", "xla", 2, "adam+early_stopping"),
]

MIXED = Case("array", "graph", 1, "adam+dropout+global_seed+plateau+evaluated+frozen")
TWO_NETWORKS = Case("array", "graph", 1, "gan")
STOPPED = Case("array", "graph", 1, "dropout+early_stopping")
TUNED = Case("array", "graph", 1, "unfreeze+load_weights")

# In the middle of a run of `MIXED`.
MIDDLE = {"before_write": 7, "half_written": 8, "before_rename": 6, "before_prune": 6, "hook": 101, "feed": 3, "evaluation": 5, "step": 31}
EARLY = [("hook", 1), ("half_written", 1)]
# The folders that tests go on from. At the seventh writing of a snapshot, in the second epoch, records of the steps up to that snapshot are
# on the disk already; the one before is carried on from.
SEVENTH, LAST = ("before_write", 7), ("before_prune", None)
TENTH = ("before_write", 10)  # a learning rate was reduced before it
POINTS = {
    MIXED: [*MIDDLE.items(), *EARLY, TENTH],
    TWO_NETWORKS: [SEVENTH],
    STOPPED: [SEVENTH, LAST],
    TUNED: [SEVENTH, ("before_prune", 5), ("hook", 60)],
}


def carried_on(case, workdir, strategy, *points):
    """Runs to the end whatever is in the workdir; gives what has to be the same, and the folders at `points`."""
    loop = kill_cases.make(case, workdir, strategy)
    with Copies(workdir, *points) as copies:
        loop.run(epochs=kill_cases.EPOCHS)
    return kill_cases.results(loop), copies


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_device):
    """case -> (results, folders) of a run that nobody killed, made once."""

    @functools.cache
    def run(case):
        return carried_on(case, tmp_path_factory.mktemp("whole") / "run", one_device, *POINTS[case])

    return run


def strategy_for(case, two_replicas, one_device):
    return two_replicas if case.replicas == 2 else one_device


@pytest.mark.parametrize("case", sample({str(case): case for case in SAMPLE}, *map(str, ALWAYS), values=True))
def test_killed_several_times_it_ends_with_the_same_bits(case, tmp_path, two_replicas, one_device):
    kills = SAMPLE[case]
    strategy = strategy_for(case, two_replicas, one_device)
    expected, copies = carried_on(case, tmp_path / "whole" / "run", strategy, kills[0])
    for i, kill in enumerate(kills):
        copies.restore(kill)
        found, copies = carried_on(case, copies.workdir, strategy, *kills[i + 1 :])
        assert not kill_cases.differing(expected, found), kill


@pytest.mark.parametrize("point", POINTS[TUNED][1:], ids=str)
def test_fine_tuning_is_carried_on_wherever_it_was_killed(point, undisturbed, one_device):
    expected, copies = undisturbed(TUNED)
    copies.restore(point)
    found, _ = carried_on(TUNED, copies.workdir, one_device)
    assert not kill_cases.differing(expected, found)


# The others are among those of `ALWAYS`.
NAMED = {f"{name} {count}": (name, count) for name, count in [*MIDDLE.items(), *EARLY]}
NAMED_ALWAYS = ["before_write 7", "hook 101", "feed 3", "evaluation 5", "step 31"]


def test_every_named_point_is_among_those_of_every_run():
    assert MIDDLE.keys() == set(fault_points.NAMES)
    points = [*(NAMED[name] for name in NAMED_ALWAYS), *(point for case in ALWAYS for point in SAMPLE[case])]
    assert {name for name, _ in points} == set(fault_points.NAMES)


@pytest.mark.parametrize("point", sample(NAMED, *NAMED_ALWAYS, values=True))
def test_every_named_point_is_survived(point, undisturbed, one_device):
    expected, copies = undisturbed(MIXED)
    copies.restore(point)
    found, _ = carried_on(MIXED, copies.workdir, one_device)
    assert not kill_cases.differing(expected, found)


def killed(case, tmp_path, strategy, kills):
    """The results after being killed at each of `kills` (name, count), one after the other."""
    workdir = tmp_path / "killed" / "run"
    for name, count in kills:
        loop = kill_cases.make(case, workdir, strategy)
        with Kill(workdir, name, count):
            loop.run(epochs=kill_cases.EPOCHS)
    return carried_on(case, workdir, strategy)[0]


@pytest.mark.matrix
@pytest.mark.parametrize("case", ALL, ids=str)
@pytest.mark.parametrize("name", fault_points.NAMES)
def test_the_whole_matrix(case, name, tmp_path, two_replicas, one_device):
    strategy = strategy_for(case, two_replicas, one_device)
    loop = kill_cases.make(case, tmp_path / "whole" / "run", strategy)
    with Kill(loop.workdir) as counter:
        loop.run(epochs=kill_cases.EPOCHS)
    reached = counter.reached
    rng = random.Random(f"{case} {name} {os.environ.get('MATRIX_SEED', '')}")
    others = rng.sample([other for other, times in reached.items() if times], 2)
    kills = [(each, rng.randint(1, max(1, reached[each] // 2))) for each in (name, *others)]
    assert not kill_cases.differing(kill_cases.results(loop), killed(case, tmp_path, strategy, kills)), kills


# What is left out of the run state, and a case that has to notice.
# Two things can be told from others: the position in a tf.data pipeline from the number of batches, and the rows of history.csv from the
# epoch.
PROGRESS = ("examples", "step_in_epoch", "batch", "pass_index", "epoch")
LEFT_OUT = {
    **dict.fromkeys(
        ("model", "optimizer", "metric", "captured", "learning_rates", "logs", "trainable", *(f"progress.{name}" for name in PROGRESS)),
        MIXED,
    ),
    **dict.fromkeys(("hooks.ReduceLROnPlateau", "hooks.History", "hooks.TensorBoard"), MIXED),
    **dict.fromkeys(("trace", "totals", "looks", "task", "progress.step"), TWO_NETWORKS),
    **dict.fromkeys(("stop_reason", "hooks.EarlyStopping", "hooks.ModelCheckpoint"), STOPPED),
    **dict.fromkeys(("hooks.Unfreeze", "hooks.LoadWeights"), TUNED),
}


def leave_out(item, state, arrays):
    """The state of a snapshot as it would be had nobody thought of `item`."""
    state, arrays = copy.deepcopy(dict(state)), dict(arrays)
    head, _, tail = item.partition(".")
    if head in ("model", "optimizer", "metric", "captured"):
        assert state["variables"][head]
        arrays.update((name, np.zeros_like(a)) for name, a in arrays.items() if name.startswith(f"{head}/"))
    elif head == "hooks":
        del state["hooks"][tail]
    elif head == "progress":
        state["progress"][tail] = 0
        if tail in state["feed"]["position"]:
            state["feed"]["position"][tail] = 0
    else:
        nothing = {
            "trace": {"trace": {**state["trace"], "chunks": []}},
            "totals": {"trace": {**state["trace"], "totals": None}},
            "logs": {"logs": {"evaluation": {}, "extra": {}}},
            "learning_rates": {"learning_rates": {"multipliers": {}, "before_change": {}}},
            "looks": {"looks": {}},
            "task": {"task": {"epochs_begun": 0}},
            "trainable": {"trainable": {"layers": [], "variables": []}},
            "stop_reason": {"decisions": {**state["decisions"], "stop_reason": None}},
        }
        state.update(nothing[item])
    return state, arrays


# Of what is much alike, one.
ALIKE = {
    "model": ["optimizer", "metric"],
    "progress.batch": ["progress.examples", "progress.pass_index", "progress.step_in_epoch", "progress.epoch"],
    "hooks.History": ["hooks.TensorBoard", "logs"],
    "trace": ["totals", "looks"],
    "hooks.Unfreeze": ["hooks.LoadWeights"],
}


@pytest.mark.parametrize("item", sample(LEFT_OUT, *(set(LEFT_OUT) - {item for items in ALIKE.values() for item in items})))
def test_whatever_is_left_out_of_a_snapshot_shows(item, undisturbed, one_device):
    case = LEFT_OUT[item]
    expected, copies = undisturbed(case)
    copies.restore({"stop_reason": LAST, "learning_rates": TENTH}.get(item, SEVENTH))
    store = SnapshotStore(copies.workdir / "snapshots")
    whole = store.load(store.steps()[-1])
    state, arrays = leave_out(item, whole.state, whole.arrays)
    draft = store.begin(whole.step)
    if whole.files is not None and whole.files.is_dir():
        shutil.copytree(whole.files, draft.files, dirs_exist_ok=True)
    draft.commit(arrays, state, whole.info)
    try:
        found, _ = carried_on(case, copies.workdir, one_device)
    except IndexError:
        assert item in ("trace", "progress.step"), "steps are missing in the window of a hook, which shows in this way"
        return
    assert kill_cases.differing(expected, found)
