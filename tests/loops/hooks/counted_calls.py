"""Counts the calls of TensorFlow that a thread makes: each of them costs more, where epochs are short, than what it computes."""

from __future__ import annotations

import contextlib
import sys


@contextlib.contextmanager
def counted_calls():
    """A list that gets an item for each operation or function that this thread has TensorFlow run."""
    found = []
    sys.setprofile(lambda frame, event, argument: event == "c_call" and "Execute" in argument.__name__ and found.append(argument))
    try:
        yield found
    finally:
        sys.setprofile(None)
