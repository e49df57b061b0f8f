"""Compares training with `loops` to training with `model.fit`, bit for bit. Not a test: the parity tests are written with it.

Both sides start from the same seeds with a model of their own. What they leave behind (history, weights, seed-generator states, optimizer
slots, metric states) has to be the same bytes. Nothing here has a tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

import loops

__all__ = ["Outcome", "assert_outcomes", "assert_parity", "assert_same_bits", "differences", "keras_fit", "loops_fit", "same_bits", "train"]

Arguments = Mapping[str, Any]
Fit = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a training run leaves behind.

    Attributes:
        history: key -> values, in the order of the history dict.
        epochs: the epoch numbers of the history.
        state: "model variable 3" -> array, for every model, optimizer and metric variable.
        paths: the same names -> path of the variable. Not compared: a path says where a variable was made.
        callbacks: the callbacks that were passed, after training.
        model: the trained model.
    """

    history: dict[str, list[Any]]
    epochs: list[int]
    state: dict[str, np.ndarray]
    paths: dict[str, str]
    callbacks: list[Any]
    model: keras.Model


def keras_fit(model: keras.Model, **arguments: Any) -> Any:
    """`model.fit` as parity is promised against: array order kept, no XLA."""
    model.jit_compile = False
    return model.fit(**{"shuffle": False, "verbose": 0, **arguments})


def loops_fit(model: keras.Model, **arguments: Any) -> Any:
    """`loops.fit` in the mode that promises parity."""
    return loops.fit(model, **{"shuffle": False, "verbose": 0, "compile": "graph", **arguments})


def train(
    fit: Fit, make_model: Callable[[], keras.Model], data: Arguments | Callable[[], Arguments], seed: int = 11, **arguments: Any
) -> Outcome:
    """Runs one side from a clean start.

    Args:
        fit: `keras_fit`, `loops_fit` or a twin of them, called with (model, **arguments).
        make_model: makes the compiled model.
        data: arguments of `fit` such as x and y; a function that makes them where they have state (a `tf.data` pipeline with a shuffle).
        seed: for `keras.utils.set_random_seed`, and so for initial weights, dropout and `tf.data` shuffles.
        **arguments: further arguments of `fit`. `callbacks` is a function that makes the list, as callbacks have state.
    """
    keras.utils.clear_session(
        free_memory=False
    )  # layer and metric names are numbered per process; collecting garbage takes longer than training
    keras.utils.set_random_seed(seed)
    model = make_model()
    arguments = {**(data() if callable(data) else data), **arguments}
    callbacks = arguments.pop("callbacks", list)()
    if callbacks:
        arguments["callbacks"] = list(callbacks)
    history = fit(model, **arguments)
    variables = _variables(model)
    state = {name: np.asarray(variable) for name, variable in variables.items()}
    paths = {name: variable.path for name, variable in variables.items()}
    return Outcome(dict(history.history), list(history.epoch), state, paths, callbacks, model)


def _variables(model: keras.Model) -> dict[str, Any]:
    optimizers = {id(o): o for o in [model.optimizer, *vars(model).values()] if isinstance(o, keras.optimizers.Optimizer)}
    found: dict[str, Any] = {}
    for kind, variables in (
        ("model", model.variables),
        ("optimizer", [v for optimizer in optimizers.values() for v in optimizer.variables]),
        ("metric", [v for metric in model.metrics for v in metric.variables]),
    ):
        unique = {id(v): v for v in variables}.values()
        found.update({f"{kind} variable {i}": v for i, v in enumerate(unique)})
    return found


def same_bits(a: Any, b: Any) -> bool:
    """True if two values have one type, one shape and the same bytes. A NaN equals any NaN; 0.0 is not -0.0."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind not in "fV":  # V: bfloat16
        return bool(np.array_equal(a, b))
    bits = f"u{a.dtype.itemsize}"
    return bool(np.all((np.atleast_1d(a).view(bits) == np.atleast_1d(b).view(bits)) | np.atleast_1d(np.isnan(a) & np.isnan(b))))


def assert_same_bits(expected: Any, found: Any) -> None:
    """Asserts that two structures of arrays (an array, a list, a dict, nested) are the same structure with the same bits."""
    for structure in (dict, list, tuple):
        assert isinstance(expected, structure) == isinstance(found, structure), f"expected a {type(expected)}, found a {type(found)}"
    if isinstance(expected, dict):
        assert list(expected) == list(found)
        expected, found = list(expected.values()), list(found.values())
    if isinstance(expected, list | tuple):
        assert len(expected) == len(found)
        for e, f in zip(expected, found, strict=True):
            assert_same_bits(e, f)
    else:
        assert same_bits(expected, found), _difference(expected, found)


def _difference(expected: Any, found: Any) -> str:
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return f"expected {expected.dtype}{list(expected.shape)}, found {found.dtype}{list(found.shape)}"
    if expected.size == 1:
        return f"expected {expected!r}, found {found!r}"
    gap = np.abs(expected.astype("float64") - found.astype("float64"))
    return f"{np.count_nonzero(gap)} of {gap.size} values differ, by up to {np.max(gap):.3g}"


def differences(expected: Outcome, found: Outcome, metrics: bool = True) -> list[str]:
    """One sentence for each thing that differs; an empty list means the same bits."""
    if list(expected.history) != list(found.history):
        return [f"history keys: expected {list(expected.history)}, found {list(found.history)}"]
    found_out = []
    if expected.epochs != found.epochs:
        found_out.append(f"history.epoch: expected {expected.epochs}, found {found.epochs}")
    for key, values in expected.history.items():
        if len(values) != len(found.history[key]):
            found_out.append(f"history[{key!r}]: expected {len(values)} values, found {len(found.history[key])}")
            continue
        for i, (e, f) in enumerate(zip(values, found.history[key], strict=True)):
            if not same_bits(e, f):
                found_out.append(f"history[{key!r}][{i}]: {_difference(e, f)}")
    names = [name for name in expected.state if metrics or not name.startswith("metric")]
    others = [name for name in found.state if metrics or not name.startswith("metric")]
    if names != others:
        paths = [[o.paths[name] for name in n] for o, n in ((expected, names), (found, others))]
        return [*found_out, f"variables: expected {paths[0]}, found {paths[1]}"]
    for name in names:
        if not same_bits(expected.state[name], found.state[name]):
            found_out.append(f"{name} ({expected.paths[name]}): {_difference(expected.state[name], found.state[name])}")
    return found_out


def assert_outcomes(expected: Outcome, found: Outcome) -> None:
    """Asserts that a run left behind what `model.fit` left behind, bit for bit.

    Where the fit validates, metric states are left out: Keras leaves those of the validation behind, as it has only one set.
    """
    assert expected.history, "model.fit recorded nothing: the case proves nothing"
    validates = any(key.startswith("val_") for key in expected.history)
    problems = differences(expected, found, metrics=not validates)
    assert not problems, "not the bits of model.fit:\n" + "\n".join(problems)


def assert_parity(
    make_model: Callable[[], keras.Model],
    data: Arguments | Callable[[], Arguments],
    *,
    candidate: Fit = loops_fit,
    reference: Fit = keras_fit,
    seed: int = 11,
    **arguments: Any,
) -> tuple[Outcome, Outcome]:
    """Trains with `model.fit` and with `candidate` from the same seeds and asserts that history and every variable have the same bits.

    Args:
        make_model: makes the compiled model.
        data: arguments of `fit` such as x and y, or a function that makes them.
        candidate: what is judged.
        reference: what it is judged by.
        seed: see `train`.
        **arguments: further arguments of `fit`.

    Returns:
        What both sides left behind: (of `model.fit`, of `candidate`).
    """
    expected = train(reference, make_model, data, seed, **arguments)
    found = train(candidate, make_model, data, seed, **arguments)
    assert_outcomes(expected, found)
    return expected, found
