"""Keras layers that studies share, their base with `add_metric`, and a battery that checks them; `loops` does not need this package.

Importing it registers every layer that is named here, so that `.keras` files with it can be read.
"""

from __future__ import annotations

from layers.adversarial import GradientReversal
from layers.base import Layer, Model
from layers.bayesian import DenseVariational, RandomFeatureGP
from layers.decorrelation import BarlowTwins, VICReg
from layers.dropout import Dropout, DropPath
from layers.experts import MixtureOfExperts, TopKRouter
from layers.gating import GatedResidual, Maxout, NetVLAD
from layers.losses import ContrastiveLoss, PinballLoss, SparsemaxLoss, sparsemax
from layers.metric_learning import CenterLoss, MarginSoftmax
from layers.metrics import CohenKappa, KendallTau, MatthewsCorrelation, SpearmanCorrelation
from layers.noisy import NoisyDense
from layers.normalization import SpectralNorm, WeightNormalization
from layers.pair_losses import NPairsLoss, TripletHardLoss, TripletSemiHardLoss
from layers.quantization import VectorQuantizer
from layers.regularization import ConcreteDropout, HardConcreteGate
from layers.stochastic import GaussianSampling
from layers.structured import CRF, Sinkhorn
from layers.tabular import CrossV2, PeriodicEmbedding, PiecewiseLinearEmbedding, quantile_edges

__all__ = [
    "BarlowTwins",
    "CRF",
    "CenterLoss",
    "CohenKappa",
    "ConcreteDropout",
    "ContrastiveLoss",
    "CrossV2",
    "DenseVariational",
    "DropPath",
    "Dropout",
    "GatedResidual",
    "GaussianSampling",
    "GradientReversal",
    "HardConcreteGate",
    "KendallTau",
    "Layer",
    "MarginSoftmax",
    "MatthewsCorrelation",
    "Maxout",
    "MixtureOfExperts",
    "Model",
    "NPairsLoss",
    "NetVLAD",
    "NoisyDense",
    "PeriodicEmbedding",
    "PiecewiseLinearEmbedding",
    "PinballLoss",
    "RandomFeatureGP",
    "Sinkhorn",
    "SparsemaxLoss",
    "SpearmanCorrelation",
    "SpectralNorm",
    "TopKRouter",
    "TripletHardLoss",
    "TripletSemiHardLoss",
    "VICReg",
    "VectorQuantizer",
    "WeightNormalization",
    "quantile_edges",
    "sparsemax",
]
