"""Snapshots come back bit for bit or not at all, and whatever happens while one is written, a good one is there."""

from __future__ import annotations

import errno
import functools
import gc
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loops.snapshots.store import Best, DamagedSnapshot, SnapshotStore
from loops.testing import InjectedCrash, crash_at

REPOSITORY = pathlib.Path(__file__).parents[3]
FILES = ("manifest.json", "tensors.bin", "state.json", "files/data/iterator.index")
POINTS = ("before_write", "half_written", "before_rename", "before_prune")


def contents(step):
    """Arrays and state that differ in every file from those of any other step; 31 and 3 bytes leave gaps before the next array."""
    rng = np.random.default_rng(step)
    arrays = {
        "kernel": rng.normal(size=(5, 7)).astype(np.float32),
        "mask": rng.integers(0, 255, 31).astype(np.uint8),
        "half": rng.normal(size=3).astype(ml_dtypes.bfloat16),
        "step": np.int64(step),
        "words": np.array([b"a" * step, b""], object),
    }
    return arrays, {"epoch": step, "hooks": {"stopping": {"best": float("-inf"), "wait": step}}}, {"logs": {"loss": 1.0 / step}}


def save(store, step):
    draft = store.begin(step)
    try:
        (draft.files / "data").mkdir()
        (draft.files / "data" / "iterator.index").write_bytes(b"iterator" * step)
        return draft.commit(*contents(step))
    finally:
        draft.discard()


def assert_same(snapshot, step):
    arrays, state, info = contents(step)
    assert (snapshot.step, snapshot.state, snapshot.info) == (step, state, info)
    assert list(snapshot.arrays) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(snapshot.arrays[name], array)
    assert (snapshot.files / "data" / "iterator.index").read_bytes() == b"iterator" * step


def names(store):
    return sorted(os.listdir(store.directory))


def no_report(message):
    raise AssertionError(message)


# What comes back.

DTYPES = [np.dtype(code) for code in ("?", "b", "B", "<i2", ">u4", "<i8", "<f2", ">f4", "<f8", "<c8", "<c16", "<U5", ">U2", "S7", "<M8[s]")]
DTYPES += [
    np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4")
]


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    kind = draw(st.sampled_from([*DTYPES, bytes, str]))
    size = int(np.prod(shape))
    if kind in (bytes, str):
        items = st.binary(max_size=9) if kind is bytes else st.text(st.characters(exclude_categories=()), max_size=5)
        array = np.empty(shape, object)
        array.reshape(-1)[:] = draw(st.lists(items, min_size=size, max_size=size))
        return array
    raw = draw(st.binary(min_size=size * kind.itemsize, max_size=size * kind.itemsize))
    if kind.kind == "?" or kind.kind == "b":
        raw = bytes(byte % 2 for byte in raw)
    if kind.kind == "U":  # not every number is a character
        raw = np.frombuffer(raw, kind.byteorder.replace("=", "<") + "u4").__mod__(0x10FFFF).astype(kind.str[0] + "u4").tobytes()
    array = np.frombuffer(raw, kind).reshape(shape)
    return array.T if draw(st.booleans()) else array


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.dictionaries(ANY_TEXT, arrays(), max_size=5), st.dictionaries(ANY_TEXT, JSON, max_size=4))
def test_any_arrays_and_state_come_back_bit_for_bit(tmp_path, given_arrays, state):
    store = SnapshotStore(tmp_path, keep_last=1)
    store.begin(1).commit(given_arrays, state, state)
    found = store.load(1)
    assert found.state == state and found.info == state
    assert list(found.arrays) == list(given_arrays)
    for name, array in given_arrays.items():
        back = found.arrays[name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.flags.owndata and back.flags.writeable
        if array.dtype == object:
            assert back.tolist() == array.tolist()
        else:
            assert back.tobytes() == array.tobytes()


def test_nan_payloads_and_signed_zeros_are_kept(tmp_path):
    bits = np.array([0x7FC00001, 0xFF800001, 0x80000000, 0x7F800000, 0x00000001], np.uint32)
    SnapshotStore(tmp_path).begin(0).commit({"x": bits.view(np.float32)}, {"nan": float("nan"), "inf": float("inf")}, {})
    found = SnapshotStore(tmp_path).load(0)
    np.testing.assert_array_equal(found.arrays["x"].view(np.uint32), bits)
    assert np.isnan(found.state["nan"]) and found.state["inf"] == float("inf")


@pytest.mark.parametrize(
    ("bad_arrays", "bad_state", "said"),
    [
        ({"x": np.array([{}, 1], object)}, {}, "array 'x' has dtype object"),
        ({"x": np.zeros(2, [("a", "f4")])}, {}, "array 'x' has dtype"),
        ({}, {"hooks": {"mine": {3: 1}}}, r"state\['hooks'\]\['mine'\] has the key 3 of type int"),
        ({}, {"losses": [1.0, np.float32(2)]}, r"state\['losses'\]\[1\] is a float32"),
    ],
)
def test_what_cannot_come_back_is_refused_by_name(tmp_path, bad_arrays, bad_state, said):
    store = SnapshotStore(tmp_path)
    save(store, 1)
    draft = store.begin(2)
    with pytest.raises(TypeError, match=said):
        draft.commit(bad_arrays, bad_state, {})
    draft.discard()
    assert names(store) == ["1"]


def test_state_is_taken_when_a_write_is_prepared(tmp_path):
    store, state = SnapshotStore(tmp_path), {"losses": [1.0]}
    write = store.begin(1).prepare({}, state, {})
    state["losses"].append(2.0)
    write()
    assert store.load(1).state == {"losses": [1.0]}


def test_big_arrays_are_written_and_verified_without_a_copy(tmp_path):
    store, size = SnapshotStore(tmp_path), 64 << 20
    big = np.zeros(size // 4, np.float32)

    def peak(call):
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: store.begin(1).commit({"big": big}, {}, {})) < size // 4
    assert peak(lambda: store.verify(1)) < size // 4
    assert size <= peak(lambda: store.load(1)) < size + size // 4


# Damage.


def flip_a_bit(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(data)


def truncate(path, rng):
    os.truncate(path, rng.integers(path.stat().st_size))


def lengthen(path, rng):
    with path.open("ab") as file:
        file.write(bytes(int(rng.integers(1, 100))))


def empty(path, rng):
    path.write_bytes(b"")


def lose(path, rng):
    path.unlink()


def become_a_folder(path, rng):
    path.unlink()
    path.mkdir()


def overwrite_a_stretch(path, rng):
    data = bytearray(path.read_bytes())
    begin = int(rng.integers(len(data)))
    stretch = data[begin : begin + 64]
    data[begin : begin + 64] = bytes(byte ^ 0x5A for byte in stretch)
    path.write_bytes(data)


def swap_with_step_2(path, rng):
    root = next(parent for parent in path.parents if parent.name == "3")
    other = root.with_name("2") / path.relative_to(root)
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


IN_A_FILE = [flip_a_bit] * 5 + [truncate, lengthen, empty, lose, become_a_folder, overwrite_a_stretch, swap_with_step_2]


def every_file(directory):
    return sorted(path.read_bytes() for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with the snapshots of steps 1, 2 and 3."""
    store = SnapshotStore(tmp_path_factory.mktemp("three"))
    for step in (1, 2, 3):
        save(store, step)
    return store.directory


@pytest.mark.parametrize("block", range(4))
def test_of_200_damaged_snapshots_none_is_loaded_and_nothing_is_deleted(three, tmp_path, block):
    for case in range(50 * block, 50 * (block + 1)):
        rng = np.random.default_rng(case)
        directory = tmp_path / str(case)
        shutil.copytree(three, directory)
        damage = IN_A_FILE[rng.integers(len(IN_A_FILE))]
        damage(directory / "3" / FILES[case % len(FILES)], rng)
        before = every_file(directory)

        store, reports = SnapshotStore(directory), []
        good = 1 if damage is swap_with_step_2 else 2
        for step in range(good + 1, 4):
            for read in (store.load, store.verify):
                with pytest.raises(DamagedSnapshot) as error:
                    read(step)
                assert error.value.step == step
        assert_same(store.latest(reports.append), good)
        assert len(reports) == 3 - good, (case, damage)
        for step, report in zip(range(3, good, -1), reports, strict=True):
            assert f"step {step} is damaged (" in report and f"the snapshot of step {good} is used instead" in report
        assert every_file(directory) == before, (case, damage)
        assert names(store) == sorted([*map(str, range(1, good + 1)), *(f"damaged-{step}" for step in range(good + 1, 4))])
        shutil.rmtree(directory)


def test_every_single_bit_of_every_file_counts(tmp_path):
    store = SnapshotStore(tmp_path)
    draft = store.begin(1)
    (draft.files / "f").write_bytes(b"\x00\x01")
    path = draft.commit({"a": np.uint8(7), "b": np.zeros(2, np.float32)}, {"x": 1}, {})
    for file in (path / name for name in ("manifest.json", "tensors.bin", "state.json", "files/f")):
        good = file.read_bytes()
        # The manifest is long: one bit of each of its bytes.
        bits = range(0, 8 * len(good), 9) if file.name == "manifest.json" else range(8 * len(good))
        for bit in bits:
            data = bytearray(good)
            data[bit // 8] ^= 1 << bit % 8
            file.write_bytes(data)
            with pytest.raises(DamagedSnapshot):
                store.verify(1)
        file.write_bytes(good)
    store.verify(1)


def test_a_renamed_snapshot_is_not_that_of_another_step(three, tmp_path):
    directory = tmp_path / "snapshots"
    shutil.copytree(three, directory)
    (directory / "3").rename(directory / "30")
    reports = []
    store = SnapshotStore(directory)
    assert_same(store.latest(reports.append), 2)
    assert "step 30 is damaged (it is the snapshot of step 3)" in reports[0]
    assert names(store) == ["1", "2", "damaged-30"]


def test_folders_and_files_in_the_place_of_a_snapshot_are_set_aside(three, tmp_path):
    directory = tmp_path / "snapshots"
    shutil.copytree(three, directory)
    (directory / "4").mkdir()
    (directory / "5").write_text("not a folder")
    (directory / "damaged-5").mkdir()
    reports = []
    store = SnapshotStore(directory)
    assert_same(store.latest(reports.append), 3)
    assert len(reports) == 2
    assert names(store) == ["1", "2", "3", "damaged-4", "damaged-5", "damaged-5-2"]


def test_without_any_good_one_there_is_none(tmp_path):
    store = SnapshotStore(tmp_path / "not yet")
    assert store.steps() == [] and store.latest(no_report) is None
    (save(store, 1) / "tensors.bin").unlink()
    reports = []
    assert store.latest(reports.append) is None
    assert "tensors.bin is missing" in reports[0] and "there is no other one" in reports[0]


def test_a_damaged_one_that_cannot_be_renamed_is_left_and_passed_over(three, tmp_path, monkeypatch):
    directory = tmp_path / "snapshots"
    shutil.copytree(three, directory)
    (directory / "3" / "state.json").unlink()

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    reports = []
    assert_same(SnapshotStore(directory).latest(reports.append), 2)
    assert "state.json is missing" in reports[0]
    assert (directory / "3").is_dir()


def test_one_that_may_not_be_read_is_not_called_damaged(three, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        SnapshotStore(three).latest(no_report)
    assert sorted(os.listdir(three)) == ["1", "2", "3"]


def test_a_later_format_is_said_and_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("loops.snapshots.manifest.FORMAT", 99)
    save(SnapshotStore(tmp_path), 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 99, and this version reads format 1"):
        SnapshotStore(tmp_path).latest(no_report)


# What stays.


def test_the_newest_and_the_best_stay(tmp_path):
    store = SnapshotStore(tmp_path, keep_last=2, keep_best=Best("accuracy", "max", 2))
    values = [0.5, 0.9, float("nan"), 0.9, 0.95, 0.1, float("inf"), 0.2, None, 0.3]
    for step, value in enumerate(values):
        if step == 5:
            # What was best is read from disk by the next process.
            store = SnapshotStore(tmp_path, keep_last=2, keep_best=Best("accuracy", "max", 2))
        store.begin(step).commit({}, {}, {"logs": {} if value is None else {"accuracy": value, "loss": 0.0}})
        so_far = [(v, -s) for s, v in enumerate(values[: step + 1]) if v is not None and np.isfinite(v)]
        expected = {-s for _, s in sorted(so_far)[-2:]} | set(range(step + 1)[-2:])
        assert set(store.steps()) == expected
    assert names(store) == ["1", "4", "8", "9"]


def test_smaller_is_better_if_so_asked(tmp_path):
    store = SnapshotStore(tmp_path, keep_last=1, keep_best=Best("loss", "min"))
    for step, value in enumerate([3.0, 1.0, 2.0, 1.0]):
        store.begin(step).commit({}, {}, {"logs": {"loss": value}})
    assert store.steps() == [1, 3]


def test_the_one_just_written_stays_though_others_are_newer(tmp_path):
    store = SnapshotStore(tmp_path, keep_last=1)
    save(store, 9)
    save(store, 4)
    assert store.steps() == [4, 9]


def test_nothing_is_deleted_before_the_new_one_is_in_its_place(tmp_path):
    store = SnapshotStore(tmp_path, keep_last=1)
    save(store, 1)
    for point in POINTS[:3]:
        with crash_at(point, how="raise"), pytest.raises(InjectedCrash):
            save(store, 2)
        assert names(store) == ["1"], point
    with crash_at("before_prune", how="raise"), pytest.raises(InjectedCrash):
        save(store, 2)
    assert names(store) == ["1", "2"]
    for step in (1, 2):
        assert_same(store.load(step), step)
    save(store, 3)
    assert names(store) == ["3"]


@pytest.mark.parametrize(
    "bad", [{"keep_last": 0}, {"keep_last": True}, {"keep_best": ("loss", "least")}, {"keep_best": ("loss", "min", 0)}]
)
def test_a_policy_that_makes_no_sense_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="Keep 1 or more|min"):
        SnapshotStore(tmp_path, **{name: Best(*value) if name == "keep_best" else value for name, value in bad.items()})


# Kills, and disks that fail.

BARE = """
import importlib.util, sys
# Only the package's own search path: what its __init__ imports would start TensorFlow.
sys.modules["loops"] = importlib.util.module_from_spec(importlib.util.find_spec("loops"))
"""

TRAIN = (
    BARE
    + """
import numpy as np
from loops.snapshots.store import SnapshotStore

directory, last, again = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = SnapshotStore(directory, keep_last=2)
reports = []
snapshot = store.latest(reports.append)
assert not reports, reports
step, weights = (0, np.ones(1000)) if snapshot is None else (snapshot.step, snapshot.arrays["weights"])
assert snapshot is None or snapshot.state["step"] == step
if again and snapshot is not None:
    step, weights = step - 1, (weights - step) / 2
while step < last:
    step += 1
    weights = weights * 2 + step
    draft = store.begin(step)
    (draft.files / "iterator").write_text(str(step))
    draft.commit({"weights": weights, "more": weights[:10]}, {"step": step}, {})
assert "tensorflow" not in sys.modules
"""
)


def train(directory, last, crash="", again=False):
    environment = {**os.environ, "TAPELOOPS_CRASH_AT": crash}
    command = [sys.executable, "-c", TRAIN, str(directory), str(last), str(int(again))]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode in ([-signal.SIGKILL] if crash else [0]) or (not done.stderr and done.returncode == 0), done.stderr
    return done.returncode


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_of_a_write_the_run_goes_on_to_the_same_bits(tmp_path, point):
    lives = 1
    while train(tmp_path / "killed", 6, f"{point}:2,kill"):
        lives += 1
        store = SnapshotStore(tmp_path / "killed")
        for step in store.steps():
            assert store.load(step).state["step"] == step
        assert lives < 9
    assert lives >= 3
    train(tmp_path / "killed", 7)
    train(tmp_path / "undisturbed", 7)
    killed, undisturbed = SnapshotStore(tmp_path / "killed"), SnapshotStore(tmp_path / "undisturbed")
    assert names(killed) == names(undisturbed) == ["6", "7"]
    for name, array in undisturbed.load(7).arrays.items():
        assert killed.load(7).arrays[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_a_snapshot_of_the_same_step_is_replaced_there_is_always_a_good_one(tmp_path, point):
    train(tmp_path, 3)
    for _ in range(2):
        assert train(tmp_path, 3, point, again=True)
        store = SnapshotStore(tmp_path)
        assert store.steps() == [2, 3]
        assert store.latest(no_report).step == 3
    train(tmp_path, 4, again=True)
    assert names(store) == ["3", "4"]


def test_whichever_call_of_the_system_fails_the_old_snapshots_stay(tmp_path, monkeypatch):
    """A full disk, a disk that breaks, a folder that turned read-only: at every single call, one after the other."""
    store = SnapshotStore(tmp_path, keep_last=2)
    for step in (1, 2):
        save(store, step)
    calls, failing = 0, 0

    def count(call, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return call(*args, **kwargs)

    for name in ("write", "open", "fsync", "rename", "mkdir"):
        monkeypatch.setattr(os, name, functools.partial(count, getattr(os, name)))

    def saved(step, at):
        """Saves, with the call of that number failing. Returns whether that worked, and how many calls there were."""
        nonlocal calls, failing
        calls, failing = 0, at
        try:
            save(store, step)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return False, calls
        finally:
            failing = 0
        return True, calls

    for step in (2, 3):
        failures, written = 0, False
        for at in itertools.count(1):
            fine, done = saved(step, at)
            failures, written = failures + (not fine), written or fine
            if step == 2 or not written:
                assert_same(store.load(1), 1)
            if not fine:
                assert not [name for name in names(store) if name.startswith(".writing")]
            assert_same(store.load(2), 2)
            if fine:
                assert_same(store.load(step), step)
            if done < at:  # nothing failed
                break
        assert failures > 15
    assert store.steps() == [2, 3]
    save(store, 3)
    assert names(store) == ["2", "3"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """What a power cut would show and a kill does not: the order of syncs and renames."""
    done, fsync, rename = [], os.fsync, os.rename

    def record_sync(descriptor):
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_rename(source, target):
        done.append(("rename", str(target)))
        rename(source, target)

    store = SnapshotStore(tmp_path, keep_last=1)
    save(store, 1)
    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    save(store, 2)
    at = done.index(("rename", str(tmp_path / "2")))
    draft = tmp_path / f".writing-2-{os.getpid()}"
    synced = [path for _, path in done[:at]]
    assert set(synced) == {str(draft), *(str(draft / name) for name in FILES), str(draft / "files"), str(draft / "files" / "data")}
    assert synced[-1] == str(draft)
    assert done[at + 1] == ("sync", str(tmp_path))
    assert [kind for kind, _ in done[at + 2 :]] == ["rename"]  # the one that is deleted


def test_a_vanished_folder_fails_one_write_and_not_the_next(tmp_path):
    store = SnapshotStore(tmp_path / "snapshots")
    save(store, 1)
    draft = store.begin(2)
    shutil.rmtree(store.directory)
    with pytest.raises(FileNotFoundError):
        draft.commit(*contents(2))
    save(store, 3)
    assert names(store) == ["3"]


# Temporary folders.


def test_what_killed_processes_left_is_cleared_away_and_nothing_else(tmp_path):
    store = SnapshotStore(tmp_path)
    save(store, 1)
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    stale = [
        f".writing-5-{gone.pid}",
        f".writing-5-{os.getpid()}",
        f".writing-6-{os.getpid()}-2",
        f".pruning-1-{gone.pid}",
        f".replaced-1-{gone.pid}",
    ]
    alive = [f".writing-5-{os.getppid()}", ".mine", "notes.txt", "01", "damaged-1"]
    for name in [*stale, *alive]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tensors.bin").write_bytes(b"x")
    store.begin(2).discard()
    assert names(store) == sorted(["1", *alive])
    assert store.steps() == [1]


def test_drafts_of_this_process_are_not_in_each_others_way(tmp_path):
    store = SnapshotStore(tmp_path)
    first, second, third = store.begin(1), store.begin(2), store.begin(2)
    second.commit(*contents(2))
    first.commit(*contents(1))
    third.discard()
    third.discard()
    assert names(store) == ["1", "2"]


def test_a_draft_that_was_dropped_is_cleared_away(tmp_path):
    store = SnapshotStore(tmp_path)
    store.begin(1).files.joinpath("half").write_bytes(b"x")
    gc.collect()
    draft = store.begin(2)
    assert names(store) == [f".writing-2-{os.getpid()}"]
    draft.discard()


def test_a_step_that_has_no_snapshot_is_said_with_those_that_have(tmp_path):
    store = SnapshotStore(tmp_path)
    save(store, 3)
    with pytest.raises(FileNotFoundError, match="no snapshot of step 4 .* one: 3"):
        store.load(4)
    with pytest.raises(ValueError, match="0 or more; got -1"):
        store.begin(-1)


def test_links_among_the_files_are_refused(tmp_path):
    store = SnapshotStore(tmp_path / "snapshots")
    draft = store.begin(1)
    (draft.files / "link").symlink_to(tmp_path)
    with pytest.raises(TypeError, match="link"):
        draft.commit({}, {}, {})
    assert names(store) == []
