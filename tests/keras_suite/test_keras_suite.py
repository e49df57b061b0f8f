"""Keras's own tests of `fit`, `evaluate` and `predict`, run on ours; see `replaced.py`, and `expected.py` for those that differ."""

from tests.keras_suite import replaced

globals().update(replaced.test_cases())
