"""Pictures are sketched here."""

from tests.research.sketches import sketches

__all__ = ["sketches"]
