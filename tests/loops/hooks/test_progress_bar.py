"""The progress bar: what people see in a terminal, a log and a notebook, and that it never holds up the loop."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import types

import numpy as np
import pytest

from loops import triggers
from loops.engine.progress import Progress
from loops.engine.timing import Timing
from loops.hooks._progress_output import Part, columns, duration, encodable, fit, number
from loops.hooks.progress_bar import ProgressBar


class FakeLoop:
    """A loop of fixed speed on a clock of its own."""

    def __init__(self, *, epochs=None, steps=None, steps_per_epoch=None):
        self.progress = Progress(steps_per_epoch=steps_per_epoch)
        self.epochs, self.steps = epochs, steps
        self.outcome = self.stop_reason = None
        self.now, self.timing = 1000.0, Timing()

    def clock(self):
        return self.now


class FakeWindow:
    def __init__(self, logs, reads):
        self._logs, self._reads = logs, reads

    @property
    def logs(self):
        self._reads.append(dict(self._logs))
        return self._logs


def drive(bar, loop, *, epochs, steps, step_seconds, logs, val_logs=None, val_seconds=0.0, last_steps=None):
    """Runs `epochs` epochs of `steps` steps; the last has only `last_steps`, if given. Returns the looks that read metrics."""
    reads = []
    trigger = triggers.parse(bar.every)
    bar.on_train_begin(loop)
    trigger.start(loop.now)
    unseen = 0
    for epoch in range(epochs):
        loop.progress.begin_epoch()
        bar.on_epoch_begin(loop)
        cut = last_steps is not None and epoch == epochs - 1
        for step in range(last_steps if cut else steps):
            loop.progress.advance(1, 1)
            loop.now += step_seconds
            unseen += 1
            if step == steps - 1:
                loop.progress.end_epoch()
            if trigger.due(loop.progress, loop.now):
                bar.on_window_end(loop, FakeWindow(logs(loop.progress), reads))
                trigger.fired(loop.now)
                unseen = 0
        if not cut:
            loop.progress.steps_per_epoch = steps
            ends = dict(logs(loop.progress))
            if val_logs:
                bar.on_evaluate_begin(loop, "val")
                loop.now += val_seconds
                bar.on_evaluate_end(loop, "val", val_logs)
                ends.update(val_logs)
            bar.on_epoch_end(loop, ends)
    if unseen:
        bar.on_window_end(loop, FakeWindow(logs(loop.progress), reads))
    loop.outcome = loop.outcome or "finished"
    bar.on_train_end(loop)
    return reads


class Screen:
    """A terminal of fixed width: carriage return, new line, and lines that wrap."""

    def __init__(self, width):
        self.width, self.lines, self.column, self.wrapped = width, [[]], 0, 0

    def feed(self, text):
        for char in text:
            if char == "\r":
                self.column = 0
            elif char == "\n":
                self.lines.append([])
                self.column = 0
            else:
                if self.column >= self.width:
                    self.wrapped += 1
                    self.lines.append([])
                    self.column = 0
                line = self.lines[-1]
                line += " " * (self.column + 1 - len(line))
                line[self.column] = char
                self.column += 1
        return self

    @property
    def text(self):
        return ["".join(line).rstrip() for line in self.lines if "".join(line).strip()]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")


def loss(progress):
    return {"loss": 1.0 / progress.step}


def test_a_terminal_ends_with_one_line_per_epoch(wide):
    stream = Terminal()
    loop = FakeLoop(epochs=2)
    drive(ProgressBar(stream=stream), loop, epochs=2, steps=100, step_seconds=0.05, logs=loss, val_logs={"val_loss": 0.5}, val_seconds=2.0)
    screen = Screen(160).feed(stream.getvalue())
    assert screen.wrapped == 0
    first, second = screen.text
    assert first.startswith("Epoch 1/2") and second.startswith("Epoch 2/2")
    assert "loss 0.0100" in first and "val_loss 0.5000" in first
    assert "100 steps in 7.0s" in first and "20 steps/s" in first and "7.2s left" in first
    assert "left" not in second


def test_a_running_line_shows_the_true_step_and_what_is_left(wide):
    stream = Terminal()
    drive(ProgressBar(stream=stream), FakeLoop(epochs=1, steps_per_epoch=100), epochs=1, steps=100, step_seconds=0.1, logs=loss)
    shown = [line.strip() for line in stream.getvalue().split("\r")]
    at_50 = next(line for line in shown if " 50/100 " in line)
    assert "10 steps/s" in at_50 and "5.0s left" in at_50 and "loss 0.0200" in at_50
    assert at_50.count("━") == at_50.count("─")


def test_it_reads_metrics_at_most_twice_a_second(wide):
    loop = FakeLoop(epochs=3)
    reads = drive(ProgressBar(stream=Terminal()), loop, epochs=3, steps=2000, step_seconds=0.001, logs=loss)
    assert len(reads) <= 2 * 6.0 + 1


def test_a_terminal_skips_epochs_of_a_fast_loop_but_never_the_last(wide):
    stream = Terminal()
    drive(ProgressBar(stream=stream), FakeLoop(epochs=2000), epochs=2000, steps=2, step_seconds=0.001, logs=loss)
    lines = Screen(160).feed(stream.getvalue()).text
    assert lines[-1].startswith("Epoch 2000/2000")
    assert len(lines) <= 20 + 10 * 4 + 2
    assert [line.split()[1] for line in lines[:3]] == ["1/2000", "2/2000", "3/2000"]


def test_a_terminal_shows_every_epoch_of_a_short_or_slow_run(wide):
    for epochs, step_seconds in ((15, 0.001), (100, 0.11)):
        stream = Terminal()
        drive(ProgressBar(stream=stream), FakeLoop(epochs=epochs), epochs=epochs, steps=1, step_seconds=step_seconds, logs=loss)
        assert len(Screen(160).feed(stream.getvalue()).text) == epochs


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    logs = {"loss": 0.25, **{f"metric_{i}": i / 7 for i in range(8)}}
    val_logs = {f"val_{name}": value for name, value in logs.items()}
    drive(ProgressBar(stream=stream), FakeLoop(epochs=2), epochs=2, steps=30, step_seconds=0.1, logs=lambda p: logs, val_logs=val_logs)
    screen = Screen(width).feed(stream.getvalue())
    assert screen.wrapped == 0 and len(screen.text) == 2
    assert "…" in screen.text[-1]
    if width >= 60:
        assert "loss 0.2500" in screen.text[-1] and "val_loss 0.2500" in screen.text[-1]


def test_the_usual_line_keeps_its_metrics_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    val_logs = {"val_accuracy": 0.5, "val_loss": 0.5}
    loop = FakeLoop(epochs=100)
    drive(
        ProgressBar(stream=stream),
        loop,
        epochs=1,
        steps=5,
        step_seconds=1,
        logs=lambda p: {"accuracy": 0.5, "loss": 1.5},
        val_logs=val_logs,
    )
    (line,) = Screen(80).feed(stream.getvalue()).text
    for metric in ("accuracy 0.5000", "loss 1.5000", "val_accuracy 0.5000", "val_loss 0.5000"):
        assert metric in line


def test_a_log_has_a_whole_line_per_epoch_and_no_carriage_return():
    stream = io.StringIO()
    val_logs = {"val_loss": 0.25}
    drive(ProgressBar(stream=stream), FakeLoop(epochs=300), epochs=300, steps=2, step_seconds=0.001, logs=loss, val_logs=val_logs)
    assert "\r" not in stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] if line.split()[1] != "/300" else "" for line in lines] == [f"{i}/300" for i in range(1, 301)]
    assert all("loss" in line and "val_loss 0.2500" in line for line in lines)


def test_a_log_hears_of_a_long_epoch_every_30_seconds():
    stream = io.StringIO()
    loop = FakeLoop(epochs=1, steps_per_epoch=1000)
    reads = drive(ProgressBar(stream=stream), loop, epochs=1, steps=1000, step_seconds=0.125, logs=loss)
    lines = stream.getvalue().splitlines()
    assert [re.search(r"(\d+)/1000 ", line).group(1) for line in lines[:-1]] == ["244", "484", "724", "964"]
    assert "1000 steps in 2:05" in lines[-1]
    assert len(reads) == 5


def test_the_30_seconds_of_a_log_count_from_the_beginning_of_the_epoch():
    """Epochs of 20 seconds get their own line only; one of 50 seconds, wherever it begins, hears of itself after 30."""
    stream = io.StringIO()
    drive(ProgressBar(stream=stream), FakeLoop(epochs=4), epochs=4, steps=20, step_seconds=1.0, logs=loss)
    assert len(stream.getvalue().splitlines()) == 4
    stream = io.StringIO()
    drive(ProgressBar(stream=stream), FakeLoop(epochs=3), epochs=3, steps=50, step_seconds=1.0, logs=loss)
    shown = [re.search(r"(\d+)(/50| steps)", line).group(1) for line in stream.getvalue().splitlines()]
    assert shown == ["31", "50", "30", "50", "30", "50"]


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_an_epoch_that_a_resumed_run_ends_tells_its_whole_time(wide, kind):
    loop, stream = FakeLoop(epochs=1, steps_per_epoch=10), kind()
    (first := ProgressBar(stream=kind())).on_train_begin(loop)
    first.on_epoch_begin(loop)
    loop.now += 40.0
    loop.progress.advance(8, 8)
    state = json.loads(json.dumps(first.state_dict()))

    later = FakeLoop(epochs=1)
    later.progress.load_state_dict(loop.progress.state_dict())
    later.now = 5.0
    (second := ProgressBar(stream=stream)).on_train_begin(later)
    second.load_state_dict(state)
    later.now += 10.0
    later.progress.advance(2, 2)
    later.progress.end_epoch()
    second.on_epoch_end(later, {"loss": 0.5})
    second.on_train_end(later)
    line = stream.getvalue()
    assert "10 steps in 50s" in line and "0.2 steps/s" in line


def test_verbose_2_is_one_line_per_epoch_also_in_a_terminal(wide):
    stream = Terminal()
    bar = ProgressBar(2, stream=stream)
    drive(bar, FakeLoop(epochs=2), epochs=2, steps=1000, step_seconds=0.1, logs=loss)
    assert len(stream.getvalue().splitlines()) == 2 and "\r" not in stream.getvalue()


def test_verbose_0_shows_nothing():
    stream = io.StringIO()
    drive(ProgressBar(0, stream=stream), FakeLoop(epochs=1), epochs=1, steps=10, step_seconds=1, logs=loss)
    assert stream.getvalue() == ""


def test_unknown_length_counts_steps_until_it_is_known(wide):
    stream = Terminal()
    drive(ProgressBar(stream=stream), FakeLoop(epochs=2), epochs=2, steps=20, step_seconds=0.25, logs=loss)
    first, second = stream.getvalue().split("\n")[:2]
    assert "Epoch 1/2  10 steps  loss" in first and "━" not in first
    assert "10/20" in second and "━" in second


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
@pytest.mark.parametrize("verbose", ["auto", 2])
def test_a_run_that_ends_in_mid_epoch_shows_how_far_it_came(wide, kind, verbose):
    stream = kind()
    loop = FakeLoop(steps=130, steps_per_epoch=100)
    drive(ProgressBar(verbose, stream=stream), loop, epochs=2, steps=100, step_seconds=0.01, logs=loss, last_steps=30)
    first, second = Screen(160).feed(stream.getvalue()).text
    assert first.startswith("Epoch 1 ") and "100 steps" in first
    assert second.startswith("Epoch 2 ") and "30/100" in second and f"loss {1 / 130:.4f}" in second


@pytest.mark.parametrize(
    ("outcome", "reason", "said"),
    [
        ("stopped", "val_loss did not improve for 3 epochs", "Stopped at step 4: val_loss did not improve for 3 epochs"),
        ("interrupted", None, "Interrupted at step 4"),
        ("finished", None, None),
        ("failed", None, None),
    ],
)
def test_it_says_why_a_run_ended_early(outcome, reason, said):
    stream = io.StringIO()
    loop = FakeLoop(epochs=9)
    loop.outcome, loop.stop_reason = outcome, reason
    drive(ProgressBar(stream=stream), loop, epochs=2, steps=2, step_seconds=0.1, logs=loss)
    lines = stream.getvalue().splitlines()
    assert lines[2:] == ([said] if said else [])


def test_plain_characters_where_others_cannot_be_written(wide):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="")
    stream.isatty = lambda: True
    drive(
        ProgressBar(stream=stream),
        FakeLoop(epochs=1, steps_per_epoch=20),
        epochs=1,
        steps=20,
        step_seconds=0.2,
        logs=lambda p: {"größe": 1},
    )
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "====" in text and "----" in text and "gr??e 1.0000" in text


def test_a_notebook_updates_one_output_per_epoch(monkeypatch):
    outputs = []

    class Handle:
        def __init__(self, content):
            self.content = [content["text/plain"]]
            outputs.append(self.content)

        def update(self, content, raw):
            self.content.append(content["text/plain"])

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = type("ZMQInteractiveShell", (), {})
    display = types.ModuleType("IPython.display")
    display.display = lambda content, raw, display_id: Handle(content)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    drive(ProgressBar(), FakeLoop(epochs=2, steps_per_epoch=20), epochs=2, steps=20, step_seconds=0.1, logs=loss)
    assert len(outputs) == 2
    assert "10/20" in "".join(outputs[1]) and "20 steps in 2.0s" in outputs[1][-1]
    assert all("\r" not in text and "\n" not in text for texts in outputs for text in texts)


def test_vector_metrics_are_shown_short():
    stream = io.StringIO()
    logs = {"f1": np.array([0.5, 0.25]), "recall": np.arange(5.0)}
    drive(ProgressBar(stream=stream), FakeLoop(epochs=1), epochs=1, steps=1, step_seconds=1, logs=lambda p: logs)
    assert "f1 [0.5000 0.2500]" in stream.getvalue() and "recall [0.0000 1.0000 2.0000 …]" in stream.getvalue()


def test_evaluation_time_is_not_counted_as_training_speed():
    stream = io.StringIO()
    drive(
        ProgressBar(stream=stream),
        FakeLoop(epochs=1),
        epochs=1,
        steps=100,
        step_seconds=0.1,
        logs=loss,
        val_logs={"val_loss": 1.0},
        val_seconds=90,
    )
    assert "100 steps in 1:40" in stream.getvalue() and "10 steps/s" in stream.getvalue()


def test_a_terminal_says_that_it_evaluates(wide):
    stream = Terminal()
    drive(
        ProgressBar(stream=stream),
        FakeLoop(epochs=1),
        epochs=1,
        steps=13,
        step_seconds=0.2,
        logs=loss,
        val_logs={"val_loss": 1.0},
        val_seconds=90,
    )
    assert "evaluating val" in stream.getvalue()
    assert "evaluating" not in Screen(160).feed(stream.getvalue()).text[0]


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
@pytest.mark.parametrize("verbose", ["auto", 2])
def test_the_time_of_compilation_is_not_taken_for_the_speed(wide, kind, verbose):
    stream, loop = kind(), FakeLoop(epochs=11)
    bar = ProgressBar(verbose, stream=stream)

    def logs(progress):
        loop.now += 60.0 * (progress.step == 1)
        return {"loss": 1.0}

    drive(bar, loop, epochs=1, steps=100, step_seconds=0.6, logs=logs)
    line = Screen(160).feed(stream.getvalue()).text[-1]
    assert "100 steps in 2:00" in line and "1.67 steps/s" in line and "10:00 left" in line


def test_it_can_end_without_having_begun():
    loop, stream = FakeLoop(epochs=1), io.StringIO()
    loop.outcome = "failed"
    ProgressBar(stream=stream).on_train_end(loop)
    assert stream.getvalue() == ""


def test_wrong_verbosity_is_named():
    with pytest.raises(ValueError, match="takes 0, 1, 2 or \"auto\"; got 'loud'"):
        ProgressBar("loud")


def test_wide_characters_count_twice():
    assert columns("損失 0.5") == 8
    assert fit([Part("損失 0.5000", 1, True), Part("精度 0.9000", 2, True)], 20) == "損失 0.5000  …"


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0ms"),
        (0.0994, "99ms"),
        (0.0996, "0.1s"),
        (9.94, "9.9s"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.7, "1:00:00"),
        (86_400, "24:00:00"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_numbers_never_hide_how_small_or_large_they_are():
    assert [number(v) for v in (1, 99.99999, 123456.0, -0.5, 1e-9, float("inf"))] == [
        "1.0000",
        "100.0000",
        "1.23e+05",
        "-0.5000",
        "1.00e-09",
        "inf",
    ]


def test_encodable_leaves_what_can_be_written():
    assert encodable("loss ━", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == "loss ━"


def test_the_width_of_a_real_terminal_is_asked_for(monkeypatch):
    import fcntl
    import struct
    import termios

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    with os.fdopen(follower, "w", encoding="utf-8") as stream:
        drive(
            ProgressBar(stream=stream),
            FakeLoop(epochs=1, steps_per_epoch=20),
            epochs=1,
            steps=20,
            step_seconds=0.1,
            logs=lambda p: {"l": 1.0},
        )
        written = os.read(leader, 100_000).decode()
    os.close(leader)
    lines = re.split(r"[\r\n]+", written)
    assert max(map(len, lines)) == 49
