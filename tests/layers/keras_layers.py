"""One case of the battery for every layer of Keras: what it is made and called with, and what is known of it (`Case`)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

k = keras.layers
RANDOM = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True)
class KerasCase:
    """A layer of Keras, the inputs of its call, and settings of `check_layer`."""

    factory: Callable[..., Any]
    inputs: Any
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype("float32")


VECTORS, SEQUENCES, IMAGES, VOLUMES = normal(5, 4), normal(5, 6, 4), normal(4, 8, 6, 3), normal(4, 5, 6, 4, 2)
PICTURES = RANDOM.random((4, 8, 9, 3)).astype("float32")
MASK = np.arange(6) < np.array([[6], [4], [3], [6], [1]])
MOVIES = normal(4, 3, 7, 6, 2)
NOISY = {"stochastic": True}
MASKED = {"call_kwargs": {"mask": MASK}}


def case(make: Callable[..., Any], inputs: Any, arguments: dict[str, Any] | None = None, **settings: Any) -> KerasCase:
    return KerasCase(functools.partial(make, **(arguments or {})), inputs, settings)


def _wrapped(wrapper: Callable[..., Any], inner: Callable[[], Any], **arguments: Any) -> Callable[..., Any]:
    """A factory of a wrapper around a new inner layer."""

    def make(**kwargs: Any) -> Any:
        layer = inner()
        if "dtype" in kwargs:
            layer = type(layer).from_config({**layer.get_config(), "dtype": kwargs["dtype"]})
        return wrapper(layer, **arguments, **kwargs)

    return make


CASES: dict[str, KerasCase] = {
    "Activation": case(k.Activation, VECTORS, {"activation": "tanh"}),
    "ActivityRegularization": case(
        k.ActivityRegularization, VECTORS, {"l2": 0.5}, losses=1, loss_oracle=lambda layer, x: 0.5 * np.sum(x**2) / len(x)
    ),
    "Add": case(k.Add, [VECTORS, VECTORS[::-1].copy()]),
    "AdditiveAttention": case(k.AdditiveAttention, [normal(5, 3, 4), SEQUENCES]),
    "AlphaDropout": case(k.AlphaDropout, VECTORS, {"rate": 0.4}, **NOISY),
    "Attention": case(k.Attention, [normal(5, 3, 4), SEQUENCES]),
    "Average": case(k.Average, [VECTORS, VECTORS[::-1].copy()]),
    "BatchNormalization": case(k.BatchNormalization, SEQUENCES, None),
    "Bidirectional": case(_wrapped(k.Bidirectional, lambda: k.GRU(3, return_sequences=True)), SEQUENCES),
    "Concatenate": case(k.Concatenate, [VECTORS, normal(5, 2)]),
    "Dense": case(k.Dense, VECTORS, {"units": 3}),
    "Dot": case(k.Dot, [VECTORS, VECTORS[::-1].copy()], {"axes": 1}),
    "Dropout": case(k.Dropout, SEQUENCES, {"rate": 0.4}, **NOISY),
    "ELU": case(k.ELU, VECTORS),
    "EinsumDense": case(k.EinsumDense, SEQUENCES, {"equation": "abc,cd->abd", "output_shape": (None, 3), "bias_axes": "d"}),
    "Embedding": case(k.Embedding, RANDOM.integers(1, 7, (5, 6)).astype("int32"), {"input_dim": 7, "output_dim": 3}),
    "Flatten": case(k.Flatten, SEQUENCES),
    "GaussianDropout": case(k.GaussianDropout, VECTORS, {"rate": 0.4}, **NOISY),
    "GaussianNoise": case(k.GaussianNoise, VECTORS, {"stddev": 0.4}, **NOISY),
    "GRU": case(k.GRU, SEQUENCES, {"units": 3, "return_sequences": True}),
    "GRUCell": case(k.GRUCell, (VECTORS, [normal(5, 3)]), {"units": 3}),
    "GroupNormalization": case(k.GroupNormalization, SEQUENCES, {"groups": 2}),
    "GroupQueryAttention": case(
        k.GroupQueryAttention, (SEQUENCES, normal(5, 3, 4)), {"head_dim": 2, "num_query_heads": 4, "num_key_value_heads": 2}
    ),
    "Identity": case(k.Identity, VECTORS),
    "Lambda": case(k.Lambda, VECTORS, {"function": keras.activations.tanh, "output_shape": (4,)}),
    "LayerNormalization": case(k.LayerNormalization, SEQUENCES),
    "LeakyReLU": case(k.LeakyReLU, VECTORS),
    "LSTM": case(k.LSTM, SEQUENCES, {"units": 3}),
    "LSTMCell": case(k.LSTMCell, (VECTORS, [normal(5, 3), normal(5, 3)]), {"units": 3}),
    "Masking": case(k.Masking, SEQUENCES, {"mask_value": 0.0}),
    "Maximum": case(k.Maximum, [VECTORS, normal(5, 4)]),
    "Minimum": case(k.Minimum, [VECTORS, normal(5, 4)]),
    "MultiHeadAttention": case(k.MultiHeadAttention, (SEQUENCES, normal(5, 3, 4)), {"num_heads": 2, "key_dim": 2}),
    "Multiply": case(k.Multiply, [VECTORS, VECTORS[::-1].copy()]),
    "Normalization": case(k.Normalization, VECTORS, {"mean": 0.5, "variance": 2.0}),
    "PReLU": case(k.PReLU, VECTORS),
    "Permute": case(k.Permute, SEQUENCES, {"dims": (2, 1)}),
    "RMSNormalization": case(k.RMSNormalization, SEQUENCES),
    "RNN": case(_wrapped(k.RNN, lambda: k.SimpleRNNCell(3), return_sequences=True), SEQUENCES),
    "ReLU": case(k.ReLU, VECTORS, {"max_value": 1.0}),
    "RepeatVector": case(k.RepeatVector, VECTORS, {"n": 3}),
    "Rescaling": case(k.Rescaling, IMAGES, {"scale": 0.5}),
    "Reshape": case(k.Reshape, SEQUENCES, {"target_shape": (8, 3)}),
    "ReversibleEmbedding": case(k.ReversibleEmbedding, RANDOM.integers(0, 7, (5, 6)).astype("int32"), {"input_dim": 7, "output_dim": 3}),
    "SimpleRNN": case(k.SimpleRNN, SEQUENCES, {"units": 3, "return_sequences": True}),
    "SimpleRNNCell": case(k.SimpleRNNCell, (VECTORS, [normal(5, 3)]), {"units": 3}),
    "Softmax": case(k.Softmax, VECTORS),
    "SpatialDropout1D": case(k.SpatialDropout1D, SEQUENCES, {"rate": 0.4}, **NOISY),
    "SpatialDropout2D": case(k.SpatialDropout2D, IMAGES, {"rate": 0.4}, **NOISY),
    "SpatialDropout3D": case(k.SpatialDropout3D, VOLUMES, {"rate": 0.4}, **NOISY),
    "SpectralNormalization": case(_wrapped(k.SpectralNormalization, lambda: k.Dense(3)), VECTORS),
    "StackedRNNCells": case(
        lambda **kwargs: k.StackedRNNCells([k.SimpleRNNCell(n, dtype=kwargs.get("dtype")) for n in (3, 2)], **kwargs),
        (VECTORS, [normal(5, 3), normal(5, 2)]),
    ),
    "Subtract": case(k.Subtract, [VECTORS, VECTORS[::-1].copy()]),
    "TimeDistributed": case(_wrapped(k.TimeDistributed, lambda: k.Dense(3)), SEQUENCES),
    "UnitNormalization": case(k.UnitNormalization, SEQUENCES),
    # Data.
    "CategoryEncoding": case(
        k.CategoryEncoding, RANDOM.integers(0, 6, (5, 3)).astype("int32"), {"num_tokens": 6, "output_mode": "multi_hot"}
    ),
    "Discretization": case(k.Discretization, VECTORS, {"bin_boundaries": [-1.0, 0.0, 1.0]}),
    "HashedCrossing": case(
        k.HashedCrossing, ((RANDOM.integers(0, 6, 5).astype("int32"), RANDOM.integers(0, 6, 5).astype("int32")),), {"num_bins": 5}
    ),
    "Hashing": case(k.Hashing, RANDOM.integers(0, 60, (5, 3)).astype("int32"), {"num_bins": 5}),
    "IntegerLookup": case(k.IntegerLookup, RANDOM.integers(0, 9, (5, 3)).astype("int64"), {"vocabulary": [3, 5, 7]}),
    "MelSpectrogram": case(
        k.MelSpectrogram, normal(4, 300), {"fft_length": 64, "num_mel_bins": 8, "sampling_rate": 400, "max_freq": 200.0}
    ),
    "STFTSpectrogram": case(k.STFTSpectrogram, normal(4, 300, 1), {"frame_length": 32, "frame_step": 16, "fft_length": 32}),
}
for dims, data in ((1, SEQUENCES), (2, IMAGES), (3, VOLUMES)):
    named = lambda text, dims=dims: f"{text}{dims}D"  # noqa: E731
    for name in map(named, ("AveragePooling", "MaxPooling")):
        CASES[name] = case(getattr(k, name), data, {"pool_size": 2})
    for name in map(named, ("GlobalAveragePooling", "GlobalMaxPooling")):
        CASES[name] = case(getattr(k, name), data)
    for name in map(named, ("AdaptiveAveragePooling", "AdaptiveMaxPooling")):
        CASES[name] = case(getattr(k, name), data, {"output_size": 2})
    for name in (f"Conv{dims}D", f"Conv{dims}DTranspose"):
        CASES[name] = case(getattr(k, name), data, {"filters": 3, "kernel_size": 2})
    if dims < 3:
        CASES[f"DepthwiseConv{dims}D"] = case(getattr(k, f"DepthwiseConv{dims}D"), data, {"kernel_size": 2})
        CASES[f"SeparableConv{dims}D"] = case(getattr(k, f"SeparableConv{dims}D"), data, {"filters": 3, "kernel_size": 2})
    CASES[f"Cropping{dims}D"] = case(getattr(k, f"Cropping{dims}D"), data, {"cropping": 1})
    CASES[f"UpSampling{dims}D"] = case(getattr(k, f"UpSampling{dims}D"), data)
    CASES[f"ZeroPadding{dims}D"] = case(getattr(k, f"ZeroPadding{dims}D"), data, {"padding": 1})
    movie = {1: MOVIES[:, :, :, 0], 2: MOVIES, 3: normal(4, 3, 5, 4, 3, 2)}[dims]
    CASES[f"ConvLSTM{dims}D"] = case(getattr(k, f"ConvLSTM{dims}D"), movie, {"filters": 2, "kernel_size": 2})
#: Pictures. What draws at training=True.
for name, arguments in {
    "CenterCrop": {"height": 4, "width": 5},
    "Resizing": {"height": 4, "width": 5},
    "AutoContrast": {"value_range": (0, 1)},
    "Equalization": {"value_range": (0, 1)},
    "ContrastLimitedAdaptiveHistogramEqualization": {"value_range": (0, 1)},
}.items():
    CASES[name] = case(getattr(k, name), PICTURES, arguments)
for name, arguments in {
    "AugMix": {"value_range": (0, 1)},
    "CutMix": {},
    "MixUp": {},
    "RandAugment": {"value_range": (0, 1)},
    "RandomBrightness": {"factor": 0.3, "value_range": (0, 1)},
    "RandomColorDegeneration": {"factor": 0.5},
    "RandomColorJitter": {"value_range": (0, 1), "brightness_factor": 0.3},
    "RandomContrast": {"factor": 0.3, "value_range": (0, 1)},
    "RandomCrop": {"height": 4, "width": 5},
    "RandomElasticTransform": {"factor": 0.5, "value_range": (0, 1)},
    "RandomErasing": {"value_range": (0, 1)},
    "RandomFlip": {},
    "RandomGaussianBlur": {"value_range": (0, 1)},
    "RandomGrayscale": {"factor": 0.5},
    "RandomHue": {"factor": 0.3, "value_range": (0, 1)},
    "RandomInvert": {"factor": 0.5, "value_range": (0, 1)},
    "RandomPerspective": {"factor": 0.5},
    "RandomPosterization": {"factor": 4, "value_range": (0, 1)},
    "RandomRotation": {"factor": 0.2},
    "RandomSaturation": {"factor": (0.2, 0.8), "value_range": (0, 1)},
    "RandomSharpness": {"factor": 0.5, "value_range": (0, 1)},
    "RandomShear": {"x_factor": 0.3},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.3},
    "Solarization": {"addition_factor": 0.1, "value_range": (0, 1)},
}.items():
    CASES[name] = case(getattr(k, name), PICTURES, arguments, **NOISY)

#: What the battery cannot take, and why.
LEFT_OUT = {
    "FlaxLayer": "needs Flax",
    "JaxLayer": "needs JAX",
    "TorchModuleWrapper": "needs PyTorch",
    "TFSMLayer": "needs an exported model",
    "InputLayer": "is not called",
    "InputSpec": "is no layer",
    "Layer": "a base class",
    "Wrapper": "a base class",
    "Pipeline": "its call takes what its layers take: a list of layers, not one",
    "MaxNumBoundingBoxes": "takes a dictionary of bounding boxes with shapes of its own",
    "StringLookup": "takes strings",
    "TextVectorization": "takes strings",
}
#: Other names of layers that are above.
ALIASES = {name for name in dir(k) if isinstance(getattr(k, name), type) and getattr(k, name).__name__ != name and name not in CASES}
