"""Killed at any instant and started again, a run gives the bits of the one that was left alone."""

import copy
import itertools
import os
import random
import shutil

import numpy as np
import pytest

from loops import fault_points
from loops.snapshots.store import SnapshotStore
from tests.loops.run import kill_cases
from tests.loops.run.kill_cases import SOURCES, TECHNIQUES, Case, Kill

ALL = [
    Case(source, mode, replicas, technique)
    for source, mode, replicas, technique in itertools.product(SOURCES, ("graph", "xla"), (1, 2), TECHNIQUES)
]


def pairwise(cases):
    """A small selection in which every pair of values that occurs at all occurs."""
    fields = ("source", "mode", "replicas", "technique")

    def pairs(case):
        return {(a, getattr(case, a), b, getattr(case, b)) for a, b in itertools.combinations(fields, 2)}

    missing = set().union(*map(pairs, cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def undisturbed(case, tmp_path, strategy):
    loop = kill_cases.make(case, tmp_path / "whole" / "run", strategy)
    with Kill(loop.workdir) as counter:
        loop.run(epochs=kill_cases.EPOCHS)
    return kill_cases.results(loop), counter.reached


def killed(case, tmp_path, strategy, kills):
    """The results after being killed at each of `kills` (name, count), one after the other."""
    workdir = tmp_path / "killed" / "run"
    for name, count in kills:
        loop = kill_cases.make(case, workdir, strategy)
        with Kill(workdir, name, count):
            loop.run(epochs=kill_cases.EPOCHS)
    loop = kill_cases.make(case, workdir, strategy)
    loop.run(epochs=kill_cases.EPOCHS)
    return kill_cases.results(loop)


def drawn(reached, rng, n):
    names = [name for name, times in reached.items() if times]
    return [(name, rng.randint(1, max(1, reached[name] // n))) for name in rng.sample(names, n)]


def strategy_for(case, two_replicas, one_device):
    return two_replicas if case.replicas == 2 else one_device


@pytest.mark.parametrize("case", pairwise(ALL), ids=str)
def test_killed_several_times_it_ends_with_the_same_bits(case, tmp_path, two_replicas, one_device):
    strategy = strategy_for(case, two_replicas, one_device)
    expected, reached = undisturbed(case, tmp_path, strategy)
    kills = drawn(reached, random.Random(str(case)), 2)
    found = killed(case, tmp_path, strategy, kills)
    assert not kill_cases.differing(expected, found), kills


@pytest.mark.parametrize("technique", ["unfreeze", "load_weights"])
def test_fine_tuning_is_carried_on_wherever_it_was_killed(technique, tmp_path, one_device):
    case = Case("array", "graph", 1, technique)
    expected, reached = undisturbed(case, tmp_path, one_device)
    found = killed(case, tmp_path, one_device, [("before_prune", reached["before_prune"] // 2), ("hook", reached["hook"] // 3)])
    assert not kill_cases.differing(expected, found)


@pytest.mark.matrix
@pytest.mark.parametrize("case", ALL, ids=str)
@pytest.mark.parametrize("name", fault_points.NAMES)
def test_the_whole_matrix(case, name, tmp_path, two_replicas, one_device):
    strategy = strategy_for(case, two_replicas, one_device)
    expected, reached = undisturbed(case, tmp_path, strategy)
    rng = random.Random(f"{case} {name} {os.environ.get('MATRIX_SEED', '')}")
    kills = [(name, rng.randint(1, max(1, reached[name] // 2))), *drawn(reached, rng, 2)]
    found = killed(case, tmp_path, strategy, kills)
    assert not kill_cases.differing(expected, found), kills


@pytest.mark.parametrize("name", fault_points.NAMES)
def test_every_named_point_is_survived(name, tmp_path, two_replicas, one_device):
    case = Case("array", "graph", 1, "dropout")
    expected, reached = undisturbed(case, tmp_path, one_device)
    assert reached[name] > 2, "the point is not on the way"
    found = killed(case, tmp_path, one_device, [(name, 1), (name, 2), (name, reached[name] // 2)])
    assert not kill_cases.differing(expected, found)


# What is left out of the run state, and a case that has to notice. The kill comes in the second epoch.
# Three things can be told from others: the position in a tf.data pipeline from the number of batches, the rows of history.csv from the
# epoch, and the multiplier of a schedule from the variables that the step uses.
LEFT_OUT = {
    "model": Case("array", "graph", 1, "dropout"),
    "optimizer": Case("array", "graph", 1, "adam"),
    "metric": Case("array", "graph", 1, "adam"),
    "captured": Case("array", "graph", 1, "global_seed"),
    "trace": Case("array", "graph", 1, "gan"),
    "totals": Case("array", "graph", 1, "gan"),
    "logs": Case("array", "graph", 1, "evaluated"),
    "looks": Case("array", "graph", 1, "gan"),
    "task": Case("array", "graph", 1, "gan"),
    "trainable": Case("array", "graph", 1, "frozen"),
    "stop_reason": Case("array", "graph", 1, "early_stopping"),
    "progress.examples": Case("array", "graph", 1, "adam"),
    "progress.step_in_epoch": Case("array", "graph", 1, "adam"),
    "progress.batch": Case("array", "graph", 1, "adam"),
    "progress.pass_index": Case("array", "graph", 1, "adam"),
    "progress.step": Case("array", "graph", 1, "gan"),
    "progress.epoch": Case("array", "graph", 1, "adam"),
    "hooks.EarlyStopping": Case("array", "graph", 1, "early_stopping"),
    "hooks.ReduceLROnPlateau": Case("array", "graph", 1, "plateau"),
    "hooks.Unfreeze": Case("array", "graph", 1, "unfreeze"),
    "hooks.LoadWeights": Case("array", "graph", 1, "load_weights"),
    "hooks.History": Case("array", "graph", 1, "adam"),
    "hooks.TensorBoard": Case("array", "graph", 1, "adam"),
    "hooks.ModelCheckpoint": Case("array", "graph", 1, "early_stopping"),
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
            "looks": {"looks": {}},
            "task": {"task": {"epochs_begun": 0}},
            "trainable": {"trainable": {"layers": [], "variables": []}},
            "stop_reason": {"decisions": {**state["decisions"], "stop_reason": None}},
        }
        state.update(nothing[item])
    return state, arrays


@pytest.mark.parametrize("item", LEFT_OUT)
def test_whatever_is_left_out_of_a_snapshot_shows(item, tmp_path, one_device):
    case, workdir = LEFT_OUT[item], tmp_path / "killed" / "run"
    expected, reached = undisturbed(case, tmp_path, one_device)
    # Records of the steps up to the snapshot that is being written are on disk already; the one before is carried on from.
    last = reached["before_write"]
    name, at = {"stop_reason": ("before_prune", last)}.get(item, ("before_write", 7))
    with Kill(workdir, name, at):
        kill_cases.make(case, workdir, one_device).run(epochs=kill_cases.EPOCHS)
    store = SnapshotStore(workdir / "snapshots")
    whole = store.load(store.steps()[-1])
    state, arrays = leave_out(item, whole.state, whole.arrays)
    draft = store.begin(whole.step)
    if whole.files is not None and whole.files.is_dir():
        shutil.copytree(whole.files, draft.files, dirs_exist_ok=True)
    draft.commit(arrays, state, whole.info)
    loop = kill_cases.make(case, workdir, one_device)
    try:
        loop.run(epochs=kill_cases.EPOCHS)
    except IndexError:
        assert item in ("trace", "progress.step"), "steps are missing in the window of a hook, which shows in this way"
        return
    assert kill_cases.differing(expected, kill_cases.results(loop))
