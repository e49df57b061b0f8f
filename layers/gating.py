"""Layers that choose among features: the largest of several pieces, clusters that vectors belong to, gates that let through or not."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from layers.arguments import check_integers, check_numbers, known_dimension
from layers.base import Layer, full_precision, register
from layers.dropout import Dropout

__all__ = ["GatedResidual", "Maxout", "NetVLAD"]


@register
class Maxout(Layer):
    """Takes the largest of each group of neighbouring channels; behind a dense layer or a convolution, a learned convex activation.

        y_i = max over j < k of x_(i k + j),    k = channels / units

    Args:
        units: number of groups, at least 1; has to divide the number of channels.
        axis: axis of the channels, not 0.

    Call:
        inputs: tensor with `units * k` channels.

    Returns:
        The same shape with `units` channels.

    Raises:
        ValueError: if an argument is out of its range, or `units` does not divide the channels.

    Example:
        >>> Maxout(units=2)(tf.constant([[1.0, 3.0, -2.0, -1.0]])).numpy().tolist()
        [[3.0, -1.0]]

    References:
        Goodfellow et al. 2013, arXiv:1302.4389.
    """

    def __init__(self, *, units: int, axis: int = -1, **kwargs: Any):
        super().__init__(**kwargs)
        check_integers(at_least=1, units=units)
        if not isinstance(axis, int) or axis == 0:
            raise ValueError(f"`axis` must be an integer other than 0, which is the batch; got {axis!r}.")
        self.units, self.axis = units, axis
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if not -len(input_shape) < self.axis < len(input_shape):
            raise ValueError(f"`axis`={self.axis} does not fit to inputs of shape {tuple(input_shape)}.")
        channels = input_shape[self.axis]
        if channels is None or channels % self.units:
            raise ValueError(
                f"`units`={self.units} must divide the channels, of which inputs of shape {tuple(input_shape)} have {channels}."
            )

    def call(self, inputs: Any) -> tf.Tensor:
        axis = self.axis % inputs.shape.rank
        shape = tf.shape(inputs)
        groups = tf.concat([shape[:axis], [self.units, inputs.shape[axis] // self.units], shape[axis + 1 :]], 0)
        outputs = tf.reduce_max(tf.reshape(inputs, groups), axis + 1)
        return tf.ensure_shape(outputs, self.compute_output_shape(inputs.shape))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        # A mask over the channels themselves says nothing of groups of them.
        axis = self.axis % len(inputs.shape)
        over_channels = previous_mask is not None and axis < len(previous_mask.shape) and previous_mask.shape[axis] != 1
        return None if over_channels else previous_mask

    def compute_output_shape(self, input_shape: Any) -> Any:
        shape = list(input_shape)
        shape[self.axis] = self.units
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "axis": self.axis}


@register
class NetVLAD(Layer):
    """Describes a set of vectors by how far they are from the clusters that they belong to, in one vector that can be compared.

        a_nk = softmax over k of (w_k x_n + b_k),    V_k = sum over n of a_nk (x_n - c_k)
        y = V_k / ||V_k|| for each k, one after another, and the whole divided by its norm

    w, b and c are learned. At the start `w_k = 2 sharpness c_k` and `b_k = -sharpness ||c_k||^2`: a vector belongs to the nearest clusters.

    Args:
        clusters: number of clusters K, at least 1.
        sharpness: how sharply vectors belong to the nearest cluster at the start, greater than 0; the paper's alpha.
        centers_initializer: of c, `[K, D]`. The paper takes k-means of the features: set the layer's `centers` and call `reset_assignment`.

    Call:
        inputs: `[B, N, D]`, floating; images' features as `[B, H * W, D]`.
        mask: bool `[B, N]`; what is masked belongs to no cluster.

    Returns:
        `[B, K * D]` of norm 1 in the layer's compute dtype; 0 for a set of nothing.

    Raises:
        ValueError: if an argument is out of its range, or the inputs have not three dimensions.

    Example:
        >>> layer = NetVLAD(clusters=4)
        >>> y = layer(tf.ones([2, 10, 3]))
        >>> y.shape, round(float(tf.norm(y[0])), 4)
        (TensorShape([2, 12]), 1.0)

    References:
        Arandjelovic et al. 2015, arXiv:1511.07247.
    """

    def __init__(self, *, clusters: int, sharpness: float = 1.0, centers_initializer: Any = "glorot_uniform", **kwargs: Any):
        super().__init__(**kwargs)
        check_integers(at_least=1, clusters=clusters)
        check_numbers(above=0, below=math.inf, sharpness=sharpness)
        self.clusters, self.sharpness = clusters, float(sharpness)
        self.centers_initializer = keras.initializers.get(centers_initializer)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if len(input_shape) != 3 or input_shape[-1] is None:
            raise ValueError(f"NetVLAD takes inputs [B, N, D] with a known D; got shape {tuple(input_shape)}.")
        shape = (self.clusters, input_shape[-1])
        self.centers = self.add_weight(shape=shape, initializer=self.centers_initializer, name="centers")
        self.kernel = self.add_weight(shape=shape[::-1], initializer=lambda *_, **__: self._assignment()[0], name="kernel")
        self.bias = self.add_weight(shape=shape[:1], initializer=lambda *_, **__: self._assignment()[1], name="bias")

    def reset_assignment(self) -> None:
        """Lets vectors belong to the nearest of the present centers, as at the start."""
        for variable, value in zip((self.kernel, self.bias), self._assignment(), strict=True):
            variable.assign(value)

    def _assignment(self) -> tuple[tf.Tensor, tf.Tensor]:
        centers = tf.convert_to_tensor(self.centers)
        return 2 * self.sharpness * tf.transpose(centers), -self.sharpness * tf.reduce_sum(tf.square(centers), -1)

    def call(self, inputs: Any, mask: Any = None) -> tf.Tensor:
        if mask is not None:
            mask = tf.cast(mask, tf.bool)[..., None]
            inputs = tf.where(mask, inputs, tf.zeros([], inputs.dtype))
        belongs = tf.nn.softmax(keras.ops.matmul(inputs, self.kernel) + tf.convert_to_tensor(self.bias))
        if mask is not None:
            belongs = tf.where(mask, belongs, tf.zeros([], belongs.dtype))
        near = full_precision(tf.matmul(belongs, inputs, transpose_a=True))
        count = tf.reduce_sum(full_precision(belongs), 1)[..., None]
        distances = near - count * tf.cast(full_precision(self.centers), near.dtype)
        directions = tf.math.l2_normalize(distances, -1)
        flat = tf.reshape(directions, [tf.shape(inputs)[0], self.clusters * inputs.shape[-1]])
        return tf.cast(tf.math.l2_normalize(flat, -1), inputs.dtype)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], self.clusters * input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        config = {
            "clusters": self.clusters,
            "sharpness": self.sharpness,
            "centers_initializer": keras.initializers.serialize(self.centers_initializer),
        }
        return {**super().get_config(), **config}


@register
class GatedResidual(Layer):
    """Adds a small network to its inputs behind a gate, which closes where nothing has to be learned.

        h = ELU(A x + C context + a),    n = dropout(B h + b)
        y = layer_norm(x + sigmoid(G n + g) * (V n + v))

    The temporal fusion transformer's gated residual network. If the outputs have another size than x, x goes through a linear map first.

    Args:
        units: size of h and n, at least 1.
        output_units: size of the outputs; None is that of the inputs.
        dropout: share of n that is dropped in training, at least 0 and less than 1.
        epsilon: added to the variance in the layer normalisation, greater than 0.
        seed: seed of the dropout, an integer; None draws one. Replicas drop different elements.

    Call:
        inputs: x, `[..., D]`, floating.
        context: `[..., E]` with as many dimensions as x or fewer, such as `[B, E]` for `[B, T, D]`: it is the same for all times; None
            leaves it out.
        training: whether to drop.

    Returns:
        `[..., output_units]` in the layer's compute dtype.

    Raises:
        ValueError: if an argument is out of its range, or the context has more dimensions than x.

    Example:
        >>> layer = GatedResidual(units=8)
        >>> layer(tf.ones([2, 5, 3]), tf.ones([2, 4])).shape
        TensorShape([2, 5, 3])

    References:
        Lim et al. 2019, arXiv:1912.09363.
    """

    def __init__(
        self,
        *,
        units: int,
        output_units: int | None = None,
        dropout: float = 0.0,
        epsilon: float = 1e-3,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        check_integers(at_least=1, units=units)
        check_integers(at_least=1, optional=True, output_units=output_units)
        check_numbers(at_least=0, below=1, dropout=dropout)
        check_numbers(above=0, below=math.inf, epsilon=epsilon)
        self.units, self.output_units, self.dropout, self.epsilon, self.seed = units, output_units, float(dropout), float(epsilon), seed
        self.supports_masking = True
        self.drop = Dropout(rate=dropout, seed=seed, dtype=self.dtype_policy, name="dropout")

    def build(self, inputs_shape: Any, context_shape: Any = None) -> None:
        size, units = known_dimension(self, inputs_shape), self.units
        if context_shape is not None and len(context_shape) > len(inputs_shape):
            raise ValueError(f"`context` of shape {tuple(context_shape)} has more dimensions than the inputs, {tuple(inputs_shape)}.")
        outputs = size if self.output_units is None else self.output_units

        def kernel(rows: int, columns: int, name: str) -> keras.Variable:
            return self.add_weight(shape=(rows, columns), initializer="glorot_uniform", name=name)

        def bias(length: int, name: str, initializer: str = "zeros") -> keras.Variable:
            return self.add_weight(shape=(length,), initializer=initializer, name=name)

        self.input_kernel, self.input_bias = kernel(size, units, "input_kernel"), bias(units, "input_bias")
        self.context_kernel = None if context_shape is None else kernel(known_dimension(self, context_shape), units, "context_kernel")
        self.hidden_kernel, self.hidden_bias = kernel(units, units, "hidden_kernel"), bias(units, "hidden_bias")
        self.gate_kernel, self.gate_bias = kernel(units, outputs, "gate_kernel"), bias(outputs, "gate_bias")
        self.value_kernel, self.value_bias = kernel(units, outputs, "value_kernel"), bias(outputs, "value_bias")
        self.skip_kernel = None if outputs == size else kernel(size, outputs, "skip_kernel")
        self.skip_bias = None if outputs == size else bias(outputs, "skip_bias")
        self.scale, self.offset = bias(outputs, "scale", "ones"), bias(outputs, "offset")

    def call(self, inputs: Any, context: Any = None, training: bool | None = None) -> tf.Tensor:
        hidden = linear(inputs, self.input_kernel, self.input_bias)
        if context is not None:
            given = keras.ops.matmul(context, self.context_kernel)
            between = [1] * (inputs.shape.rank - given.shape.rank)
            hidden += tf.reshape(given, tf.concat([tf.shape(given)[:-1], between, [self.units]], 0)) if between else given
        hidden = linear(tf.nn.elu(hidden), self.hidden_kernel, self.hidden_bias)
        hidden = self.drop(hidden, training=training)
        gate = tf.sigmoid(linear(hidden, self.gate_kernel, self.gate_bias))
        skip = inputs if self.skip_kernel is None else linear(inputs, self.skip_kernel, self.skip_bias)
        added = gate * linear(hidden, self.value_kernel, self.value_bias)
        return tf.cast(self._normalised(full_precision(skip) + full_precision(added)), inputs.dtype)

    def _normalised(self, values: tf.Tensor) -> tf.Tensor:
        centered = values - tf.reduce_mean(values, -1, keepdims=True)
        inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centered), -1, keepdims=True) + self.epsilon)
        return centered * inverse * tf.cast(self.scale, values.dtype) + tf.cast(self.offset, values.dtype)

    def compute_output_shape(self, inputs_shape: Any, context_shape: Any = None) -> Any:
        return (*inputs_shape[:-1], inputs_shape[-1] if self.output_units is None else self.output_units)

    def get_config(self) -> dict[str, Any]:
        config = {
            "units": self.units,
            "output_units": self.output_units,
            "dropout": self.dropout,
            "epsilon": self.epsilon,
            "seed": self.seed,
        }
        return {**super().get_config(), **config}


def linear(inputs: Any, kernel: keras.Variable, bias: keras.Variable) -> tf.Tensor:
    """Inputs times kernel plus bias."""
    return keras.ops.matmul(inputs, kernel) + tf.convert_to_tensor(bias)
