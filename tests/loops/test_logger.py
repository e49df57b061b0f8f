"""What the library says is printed as it is, once, and can be routed and silenced through the logger "tapeloops"."""

from __future__ import annotations

import contextlib
import io
import logging
import pathlib
import subprocess
import sys
import threading

import pytest

from loops.messages import LOGGER, alert, say, warn

REPOSITORY = pathlib.Path(__file__).parents[2]

logger = logging.getLogger(LOGGER)


@pytest.fixture
def restored():
    level, propagates, handlers = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.propagate, logger.handlers[:] = propagates, handlers


def test_lines_are_printed_as_they_are(capsys):
    say("\nStep 1: 100% of %s {}")
    say("Resuming\n  note: this")
    warn("Warning: that")
    alert("The run did not come to an end")
    printed = capsys.readouterr()
    assert printed.out == "\nStep 1: 100% of %s {}\nResuming\n  note: this\nWarning: that\n"
    assert printed.err == "The run did not come to an end\n"


def test_the_stream_is_that_of_the_moment():
    with contextlib.redirect_stdout(io.StringIO()) as first:
        say("a")
    with contextlib.redirect_stdout(io.StringIO()) as second:
        say("b")
    assert (first.getvalue(), second.getvalue()) == ("a\n", "b\n")


def test_a_level_silences_what_is_below(capsys, restored):
    logger.setLevel(logging.WARNING)
    say("a")
    warn("b")
    logger.setLevel(logging.CRITICAL)
    warn("c")
    alert("d")
    assert capsys.readouterr() == ("b\n", "")


def test_a_root_logger_with_handlers_shows_no_line_a_second_time(capsys):
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger().addHandler(handler)
    try:
        say("once")
    finally:
        logging.getLogger().removeHandler(handler)
    assert capsys.readouterr() == ("once\n", "")


def test_lines_can_be_routed_to_the_root_logger(capsys, caplog, restored):
    logger.handlers.clear()
    logger.propagate = True
    say("a")
    warn("b")
    assert capsys.readouterr() == ("", "")
    assert caplog.record_tuples == [(LOGGER, logging.INFO, "a"), (LOGGER, logging.WARNING, "b")]
    assert {record.filename for record in caplog.records} == {"test_logger.py"}


def test_a_thread_that_is_stuck_in_stdout_does_not_keep_another_from_stderr(capsys, monkeypatch):
    stuck, go_on = threading.Event(), threading.Event()

    class Blocked(io.StringIO):
        def write(self, text):
            stuck.set()
            go_on.wait(60)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Blocked())
    thread = threading.Thread(target=say, args=("a",))
    thread.start()
    assert stuck.wait(60)
    alert("b")
    assert capsys.readouterr().err == "b\n" and thread.is_alive()
    go_on.set()
    thread.join()


PROGRAM = """
import importlib.util, logging, sys
sys.modules["loops"] = importlib.util.module_from_spec(importlib.util.find_spec("loops"))
logger = logging.getLogger("tapeloops")
{before}
from loops.messages import say, warn
say("said")
warn("warned")
"""


@pytest.mark.parametrize(
    ("before", "out", "err"),
    [
        ("", "said\nwarned\n", ""),
        ("logging.basicConfig(level=0)", "said\nwarned\n", ""),
        ("logger.setLevel(logging.WARNING)", "warned\n", ""),
        ("logger.addHandler(logging.StreamHandler())", "", "said\nwarned\n"),
    ],
)
def test_what_was_set_up_before_the_import_stands(before, out, err):
    program = [sys.executable, "-c", PROGRAM.format(before=before)]
    done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, out, err)
