"""Wrappers in whose call the kernel of a layer is a function of its weights: weight normalisation and spectral normalisation.

The wrapped layer's own variable stays what is trained; nothing is overwritten, so the gradient is that of the whole formula.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from layers._private_api import autocast_scope, kernel_attribute
from layers.arguments import check_integers, check_numbers
from layers.base import Layer, full_precision, register
from layers.replicas import sum_over_replicas

__all__ = ["SpectralNorm", "WeightNormalization"]


class Reparameterized(Layer):
    """Base of both: finds the wrapped layer's kernel, and calls it with another one.

    Args:
        layer: the layer to wrap.
        axis: axis or axes of its kernel that number the outputs.
    """

    def __init__(self, layer: keras.layers.Layer, *, axis: int | list[int] | tuple[int, ...] = -1, **kwargs: Any):
        super().__init__(**kwargs)
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"{type(self).__name__} wraps a Keras layer; got `layer`={layer!r}.")
        axes = tuple(axis) if isinstance(axis, (list, tuple)) else (axis,)
        if not axes or not all(isinstance(i, int) for i in axes):
            raise ValueError(f"`axis` must be an integer or a list of integers; got {axis!r}.")
        self.layer = layer
        self.axis = axis if isinstance(axis, int) else list(axes)
        self.supports_masking = bool(layer.supports_masking)

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        self._slot = kernel_attribute(self.layer)
        if self._slot is None:
            variables = sorted(name for name, value in vars(self.layer).items() if isinstance(value, keras.Variable))
            raise ValueError(f"{type(self).__name__} needs a layer with a `kernel`; {self.layer.name!r} has {variables or 'none'}.")
        rank = len(vars(self.layer)[self._slot].shape)
        axes = [self.axis] if isinstance(self.axis, int) else self.axis
        if not all(-rank <= i < rank for i in axes):
            raise ValueError(f"`axis`={self.axis!r} does not fit to the kernel of {self.layer.name!r}, which has {rank} dimensions.")
        self._outputs = sorted({i % rank for i in axes})
        self._inputs = [i for i in range(rank) if i not in self._outputs]

    def kernel(self) -> tf.Tensor:
        """The wrapped layer's variable, not autocast."""
        return master(vars(self.layer)[self._slot])

    def call_with(self, inputs: Any, kernel: tf.Tensor) -> Any:
        """The wrapped layer's output with another kernel."""
        with replaced(self.layer, {str(self._slot): tf.cast(kernel, self.layer.compute_dtype)}):
            return self.layer(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer), "axis": self.axis}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


@register
class WeightNormalization(Reparameterized):
    """Wraps a layer and learns length and direction of its weight vectors apart, which makes training less dependent on their scale.

        w = gain * v / ||v||

    with a norm for each output. v is the kernel of the wrapped layer, a length for each output the wrapper's own weight `gain`. It begins
    as the norm of v, so that wrapping changes no output. With `data_init` the first training batch sets it, and the bias, such that the
    outputs before the activation have mean 0 and variance 1 over that batch (of all replicas).

    Args:
        layer: layer with a `kernel`: `Dense`, `EinsumDense`, a convolution.
        axis: axis or axes of the kernel that number the outputs: -1 for `Dense` and convolutions, -2 for transposed ones, `(-2, -1)` for
            depthwise ones.
        data_init: whether the first training batch sets gain and bias. Not for a layer that is trained already.

    Call:
        inputs: what the wrapped layer takes.
        training: whether a first batch may set gain and bias.

    Returns:
        What the wrapped layer returns.

    Raises:
        ValueError: if `layer` is no layer, has no `kernel`, `axis` does not fit to it, or `data_init` is wanted of a layer whose last
            dimension is not the outputs.

    Example:
        >>> dense = keras.layers.Dense(2)
        >>> x = tf.ones([4, 3])
        >>> before, after = dense(x), WeightNormalization(dense)(x)
        >>> bool(tf.reduce_all(tf.abs(before - after) < 1e-6))
        True

    References:
        Salimans & Kingma 2016, arXiv:1602.07868.
    """

    def __init__(self, layer: keras.layers.Layer, *, axis: int | list[int] | tuple[int, ...] = -1, data_init: bool = False, **kwargs: Any):
        super().__init__(layer, axis=axis, **kwargs)
        self.data_init = data_init

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        shape = tuple(self.kernel().shape[i] for i in self._outputs)
        if self.data_init:
            size = math.prod(shape)
            if getattr(self.layer, "data_format", None) == "channels_first" or self.compute_output_shape(input_shape)[-1] != size:
                raise ValueError(f"`data_init` needs a layer whose last dimension is its {size} outputs; {self.layer.name!r} is not one.")
            self.initialized = self.add_weight(shape=(), dtype="bool", initializer="zeros", trainable=False, name="initialized")

        def norm(shape: Any, dtype: Any) -> tf.Tensor:
            return tf.cast(tf.reshape(tf.sqrt(self._squares(self.kernel())), shape), dtype)

        self.gain = self.add_weight(shape=shape, initializer=norm, autocast=False, name="gain")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        direction = full_precision(self.kernel())
        squares = self._squares(direction)
        inverse = tf.math.rsqrt(tf.maximum(squares, 1e-24))
        if self.data_init and training and self.trainable:
            self._initialize(inputs, direction * inverse)
        gain = tf.reshape(tf.cast(master(self.gain), direction.dtype), tf.shape(squares))
        return self.call_with(inputs, direction * (gain * inverse))

    def _squares(self, kernel: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.square(kernel), self._inputs, keepdims=True)

    def _initialize(self, inputs: Any, kernel: tf.Tensor) -> None:
        """Lets the first batch that has examples set gain and bias. An all-reduce is not conditional: replicas come here at each step."""
        size = math.prod(self.gain.shape)
        bias = getattr(self.layer, "bias", None)

        def sums() -> list[tf.Tensor]:
            linear = {str(self._slot): tf.cast(kernel, self.layer.compute_dtype), "activation": None}
            if bias is not None:
                linear["bias"] = tf.zeros(bias.shape, self.layer.compute_dtype)
            with replaced(self.layer, linear):
                outputs = tf.reshape(full_precision(self.layer.call(inputs)), [-1, size])
            count = tf.cast(tf.shape(outputs)[0], outputs.dtype)
            return [tf.cast(x, kernel.dtype) for x in (tf.reduce_sum(outputs, 0), tf.reduce_sum(tf.square(outputs), 0), count)]

        def nothing() -> list[tf.Tensor]:
            return [tf.zeros([size], kernel.dtype), tf.zeros([size], kernel.dtype), tf.zeros([], kernel.dtype)]

        total, squares, count = sum_over_replicas(*tf.cond(tf.convert_to_tensor(self.initialized), nothing, sums))
        mean = tf.math.divide_no_nan(total, count)
        scale = tf.math.rsqrt(tf.maximum(tf.math.divide_no_nan(squares, count) - tf.square(mean), 0.0) + 1e-10)

        def set_first(variable: keras.Variable, value: tf.Tensor) -> None:
            now = master(variable)
            variable.assign(tf.where(count > 0, tf.cast(tf.reshape(value, now.shape), now.dtype), now))

        set_first(self.gain, scale)
        if bias is not None:
            set_first(bias, -mean * scale)
        self.initialized.assign(tf.logical_or(tf.convert_to_tensor(self.initialized), count > 0))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_init": self.data_init}


@register
class SpectralNorm(Reparameterized):
    """Wraps a layer and divides its kernel by its largest singular value, which bounds how much the layer can stretch its inputs.

        w = coefficient * W / sigma,    sigma = ||W u||,    u = W^T W u / ||W^T W u|| at each training step

    W is the kernel of the wrapped layer as a matrix `[all else, outputs]`; for convolutions a bound on this matrix, as in the paper. u is
    a constant to the gradient, sigma is not: the gradient is that of the whole formula. Unlike `keras.layers.SpectralNormalization`,
    which overwrites the kernel and leaves sigma out of the gradient.

    Args:
        layer: layer with a `kernel`: `Dense`, `EinsumDense`, a convolution.
        coefficient: the largest singular value that remains, greater than 0; a weight of the layer, so `layer.coefficient.assign(...)`
            schedules it.
        shrink_only: whether a kernel whose sigma is below `coefficient` stays as it is.
        iterations: power iterations at each training step, at least 1.
        axis: axis or axes of the kernel that number the outputs; see `WeightNormalization`.

    Call:
        inputs: what the wrapped layer takes.
        training: whether u moves on. u begins nearly converged, and stays when the layer is frozen.

    Returns:
        What the wrapped layer returns.

    Metrics:
        sigma: the largest singular value of W, before the division.

    Raises:
        ValueError: if an argument is out of its range, `layer` is no layer or has no `kernel`, or `axis` does not fit to it.

    Example:
        >>> layer = SpectralNorm(keras.layers.Dense(1, kernel_initializer="ones", use_bias=False), coefficient=2.0)
        >>> round(float(layer(tf.ones([1, 4]))[0, 0]), 4)
        4.0

    References:
        Miyato et al. 2018, arXiv:1802.05957; `shrink_only`: Liu et al. 2020, arXiv:2006.10108.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        coefficient: float = 1.0,
        shrink_only: bool = False,
        iterations: int = 1,
        axis: int | list[int] | tuple[int, ...] = -1,
        **kwargs: Any,
    ):
        super().__init__(layer, axis=axis, **kwargs)
        check_numbers(above=0, below=math.inf, coefficient=coefficient)
        check_integers(at_least=1, iterations=iterations)
        self.initial_coefficient, self.shrink_only, self.iterations = float(coefficient), shrink_only, iterations
        self.coefficient = self.add_coefficient("coefficient", coefficient)
        self.declare_metric("sigma")

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        size = math.prod(self.kernel().shape[i] for i in self._outputs)

        def nearly_converged(shape: Any, dtype: Any) -> tf.Tensor:
            matrix = self._matrix(full_precision(self.kernel()))
            # Any fixed vector serves that no kernel is likely to be orthogonal to.
            start = tf.random.stateless_normal(shape, (0, 0), dtype=matrix.dtype)
            return tf.cast(power_iterations(matrix, start / tf.norm(start), 30), dtype)

        # Every replica computes the same u from the same kernel: nothing to communicate.
        self.u = self.add_weight(shape=(size,), initializer=nearly_converged, trainable=False, autocast=False, name="u")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        kernel = full_precision(self.kernel())
        matrix = self._matrix(kernel)
        u = tf.cast(master(self.u), matrix.dtype)
        if training and self.trainable:
            u = tf.stop_gradient(power_iterations(matrix, u, self.iterations))
            self.u.assign(tf.cast(u, self.u.dtype))
        # Below the bound, which a kernel of zeros reaches, the norm's gradient would be infinite.
        sigma = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(tf.linalg.matvec(matrix, u))), 1e-12))
        self.add_metric(sigma, "sigma")
        factor = tf.cast(self.coefficient, sigma.dtype) / sigma
        return self.call_with(inputs, kernel * (tf.minimum(factor, 1.0) if self.shrink_only else factor))

    def _matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """`[all else, outputs]`."""
        order = [*self._inputs, *self._outputs]
        if order != sorted(order):
            kernel = tf.transpose(kernel, order)
        return tf.reshape(kernel, [-1, math.prod(kernel.shape[len(self._inputs) :])])

    def get_config(self) -> dict[str, Any]:
        config = {"coefficient": self.initial_coefficient, "shrink_only": self.shrink_only, "iterations": self.iterations}
        return {**super().get_config(), **config}


def power_iterations(matrix: tf.Tensor, u: tf.Tensor, count: int) -> tf.Tensor:
    """Turns u towards the right singular vector of the largest singular value; a matrix of zeros leaves it where it is."""
    for _ in range(count):
        turned = tf.linalg.matvec(matrix, tf.linalg.matvec(matrix, u), transpose_a=True)
        squares = tf.reduce_sum(tf.square(turned))
        u = tf.where(squares > 0, turned * tf.math.rsqrt(tf.maximum(squares, 1e-36)), u)
    return u


def master(variable: keras.Variable) -> tf.Tensor:
    """A variable's value in its own precision: norms are not taken of what is rounded already."""
    with autocast_scope(None):
        return tf.convert_to_tensor(variable)


@contextlib.contextmanager
def replaced(layer: keras.layers.Layer, attributes: dict[str, Any]) -> Iterator[None]:
    """The layer with other attributes. Past Keras's tracking of them, which would take them for new weights."""
    before = {name: vars(layer)[name] for name in attributes if name in vars(layer)}
    vars(layer).update({name: attributes[name] for name in before})
    try:
        yield
    finally:
        vars(layer).update(before)
