"""The battery: one call checks what a layer promises, property by property. For the layers of this package and for users' own."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from layers.testing import behaviour, configs, conventions, masking, modes, numerics, precision, replicas, reporting, saving, state
from layers.testing.case import Batch, Case
from layers.testing.rules import HOUSE_RULES

__all__ = ["HOUSE_RULES", "PROPERTIES", "BrokenLayer", "check_layer"]

#: Name -> check. A check raises AssertionError, or returns why it does not apply, or None.
PROPERTIES: dict[str, Callable[[Case], str | None]] = {
    check.__name__: check
    for check in (
        conventions.constructor,
        configs.config,
        conventions.build,
        conventions.output_spec,
        conventions.loss_count,
        state.variables,
        state.python_state,
        numerics.oracle,
        numerics.loss_oracle,
        numerics.degenerate,
        numerics.gradient,
        numerics.stop_gradient,
        modes.function,
        modes.xla,
        modes.unknown_dimensions,
        modes.coefficients,
        precision.policies,
        precision.extremes,
        masking.masking,
        reporting.metric_values,
        reporting.metric_names,
        reporting.training,
        saving.keras_file,
        saving.weights_file,
        saving.copies,
        saving.export,
        saving.checkpoint,
        replicas.replica_losses,
        replicas.replica_state,
        replicas.replica_noise,
        replicas.replica_metrics,
        behaviour.inference,
        behaviour.seeds,
        behaviour.frozen,
        behaviour.empty_batch,
        behaviour.single_example,
        behaviour.examples,
    )
}


class BrokenLayer(AssertionError):
    """A layer breaks what it promises.

    Attributes:
        broken: property -> what was found. What was found before is said once: "the same as `config`".
    """

    def __init__(self, layer: str, broken: dict[str, str]):
        first: dict[str, str] = {}
        for name, found in broken.items():
            first.setdefault(found, name)
        self.broken = {name: found if first[found] == name else f"the same as `{first[found]}`" for name, found in broken.items()}
        lines = "\n".join(f"  {', '.join(n for n in broken if broken[n] == found)}: {found}" for found in first)
        super().__init__(f"{layer} breaks {len(broken)} of {len(PROPERTIES)} properties:\n{lines}")


def check_layer(
    factory: Callable[..., keras.layers.Layer],
    inputs: Any,
    *,
    call_kwargs: Mapping[str, Any] | None = None,
    oracle: Callable[..., Any] | None = None,
    losses: int = 0,
    loss_oracle: Callable[..., Any] | None = None,
    metrics: Sequence[str] = (),
    metric_oracle: Callable[..., Mapping[str, Any]] | None = None,
    coefficients: Sequence[str] = (),
    stochastic: bool = False,
    degenerate: Mapping[str, tuple[Any, Callable[..., Any]]] | None = None,
    gradient_oracle: Callable[..., Any] | None = None,
    differentiable: Sequence[str] = ("output", "losses"),
    stop_gradient: Sequence[tuple[str, int | str]] = (),
    invalid: Sequence[Mapping[str, Any]] = (),
    extremes: Sequence[Any] = (),
    time_axis: int | None = None,
    strategy: Any = None,
    fit: Callable[..., Any] | None = None,
    rules: Sequence[str] = (),
    skip: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, str]:
    """Checks a layer, each property by itself, and reports all that are broken.

    Oracles are functions of `(layer, *inputs, **call_kwargs)`, called before the layer is, with NumPy arrays; one that has a `training`
    parameter is told. Layers are compared with them at `training` False and True, of stochastic ones only at False.

    Args:
        factory: makes a new layer from constructor arguments, which override what it sets by itself: the class, or a `functools.partial`
            of it. It is given `name`, `dtype` (for layers inside of it, too), for stochastic layers `seed`, and what `invalid` and
            `degenerate` hold.
        inputs: an array `[B, ...]`; a tuple of arrays for several positional arguments; a list or dict as one nested argument. Four or
            more examples; `[B, T, ...]` if the layer takes a mask. Sizes of B, T and the others had better differ.
        call_kwargs: further arguments of each call. Arrays in it are batch-major too.
        oracle: the expected output; compared at float64.
        losses: how many losses a call adds.
        loss_oracle: the expected losses, a number or a list.
        metrics: names that the layer gives to `add_metric`.
        metric_oracle: name -> the expected value after one call.
        coefficients: attributes that hold what `add_coefficient` made.
        stochastic: whether calls at training=True draw noise. The constructor then takes a `seed`.
        degenerate: description -> (constructor arguments or a function that prepares the layer, oracle of the output).
        gradient_oracle: `(layer, *inputs, **call_kwargs, upstream) -> gradients of each floating input`, where the gradient of the
            first output is not its derivative.
        differentiable: what to compare with finite differences: "output", "losses", or one of several, "output/0", "losses/1".
        stop_gradient: pairs (part as above, index of a floating input or name of a weight) without a gradient.
        invalid: constructor arguments that have to be refused, each dict by itself.
        extremes: further inputs for which everything has to stay finite.
        time_axis: axis of the inputs, and of all arrays of the same size there, that is time; None takes axis 1 of `[B, T, ...]` inputs
            if the layer takes a mask.
        strategy: a `tf.distribute.MirroredStrategy` to run on; without it the replicas' properties are not checked.
        fit: another trainer, called as `fit(model, x, y, batch_size=..., epochs=..., shuffle=..., verbose=..., validation_data=...)`. What
            it reports is compared with Keras's own steps in eager mode, so give one that compiles.
        rules: names of `HOUSE_RULES` to apply beyond what Keras asks of any layer; the tests of this package apply all.
        skip: property -> why it does not hold for this layer.
        only: names of the properties to check; all if None.

    Returns:
        property -> "passed", "skipped: ..." or "does not apply: ...".

    Raises:
        BrokenLayer: if a property does not hold; `broken` names each.
        ValueError: if `skip` or `only` name what is not a property, or `rules` what is no rule, or a reason is missing.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 12).reshape(4, 3)
        >>> results = check_layer(keras.layers.ReLU, x, oracle=lambda layer, x: np.maximum(x, 0), only=["oracle", "xla", "masking"])
        >>> results["oracle"]
        'passed'
    """
    __tracebackhide__ = True  # pytest then ends its traceback at the caller
    skip = dict(skip or {})
    unknown = [name for name in [*skip, *(only or ())] if name not in PROPERTIES]
    if unknown:
        raise ValueError(f"No such property: {', '.join(unknown)}; there are {', '.join(PROPERTIES)}.")
    if strange := [rule for rule in rules if rule not in HOUSE_RULES]:
        raise ValueError(f"No such rule: {', '.join(strange)}; there are {', '.join(HOUSE_RULES)}.")
    unexplained = [name for name, reason in skip.items() if not (isinstance(reason, str) and reason.strip())]
    if unexplained:
        raise ValueError(f"Say why {', '.join(unexplained)} may be skipped: skip={{'{unexplained[0]}': 'because ...'}}.")
    case = Case(
        factory=factory,
        batch=Batch(inputs if isinstance(inputs, tuple) else (inputs,), dict(call_kwargs or {})).map_floats(lambda a: a.astype("float32")),
        oracle=oracle,
        loss_oracle=loss_oracle,
        metric_oracle=metric_oracle,
        gradient_oracle=gradient_oracle,
        differentiable=differentiable,
        stop_gradient=stop_gradient,
        degenerate=degenerate or {},
        losses=losses,
        metrics=metrics,
        coefficients=coefficients,
        stochastic=stochastic,
        invalid=invalid,
        extremes=extremes,
        time_axis=time_axis,
        strategy=strategy,
        fit=fit,
        rules=rules,
    )
    results: dict[str, str] = {}
    broken: dict[str, str] = {}
    for name, check in PROPERTIES.items():
        if only is not None and name not in only:
            continue
        if name in skip:
            results[name] = f"skipped: {skip[name]}"
            continue
        try:
            with _without_retracing_warnings():
                reason = check(case)
            results[name] = "passed" if reason is None else f"does not apply: {reason}"
        except AssertionError as error:
            broken[name] = str(error)
        except Exception as error:  # whatever a layer raises breaks the property under check, not the others
            broken[name] = _described(error)
    if broken:
        raise BrokenLayer(getattr(getattr(factory, "func", factory), "__name__", repr(factory)), broken)
    return results


def _described(error: Exception) -> str:
    """Where an error came from and what it says: the same for the same fault, whatever the call was."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = re.split("Arguments received by|The op is created at|Stack trace for op definition", str(error))[0].strip()
    said = re.sub(r"keras_tensor_\d+|\x1b\[\d*m", lambda found: "keras_tensor" if "keras" in found[0] else "", said)
    return f"{type(error).__name__} in {where.name}, line {where.lineno} of {where.filename}: {said}"


@contextlib.contextmanager
def _without_retracing_warnings() -> Iterator[None]:
    """Each check compiles the same lines for another layer, which TensorFlow takes for a mistake."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
