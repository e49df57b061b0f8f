"""Keras's tests that end differently under `loops`, and why. A test that is here and passes is a failure; so is one that is not there."""

EXPECTED: dict[str, str] = {}
