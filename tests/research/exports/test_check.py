"""Fresh processes read what was exported; what predicts otherwise or cannot be read is named."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import subprocess
import sys

import keras
import pytest

from research import study
from research.configs import classification
from research.exports import fresh_process
from research.exports.check import check
from research.exports.write import write


@pytest.fixture
def in_this_process(monkeypatch):
    """What `check` has a fresh process do is done here, except where that process must not import our packages."""

    def done(command, *, input, **_):
        assert command == [sys.executable, fresh_process.__file__]
        printed = io.StringIO()
        monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        with contextlib.redirect_stdout(printed):
            fresh_process.main()
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", done)


def test_a_file_that_predicts_otherwise_or_cannot_be_read_is_named(in_this_process, tmp_path):
    settings = classification.get_config()
    settings.hidden = (20,)
    made = study.build(settings)
    written = write(made, tmp_path, ["weights", "keras", "h5"])
    other = keras.models.clone_model(made.model)
    other.save_weights(written["weights"])
    written["keras"].write_bytes(b"no zip")
    found = check(made, written)
    assert "differ" in found["weights"] and "cannot be loaded" in found["keras"] and found["h5"] <= fresh_process.TOLERANCE


def test_a_process_that_ends_with_an_error_is_named(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no such module\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    made = study.build(classification.get_config())
    found = check(made, write(made, tmp_path, ["weights"]))
    assert found == {"weights": "the process that was to read it ended with code 1 (ImportError: no such module)"}


def test_the_process_that_reads_the_saved_model_cannot_import_our_packages(tmp_path):
    fresh_process.save(tmp_path / "given.npz", [], [])
    order = {"files": {}, "given": str(tmp_path / "given.npz"), "modules": [], "names": [], "isolated": True}
    program = "import sys; sys.path.insert(0, sys.argv[1]); import fresh_process; fresh_process.main(); import research"
    folder = pathlib.Path(fresh_process.__file__).parent
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, folder], input=json.dumps(order), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "{}\n" and "import of research halted" in done.stderr
