"""Writes lines about progress: to a terminal, which can rewrite its last line; to a log, which only grows; to a notebook cell.

`loops.hooks.ProgressBar` decides what the lines say; this module knows neither steps nor epochs.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple, TextIO

__all__ = ["LogOutput", "NotebookOutput", "Output", "Part", "Silence", "TerminalOutput", "duration", "fit", "number", "output_for"]

_ASCII = str.maketrans({"━": "=", "─": "-", "…": "."})
_NARROWEST_BAR, _WIDEST_BAR = 8, 30
_IMPORTANT = 2  # parts with this priority or a smaller one are worth narrower spaces between them


class Part(NamedTuple):
    """A piece of a line.

    Attributes:
        text: what it says; empty for a bar.
        priority: when the line gets too long, the part with the largest number is left out first.
        is_metric: whether an ellipsis takes its place when it is left out.
        fraction: what a bar shows, from 0 to 1.
    """

    text: str
    priority: int
    is_metric: bool = False
    fraction: float | None = None


def fit(parts: Sequence[Part], width: int | None = None) -> str:
    """Joins parts to a line of at most `width` columns. A bar takes the columns that are left over; without a width no bar is drawn.

    Example:
        >>> fit([Part("Epoch 1/2", 0), Part("loss 0.5000", 1, True), Part("accuracy 0.9000", 2, True)], 28)
        'Epoch 1/2  loss 0.5000  …'
    """
    if width is None:
        return "  ".join(part.text for part in parts if part.fraction is None)
    separator = "  "
    kept = _choose(parts, width, separator)
    if len(kept) < len(parts):
        # With one space instead of two between the parts, an important part may fit that does not fit otherwise.
        closer = _choose(parts, width, " ")
        if sum(parts[i].priority <= _IMPORTANT for i in closer) > sum(parts[i].priority <= _IMPORTANT for i in kept):
            separator, kept = " ", closer
    bar = width - columns(_join(parts, kept, separator, 0))
    line = _join(parts, kept, separator, min(_WIDEST_BAR, bar))
    return line if columns(line) <= width else line[: max(0, width - 1)] + "…"


def _choose(parts: Sequence[Part], width: int, separator: str) -> set[int]:
    """Indices of the most important parts that fit side by side."""
    kept: set[int] = set(range(len(parts)))
    if columns(_join(parts, kept, separator, _NARROWEST_BAR)) <= width:
        return kept
    kept = set()
    for i in sorted(range(len(parts)), key=lambda i: parts[i].priority):
        if columns(_join(parts, kept | {i}, separator, _NARROWEST_BAR)) <= width:
            kept.add(i)
    return kept


def _join(parts: Sequence[Part], kept: set[int], separator: str, bar: int) -> str:
    pieces: list[str] = []
    for i, part in enumerate(parts):
        if i in kept:
            pieces.append(part.text if part.fraction is None else _bar(part.fraction, bar))
        elif part.is_metric and (not pieces or pieces[-1] != "…"):
            pieces.append("…")
    return separator.join(pieces)


def _bar(fraction: float, width: int) -> str:
    full = round(min(max(fraction, 0.0), 1.0) * width)
    return "━" * full + "─" * (width - full)


def columns(text: str) -> int:
    """Columns that a terminal needs for `text`."""
    return len(text) if text.isascii() else sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def number(value: float) -> str:
    """A metric as text, with about four digits.

    Example:
        >>> [number(v) for v in (0.12345, 0.0, 1234.5, 1e-5, float("nan"))]
        ['0.1235', '0.0000', '1234.5', '1.00e-05', 'nan']
    """
    size = abs(value)
    if size != size or size == float("inf"):
        return str(float(value))
    if size >= 1e5 or 0.0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.4f}" if size < 100.0 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """A duration as text.

    Example:
        >>> [duration(s) for s in (0.04, 8.26, 75, 4000)]
        ['40ms', '8.3s', '1:15', '1:06:40']
    """
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Output:
    """Base class of the outputs; shows nothing by itself.

    Attributes:
        seconds: how often to call `show`; infinity if `show` shows nothing.
        rewrites: whether the line that `show` shows is replaced by the next one.
    """

    seconds = math.inf
    rewrites = False

    def show(self, parts: Sequence[Part]) -> None:
        """Shows a line about an epoch that is running."""

    def finish(self, parts: Sequence[Part]) -> None:
        """Shows the line about an epoch that has ended; it replaces the lines that `show` showed, if the output can rewrite."""

    def close(self) -> None:
        """Ends the last line."""


class Silence(Output):
    """Shows nothing."""


class LogOutput(Output):
    """Writes whole lines and rewrites none: for files, pipes and terminals that cannot move the cursor.

    Args:
        stream: where to write.
        seconds: time between two lines of one epoch, infinity for one line per epoch.
    """

    def __init__(self, stream: TextIO, seconds: float = 30.0):
        self._stream, self.seconds = stream, seconds

    def show(self, parts: Sequence[Part]) -> None:
        self.finish(parts)

    def finish(self, parts: Sequence[Part]) -> None:
        self._stream.write(encodable(fit(parts), self._stream) + "\n")
        self._stream.flush()


class TerminalOutput(Output):
    """Rewrites the last line, and never writes beyond the width of the terminal.

    Args:
        stream: where to write.
    """

    seconds = 0.5
    rewrites = True

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._shown = 0

    def show(self, parts: Sequence[Part]) -> None:
        self._rewrite(fit(parts, self._width()), "")

    def finish(self, parts: Sequence[Part]) -> None:
        self._rewrite(fit(parts, self._width()), "\n")

    def close(self) -> None:
        if self._shown:
            self._stream.write("\n")
            self._shown = 0
        self._stream.flush()

    def _rewrite(self, line: str, end: str) -> None:
        line = encodable(line, self._stream)
        rest = " " * max(0, self._shown - columns(line))
        self._stream.write("\r" * bool(self._shown) + line + rest + end)
        self._stream.flush()
        self._shown = 0 if end else columns(line)

    def _width(self) -> int:
        try:
            width = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError, AttributeError):
            width = 0
        # Some terminals wrap the line when its last column is filled.
        return (width or int(os.environ.get("COLUMNS") or 80)) - 1


class NotebookOutput(Output):
    """One output of a notebook cell for each line, updated in place."""

    seconds = 0.5
    rewrites = True

    def __init__(self) -> None:
        self._display = importlib.import_module("IPython.display").display  # only there in a notebook
        self._handle: Any = None

    def show(self, parts: Sequence[Part]) -> None:
        content = {"text/plain": fit(parts, 110)}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def finish(self, parts: Sequence[Part]) -> None:
        self.show(parts)
        self._handle = None


def encodable(line: str, stream: TextIO) -> str:
    """Replaces what the encoding of `stream` cannot represent: box characters by plain ones, all others by question marks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return line.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return line


def output_for(stream: TextIO | None, verbose: int | str) -> Output:
    """The output that suits a stream.

    Args:
        stream: where to write; None: the cell in a notebook, else standard output.
        verbose: 0: nothing; 1 or "auto": what suits the stream; 2: one plain line per epoch.
    """
    if verbose == 0:
        return Silence()
    if verbose == 2:
        return LogOutput(stream or sys.stdout, seconds=math.inf)
    if stream is None and _in_notebook():
        return NotebookOutput()
    stream = stream or sys.stdout
    is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    return TerminalOutput(stream) if is_terminal else LogOutput(stream)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter, Colab
