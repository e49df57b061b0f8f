"""Keras layers that studies share, their base with `add_metric`, and a battery that checks them; `loops` does not need this package."""

from __future__ import annotations

from layers.base import Layer, Model
from layers.noisy import NoisyDense
from layers.normalization import SpectralNorm, WeightNormalization
from layers.quantization import VectorQuantizer

__all__ = ["Layer", "Model", "NoisyDense", "SpectralNorm", "VectorQuantizer", "WeightNormalization"]
