"""What a layer under test is made and called with, and what is seen of a call: the ground that all checks stand on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["Batch", "Case", "agree", "double_precision", "local_name"]

#: What a call leaves: "output/0", "loss/0", "gradient/input 0", "gradient/kernel", "metric/kl", "state/3 centers" -> array.
Seen = dict[str, np.ndarray]

NAME = "layer_under_test"
NO_KERNEL = ("Could not find device for node", "is not in the list of allowed values")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Arguments of one call. Arrays are batch-major; what is no array is passed on as it is."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, function: Callable[[np.ndarray], Any]) -> Batch:
        """With `function` applied to each array."""

        def visit(value: Any) -> Any:
            return function(value) if isinstance(value, (np.ndarray, tf.Tensor, tf.TensorSpec)) else value

        return Batch(tf.nest.map_structure(visit, self.args), {k: tf.nest.map_structure(visit, v) for k, v in self.kwargs.items()})

    def map_floats(self, function: Callable[[np.ndarray], Any]) -> Batch:
        """With `function` applied to each floating array."""
        return self.map(lambda a: function(a) if a.dtype.kind == "f" else a)

    def take(self, examples: slice) -> Batch:
        """Some of the examples."""
        return self.map(lambda a: a[examples])

    @property
    def arrays(self) -> list[Any]:
        """All arrays, in the order of the arguments."""
        leaves = [*tf.nest.flatten(self.args), *tf.nest.flatten(list(self.kwargs.values()))]
        return [leaf for leaf in leaves if isinstance(leaf, (np.ndarray, tf.Tensor, tf.TensorSpec))]

    def replace(self, arrays: Sequence[Any]) -> Batch:
        """With other arrays in the same places."""
        rest = iter(arrays)
        return self.map(lambda _: next(rest))

    def tensors(self) -> Batch:
        """As tensors."""
        return self.map(tf.convert_to_tensor)

    def symbols(self) -> tuple[Batch, list[Any]]:
        """As inputs of a functional model, with an unknown batch size; and the list of these inputs."""
        inputs: list[Any] = []

        def symbol(array: np.ndarray) -> Any:
            inputs.append(keras.Input(array.shape[1:], dtype=array.dtype.name))
            return inputs[-1]

        return self.map(symbol), inputs


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer under test; see `check_layer` for the fields."""

    factory: Callable[..., keras.layers.Layer]
    batch: Batch
    oracle: Callable[..., Any] | None = None
    loss_oracle: Callable[..., Any] | None = None
    metric_oracle: Callable[..., Mapping[str, Any]] | None = None
    gradient_oracle: Callable[..., Any] | None = None
    differentiable: Sequence[str] = ("output", "losses")
    stop_gradient: Sequence[tuple[str, int | str]] = ()
    degenerate: Mapping[str, tuple[Any, Callable[..., Any]]] = dataclasses.field(default_factory=dict)
    losses: int = 0
    metrics: Sequence[str] = ()
    coefficients: Sequence[str] = ()
    stochastic: bool = False
    invalid: Sequence[Mapping[str, Any]] = ()
    extremes: Sequence[Any] = ()
    time_axis: int | None = None
    strategy: Any = None
    fit: Callable[..., Any] | None = None
    rules: Sequence[str] = ()
    _shared: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False)

    # What several checks use is made, called and traced once.

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time that a check asked for `key`."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    @functools.cached_property
    def layer(self) -> keras.layers.Layer:
        """The layer of all checks that leave its state as it is. A check that changes it makes one of its own."""
        return self.make()

    def eager(self, training: bool, *, gradients: bool = True) -> Seen:
        """What a call of `layer` leaves in eager mode."""
        seen: Seen = self.once(("eager", training), lambda: self.measure(self.layer, training=training))
        return seen if gradients else {name: value for name, value in seen.items() if not name.startswith("gradient/")}

    # Making layers.

    def make(self, **overrides: Any) -> keras.layers.Layer:
        """A new layer, built, not called."""
        layer = self.factory(**{"name": NAME, **overrides})
        symbols, _ = self.batch.symbols()
        self.call(layer, symbols, False)
        return layer

    def twin(self, layer: keras.layers.Layer, **overrides: Any) -> keras.layers.Layer:
        """Another layer with the weights and seed states of `layer`."""
        other = self.make(**overrides)
        copy_state(layer, other)
        return other

    def under(self, policy: str) -> keras.layers.Layer:
        """The layer of all checks under another policy."""
        layer: keras.layers.Layer = self.once(("policy", policy), lambda: self.twin(self.layer, dtype=policy))
        return layer

    def unsupported(self, policy: str) -> bool:
        """Whether the constructor refuses a policy, or TensorFlow cannot compute in it on this device: no fault of the layer."""

        def find_out() -> bool:
            try:
                self.factory(dtype=policy)
            except (ValueError, TypeError) as error:
                return "dtype" in str(error)
            try:
                self.measure(self.under(policy))
            except (tf.errors.NotFoundError, tf.errors.InvalidArgumentError) as error:
                return any(words in str(error) for words in NO_KERNEL)
            except Exception:  # the check that asks will say so
                return False
            return False

        return bool(self.once(("unsupported", policy), find_out))

    # Calling them.

    def call(self, layer: keras.layers.Layer, batch: Batch, training: bool | None) -> Any:
        """The layer's output; of `training` the layer is told if it wants to know and it is not None."""
        takes_training = training is not None and "training" in inspect.signature(layer.call).parameters
        return layer(*batch.args, **batch.kwargs, **({"training": training} if takes_training else {}))

    def seen(self, layer: keras.layers.Layer, batch: Batch, training: bool, *, gradients: bool = True) -> dict[str, tf.Tensor]:
        """Outputs, losses and gradients of one call, by name; in whatever mode this runs."""
        batch = batch.tensors()
        inputs = [a for a in batch.arrays if a.dtype.is_floating]
        weights = list(layer.trainable_weights)
        with tf.GradientTape(watch_accessed_variables=gradients) as tape:
            if gradients:
                tape.watch(inputs)
            outputs = tf.nest.flatten(self.call(layer, batch, training))
            losses = list(layer.losses)
            total = weighted_total(outputs, losses)
        seen = {f"output/{i}": tf.convert_to_tensor(o) for i, o in enumerate(outputs)}
        seen |= {f"loss/{i}": loss for i, loss in enumerate(losses)}
        if gradients:
            names = [f"input {i}" for i in range(len(inputs))] + [f"{i} {w.name}" for i, w in enumerate(weights)]
            for name, gradient in zip(names, tape.gradient(total, [*inputs, *(w.value for w in weights)]), strict=True):
                if gradient is not None:
                    seen[f"gradient/{name}"] = tf.convert_to_tensor(gradient)
        return seen

    def left(self, layer: keras.layers.Layer, batch: Batch, training: bool, *, gradients: bool = True) -> dict[str, Any]:
        """`seen`, and what the call leaves in metrics, which are reset before, and in state."""
        for metric in layer.metrics:
            metric.reset_state()
        found = self.seen(layer, batch, training, gradients=gradients)
        found |= {f"metric/{local_name(m)}": m.result() for m in layer.metrics}
        return found | {f"state/{i} {v.name}": tf.convert_to_tensor(v.value) for i, v in enumerate(layer.variables)}

    def measure(
        self, layer: keras.layers.Layer, batch: Batch | None = None, training: bool = True, *, gradients: bool = True, keep: bool = False
    ) -> Seen:
        """One call in eager mode; unless `keep`, the state is put back."""
        with contextlib.nullcontext() if keep else state_kept(layer):
            return arrays_of(self.left(layer, batch or self.batch, training, gradients=gradients))

    def trainings(self) -> tuple[bool, ...]:
        """Values of `training` at which calls can differ: a layer that is not told about it needs one call only."""
        return (True, False) if self.stochastic or "training" in self.arguments else (True,)

    def modes(self) -> tuple[bool, ...]:
        """Those of them at which calls can be predicted."""
        return (False,) if self.stochastic else self.trainings()

    def second_batch(self) -> Batch:
        """Another batch of the same shapes: examples in another order, numbers halved."""
        return self.batch.map(lambda a: np.roll(a, 1, 0)).map_floats(lambda a: a / 2)

    def axes(self) -> dict[int, int]:
        """Axis -> size of the dimensions that vary: batch, and time if there is one."""
        shape = self.batch.arrays[0].shape
        return {axis: shape[axis] for axis in (0, self.time) if axis is not None}

    @functools.cached_property
    def arguments(self) -> frozenset[str]:
        """Names of the arguments of `call`."""
        return frozenset(inspect.signature(self.factory().call).parameters)

    @functools.cached_property
    def time(self) -> int | None:
        """The axis that is time: the one that was given, or the second one of `[B, T, ...]` inputs of a layer that takes a mask."""
        return 1 if self.time_axis is None and "mask" in self.arguments and self.batch.arrays[0].ndim >= 3 else self.time_axis

    def shorter(self) -> Batch:
        """One example less, and one time step if there is time."""
        sizes = self.axes()

        def cut(array: np.ndarray) -> np.ndarray:
            return array[tuple(slice(sizes[i] - 1) if sizes.get(i) == n else slice(None) for i, n in enumerate(array.shape))]

        return self.batch.map(cut)


def weighted_total(outputs: Sequence[Any], losses: Sequence[Any]) -> tf.Tensor:
    """A scalar in which no element of the outputs can hide behind another, plus the losses."""
    terms = [tf.reduce_sum(tf.cast(loss, tf.float64)) for loss in losses]
    for output in map(tf.convert_to_tensor, outputs):
        if output.dtype.is_floating:
            terms.append(tf.tensordot(tf.reshape(tf.cast(output, tf.float64), [-1]), _wave(tf.size(output)), 1))
    return tf.add_n([*terms, tf.zeros([], tf.float64)])


def _wave(size: tf.Tensor) -> Any:
    known = tf.get_static_value(size)
    return tf.cos(tf.cast(tf.range(size), tf.float64)) if known is None else np.cos(np.arange(known, dtype="float64"))


def arrays_of(tensors: Mapping[str, Any]) -> Seen:
    """Tensors as arrays."""
    return {name: np.asarray(value.numpy() if hasattr(value, "numpy") else value) for name, value in tensors.items()}


def state_of(layer: keras.layers.Layer) -> list[np.ndarray]:
    """Weights and seed states."""
    return [variable.numpy() for variable in layer.variables]


def restore(layer: keras.layers.Layer, state: Sequence[Any]) -> None:
    """Puts back what `state_of` gave."""
    for variable, value in zip(layer.variables, state, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def state_kept(layer: keras.layers.Layer) -> Iterator[None]:
    """Puts the state back at the end, whatever happens."""
    before = state_of(layer)
    try:
        yield
    finally:
        restore(layer, before)


def copy_state(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Weights and seed states, in order."""
    ours, theirs = source.variables, target.variables
    assert [v.shape for v in ours] == [v.shape for v in theirs], (
        f"two layers from one factory have other variables: {[v.path for v in ours]} and {[v.path for v in theirs]}"
    )
    restore(target, state_of(source))


def local_name(metric: keras.metrics.Metric) -> str:
    """The name that the layer gave to `add_metric`."""
    return metric.name.rpartition("/")[2]


def agree(one: Mapping[str, Any], other: Mapping[str, Any], what: str, *, rtol: float = 1e-4, atol: float = 1e-5, only: str = "") -> None:
    """Asserts that two calls left the same; `only` restricts it to what begins so."""
    one = {k: v for k, v in one.items() if k.startswith(only)}
    other = {k: v for k, v in other.items() if k.startswith(only)}
    missing = sorted({*one} ^ {*other})
    assert not missing, f"{what}: {', '.join(missing)} in one of the two only"
    for name, value in one.items():
        close(value, other[name], f"{what}: {name}", rtol=rtol, atol=atol)


def close(value: Any, expected: Any, what: str, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Asserts equal shapes and close values; NaN equals nothing."""
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape, f"{what} has shape {value.shape}, expected {expected.shape}"
    if value.dtype.kind not in "fc" and expected.dtype.kind not in "fc":
        assert np.array_equal(value, expected), f"{what} is {_brief(value)}, expected {_brief(expected)}"
        return
    value, expected = value.astype("float64"), expected.astype("float64")
    fits = np.isclose(value, expected, rtol=rtol, atol=atol)
    if not fits.all():
        at = tuple(int(i) for i in np.argwhere(~fits)[0])
        where = f" at {list(at)}" if at else ""
        raise AssertionError(f"{what} is {value[at]:.8g}{where}, expected {expected[at]:.8g} ({np.sum(~fits)} of {fits.size} differ)")


def _brief(value: np.ndarray) -> str:
    return np.array2string(value, threshold=8)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Everything in float64, losses too, so that formulas and derivatives can be compared closely."""
    before = keras.config.floatx()
    keras.config.dtype_policy()  # Keras settles the global policy when first asked; asked in here, it would stay float64
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def ask(oracle: Callable[..., Any], layer: keras.layers.Layer, batch: Batch, training: bool) -> Any:
    """What an oracle expects, told about `training` if it wants to know."""
    wants = "training" in inspect.signature(oracle).parameters
    return oracle(layer, *batch.args, **batch.kwargs, **({"training": training} if wants else {}))
