"""What the library says to its user: lines through the logger "tapeloops", which are printed unless the user routes them elsewhere.

    say(text)     level INFO      printed to stdout
    warn(text)    level WARNING   printed to stdout
    alert(text)   level ERROR     printed to stderr

By default a line is printed as it is, with nothing before it, and flushed; it goes to the `sys.stdout` of that moment, so that
`contextlib.redirect_stdout` and notebooks catch it. The logger does not propagate, so that a program that has set up the root logger
(absl does) does not show each line twice. After `import loops`:

    logger = logging.getLogger("tapeloops")
    logger.setLevel(logging.WARNING)      # warnings only; logging.CRITICAL silences everything
    logger.addHandler(handler)            # to a file as well
    logger.handlers.clear()               # not printed any more ...
    logger.propagate = True               # ... but handled as your other loggers are

pytest's `caplog` sees the lines; that of an older pytest once `logger.propagate` is True. A logger that has handlers when `loops` is
imported keeps them, and nothing is added. Progress bars and tables that were given a stream write to it themselves: they draw.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["LOGGER", "alert", "leave_to_chief", "say", "warn"]

LOGGER = "tapeloops"

_logger = logging.getLogger(LOGGER)


def leave_to_chief() -> None:
    """Leaves lines below errors to the chief, in another of several worker processes that would all say the same. A level that the user
    has set stays."""
    if _logger.level == logging.INFO:
        _logger.setLevel(logging.ERROR)


class _Printing(logging.Handler):
    """Prints records of some levels to one of the standard streams.

    Each stream has a handler, and so a lock, of its own: a thread that is stuck in writing to stdout keeps no other from stderr.
    """

    def __init__(self, stream: str, wanted: range):
        super().__init__()
        self._stream = stream
        self.addFilter(lambda record: record.levelno in wanted)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=getattr(sys, self._stream), flush=True)
        except Exception:
            self.handleError(record)


def _set_up() -> None:
    if _logger.level == logging.NOTSET:
        _logger.setLevel(logging.INFO)
    if not _logger.handlers:
        _logger.addHandler(_Printing("stdout", range(logging.ERROR)))
        _logger.addHandler(_Printing("stderr", range(logging.ERROR, sys.maxsize)))
        _logger.propagate = False


_set_up()


def say(text: str) -> None:
    """Tells the user what happens.

    Args:
        text: one line or several.

    Example:
        >>> say("Resuming the run at step 300.")
        Resuming the run at step 300.
    """
    _logger.info(text, stacklevel=2)


def warn(text: str) -> None:
    """Tells the user what may have to be changed; `text` is printed as it is."""
    _logger.warning(text, stacklevel=2)


def alert(text: str) -> None:
    """Tells the user, on stderr, that the program ends in a way that was not wanted."""
    _logger.error(text, stacklevel=2)
