"""Pictures are sketched, but for the tests of pictures."""

from tests.research.sketches import sketches

__all__ = ["sketches"]
