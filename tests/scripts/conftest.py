"""Pictures are sketched."""

from tests.research.sketches import sketches

__all__ = ["sketches"]
