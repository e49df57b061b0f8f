"""`runs.py` says what the snapshots of a run hold, and in what two differ."""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops.snapshots.diff import describe_arrays
from loops.snapshots.store import Best, SnapshotStore
from scripts import runs
from tests.scripts.programs import REPOSITORY, called

run = functools.partial(called, runs.program, "runs.py")


ARRAYS = {"model/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "model/bias": np.zeros(3, np.float32), "count": np.int64(7)}
STATE = {"progress": {"step": 5, "epoch": 1}, "hooks": [{"wait": 0}, {"best": None}], "empty": {}}


def save(workdir, step=5, arrays=ARRAYS, state=STATE, info=None, files=(), **policy):
    draft = SnapshotStore(workdir / "snapshots", **policy).begin(step)
    for name, content in dict(files).items():
        (draft.files / name).write_bytes(content)
    return draft.commit(arrays, state, info or {})


# snapshots


@pytest.fixture
def workdir(tmp_path):
    # An epoch of 100 steps: `Progress.epoch` counts from 0, the table from 1, as all that users read does.
    for step, loss in ((100, 0.5), (200, 0.25), (300, 0.75), (400, float("nan"))):
        info = {"epoch": step // 100 - 1, "time": 1.7e9 + step, "logs": {"loss": loss, "accuracy": 1 - loss}}
        save(tmp_path, step, info=info, keep_last=2, keep_best=Best("loss", "min"))
    return tmp_path


def test_the_table_says_what_each_snapshot_holds_and_why_it_is_kept(workdir):
    code, out, err = run("snapshots", workdir)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["step", "epoch", "written", "size", "kept", "as", "metrics"]
    rows = [re.split(r" {2,}", line.strip()) for line in lines[1:4]]
    assert [row[0] for row in rows] == ["200", "300", "400"]
    assert [row[1] for row in rows] == ["2", "3", "4"]
    assert all(re.fullmatch(r"2023-11-1\d \d\d:\d\d:\d\d", row[2]) for row in rows)
    assert [row[4] for row in rows] == ["best loss", "last 2", "newest"]
    assert rows[0][5] == "loss 0.25, accuracy 0.75"
    assert lines[4] == f"3 in {workdir / 'snapshots'}: 3 whole, 0 damaged, 0 set aside."
    assert run("snapshots", workdir / "snapshots") == (code, out, err)


def test_damaged_ones_are_shown_with_the_reason_and_left_alone(workdir):
    (workdir / "snapshots" / "300" / "tensors.bin").write_bytes(b"")
    os.rename(workdir / "snapshots" / "400", workdir / "snapshots" / "damaged-400")
    (workdir / "snapshots" / "damaged-50").mkdir()
    before = sorted(os.listdir(workdir / "snapshots"))
    code, out, _ = run("snapshots", workdir)
    assert code == 1
    assert re.search(r"^ *300 .*DAMAGED: tensors.bin has 0 bytes instead of \d+$", out, re.MULTILINE)
    assert re.search(r"^Set aside: damaged-400 \(whole, \d+ B\)$", out, re.MULTILINE)
    assert re.search(r"^Set aside: damaged-50 \(manifest.json is missing\)$", out, re.MULTILINE)
    assert out.endswith("1 whole, 1 damaged, 2 set aside.\n")
    assert sorted(os.listdir(workdir / "snapshots")) == before


def test_snapshots_without_info_are_listed_too(tmp_path):
    save(tmp_path, 5)
    code, out, _ = run("snapshots", tmp_path)
    assert code == 0 and re.search(r"^ *5 +\d{4}-", out, re.MULTILINE)


def test_one_that_is_deleted_meanwhile_is_not_called_damaged(workdir, monkeypatch):
    verify = SnapshotStore.verify

    def late(store, step):
        if step < 400:
            shutil.rmtree(store.directory / str(step))
        return verify(store, step)

    monkeypatch.setattr(SnapshotStore, "verify", late)
    code, out, _ = run("snapshots", workdir)
    assert code == 0 and "1 whole, 0 damaged" in out


# diff


def differ(tmp_path, *flags, **changed):
    save(tmp_path / "a")
    save(tmp_path / "b", **changed)
    return run("diff", tmp_path / "a", tmp_path / "b", *flags)


def test_equal_snapshots_are_equal_whatever_their_info(tmp_path):
    code, out, err = differ(tmp_path, info={"time": 3.0})
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"A: {tmp_path / 'a' / 'snapshots' / '5'} (step 5, {out.split('step 5, ')[1].split(')')[0]})"
    assert out.splitlines()[-1] == "Equal, bit for bit (arrays: 3, values of state: 5, files: 0)."


def test_what_depends_on_when_a_thread_has_written_a_file_is_left_out_unless_asked_for(tmp_path):
    def state(best):
        return {**STATE, "hooks": {"ModelCheckpoint_2": {"best": 0.5, "kept": {"best": best, "files": []}, "in_flight": None}}}

    save(tmp_path / "a", state=state(0.5))
    save(tmp_path / "b", state=state(0.75))
    code, out, _ = run("diff", tmp_path / "a", tmp_path / "b")
    assert code == 0 and "Equal, bit for bit" in out
    code, out, _ = run("diff", tmp_path / "a", tmp_path / "b", "--incidental")
    assert code == 1 and "'kept'" in out


CHANGES = [
    ({"count": np.int64(-9)}, "array 'count' differs in 1 of 1 values, by at most 16; the first: 7 in A, -9 in B"),
    (
        {"model/kernel": np.array([[0, 1, 2], [3, np.nextafter(np.float32(4), np.float32(5)), 5]], np.float32)},
        "array 'model/kernel' differs in 1 of 6 values, by at most 4.77e-07 (1 ULP); the first at [1, 1]: 4.0 in A, 4.0000005 in B",
    ),
    (
        {"model/bias": np.array([0, -0.0, np.nan], np.float32)},
        "array 'model/bias' differs in 2 of 3 values, by at most 0 (0 ULPs), 1 of them NaN in one only; "
        "the first at [1]: 0.0 in A, -0.0 in B",
    ),
    ({"model/bias": np.zeros(4, np.float32)}, "array 'model/bias' has shape [3] in A and [4] in B"),
    ({"model/bias": np.zeros(3, np.float64)}, "array 'model/bias' has dtype <f4 in A and <f8 in B"),
    ({"more": np.zeros(1)}, "array 'more' is in B only"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_the_first_array_that_differs_is_named_with_how_much(tmp_path, change, said):
    code, out, _ = differ(tmp_path, arrays={**ARRAYS, **change})
    assert code == 1
    assert f"\nFirst: {said}.\n" in out
    assert out.splitlines()[-1] == f"In all, 1 of {3 + ('more' in change)} arrays, 0 of 5 values of state, 0 of 0 files differ."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"progress": {"step": 6, "epoch": 1}}, "state['progress']['step'] is 5 in A and 6 in B"),
        ({"progress": {"step": 5.0, "epoch": 1}}, "state['progress']['step'] is 5 in A and 5.0 in B"),
        ({"hooks": [{"wait": False}, {"best": None}]}, "state['hooks'][0]['wait'] is 0 in A and false in B"),
        ({"empty": []}, "state['empty'] is {} in A and [] in B"),
        ({"new": "x"}, "state['new'] is in B only: \"x\""),
    ],
)
def test_the_first_value_of_state_that_differs_is_named(tmp_path, change, said):
    code, out, _ = differ(tmp_path, state={**STATE, **change})
    assert code == 1 and f"\nFirst: {said}.\n" in out


def test_nan_in_the_state_is_equal_to_itself(tmp_path):
    save(tmp_path / "a", state={"best": math.nan})
    save(tmp_path / "b", state={"best": math.nan})
    assert run("diff", tmp_path / "a", tmp_path / "b")[0] == 0


def test_files_are_compared(tmp_path):
    code, out, _ = differ(tmp_path, files={"iterator": b"123"})
    assert code == 1 and "First: file 'files/iterator' is in B only." in out and "1 of 1 files differ" in out
    save(tmp_path / "a", 6, files={"iterator": b"1234"})
    code, out, _ = run("diff", tmp_path / "a" / "snapshots" / "6", tmp_path / "b" / "snapshots" / "5")
    assert code == 1 and "file 'files/iterator' has other bytes (4 in A, 3 in B)" in out


def test_all_says_everything(tmp_path):
    code, out, _ = differ(tmp_path, "--all", arrays={**ARRAYS, "model/bias": np.ones(3, np.float32), "count": np.int64(8)}, state={})
    assert code == 1
    assert [line.split(" ")[1] for line in out.splitlines()[2:4]] == ["'model/bias'", "'count'"]
    assert sum(line.startswith("state") for line in out.splitlines()) == 5 + 1  # and that there is nothing at all in B
    assert "First" not in out


def test_the_newest_whole_one_of_a_workdir_is_compared(tmp_path):
    save(tmp_path / "a", 5)
    save(tmp_path / "b", 5)
    flipped = save(tmp_path / "b", 6) / "tensors.bin"
    flipped.write_bytes(b"\x01" + flipped.read_bytes()[1:])
    code, out, err = run("diff", tmp_path / "a", tmp_path / "b")
    assert code == 0 and "is damaged: the bytes of 'model/kernel'" in err
    assert sorted(os.listdir(tmp_path / "b" / "snapshots")) == ["5", "6"]


def test_a_copy_under_another_name_can_be_compared(tmp_path):
    path = save(tmp_path / "a")
    shutil.copytree(path, tmp_path / "before")
    assert run("diff", path, tmp_path / "before")[0] == 0


def brute_force_ulps(a, b, dtype):
    """Steps from one number to the other, by walking."""
    low, high = sorted([a, b])
    steps = 0
    while low < high:
        low, steps = np.nextafter(low, dtype(np.inf)), steps + 1
    return steps


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(-2, 2, width=16) | st.integers(0, 40).map(lambda n: n * 2.0**-24), st.integers(0, 40))
def test_ulps_are_the_steps_between_two_numbers(start, steps):
    a = np.float16(start)
    b = a
    for _ in range(steps):
        b = np.nextafter(b, np.float16(-np.inf))
    if a.tobytes() == b.tobytes():
        return
    said = re.search(r"\((\d+) ULPs?\)", describe_arrays(np.array([a]), np.array([b])))
    assert int(said[1]) == brute_force_ulps(a, b, np.float16) == steps


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float64, ">f4", np.complex64])
def test_ulps_of_every_kind_of_float(dtype):
    zeros = np.zeros((2, 2), dtype)
    data = bytearray(zeros.tobytes())
    # Two steps from zero: 2 in the lowest byte of the third number.
    itemsize = zeros.dtype.itemsize
    data[2 * itemsize + (itemsize - 1 if dtype == ">f4" else 0)] = 2
    said = describe_arrays(zeros, np.frombuffer(bytes(data), zeros.dtype).reshape(2, 2))
    assert said.startswith("1 of 4 values, by at most ") and "(2 ULPs); the first at [1, 0]: " in said


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.int8([-128]), np.int8([127]), "by at most 255;"),
        (np.uint64([0]), np.uint64([2**64 - 1]), f"by at most {2**64 - 1:,};"),
        (np.array([True]), np.array([False]), "1 of 1 values; the first at [0]: True in A, False in B"),
        (np.array(["a", "b"]), np.array(["a", "c"]), "1 of 2 values; the first at [1]: 'b' in A, 'c' in B"),
        (np.array([b"a", b"x" * 99], object), np.array([b"a", b"y"], object), "1 of 2 values; the first at [1]: b'xxx"),
        (np.float32([np.inf, 1]), np.float32([1, 1]), "1 of 2 values, 1 of them by infinity; the first at [0]: inf in A, 1.0 in B"),
        (np.array([1], ml_dtypes.int4), np.array([-1], ml_dtypes.int4), "1 of 1 values; the first at [0]: 1 in A, -1 in B"),
    ],
)
def test_how_other_kinds_of_values_differ(a, b, said):
    assert said in describe_arrays(a, b)


# Misuse, and how it starts.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Say what to do: list FOLDER, best FOLDER, compare A B ..., remove A ..., snapshots WORKDIR or diff A B;"),
        (["inspect", "x"], "There is no command 'inspect': say list FOLDER, "),
        (["snapshots"], "snapshots takes WORKDIR; got nothing"),
        (["diff", "x"], "diff takes A B; got x"),
        (["snapshots", "{tmp}/nowhere"], "There is no folder"),
        (["snapshots", "{tmp}"], "There are no snapshots in"),
        (["diff", "{tmp}", "{tmp}"], "There are no snapshots in"),
        (["diff", "{tmp}/bad/snapshots/5", "{tmp}/bad"], "is damaged: manifest.json is missing"),
        (["diff", "{tmp}/bad", "{tmp}/bad"], "None of the snapshots in"),
        (["diff", "a", "b", "--every"], "--help"),
    ],
)
def test_misuse_gets_a_sentence(tmp_path, arguments, said):
    (save(tmp_path / "bad") / "manifest.json").unlink()
    code, out, err = run(*(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert code == 2 and said in err and out == ""
    assert err.splitlines()[-1].startswith("runs.py: ")


def test_help_says_how():
    code, out, _ = run("--help")
    assert code == 0 and "python scripts/runs.py snapshots" in out and "--[no]all" in out


def test_it_starts_without_tensorflow(tmp_path):
    save(tmp_path)
    check = "import atexit, sys; atexit.register(lambda: print('tensorflow' in sys.modules)); import runpy; "
    check += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", check, "scripts/runs.py", "diff", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2:] == ["Equal, bit for bit (arrays: 3, values of state: 5, files: 0).", "False"]
