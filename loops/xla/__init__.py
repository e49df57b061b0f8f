"""Replacements for TensorFlow ops that XLA compiles to faster CPU programs. Knows neither tasks nor programs."""
