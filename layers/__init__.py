"""Keras layers that studies share; `loops` does not need this package."""
