"""Reads exported models in a process that knows nothing of the run, and compares their predictions with those of the model it exported.

`research.exports.check` starts it as a program, so it imports nothing of this project at its start. It gets its order as JSON on stdin and
prints what it found as JSON: form -> largest relative difference, or a sentence.
"""

from __future__ import annotations

import importlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["TOLERANCE", "compare", "save"]

#: Largest difference between predictions that are called equal, relative to the largest prediction.
TOLERANCE = 1e-5


def save(path: pathlib.Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Writes what the process is to put in, and what has to come out, flat, as arrays."""
    arrays = {f"in{i}": np.asarray(a) for i, a in enumerate(inputs)} | {f"out{i}": np.asarray(a) for i, a in enumerate(outputs)}
    # As objects, texts would be pickled.
    np.savez(path, **{name: a.astype(str) if a.dtype.kind == "O" else a for name, a in arrays.items()})


def compare(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float | str:
    """The largest difference relative to the largest value, or a sentence if it is too large."""
    shapes = [[list(np.shape(a)) for a in arrays] for arrays in (expected, found)]
    if shapes[0] != shapes[1]:
        return f"its predictions have the shapes {shapes[1]} in place of {shapes[0]}"
    scale = max(float(np.max(np.abs(a), initial=0)) for a in expected)
    difference = max(float(np.max(np.abs(a - b), initial=0)) for a, b in zip(expected, found, strict=True)) / max(scale, 1e-12)
    return difference if difference <= TOLERANCE else f"its predictions differ by {difference:.1e} of the largest"


def _read(path: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    with np.load(path, allow_pickle=False) as arrays:
        found = [[arrays[f"{kind}{i}"] for i in range(len(arrays)) if f"{kind}{i}" in arrays] for kind in ("in", "out")]
    return found[0], found[1]


def _serve(path: str, names: Sequence[str], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    import tensorflow as tf

    serving = tf.saved_model.load(path).signatures["serving_default"]
    outputs = serving(**{name: tf.constant(a) for name, a in zip(names, inputs, strict=True)})
    return [outputs[name].numpy() for name in sorted(outputs, key=lambda name: (len(name), name))]


def _rebuilt(form: str, files: Mapping[str, str]) -> Any:
    import tensorflow as tf

    from research.exports.load import load
    from research.study import InputError

    if form in ("keras", "h5", "architecture"):
        return load(files[form])
    if "architecture" not in files:
        raise InputError("written, but not read again: that takes a model, and there is no architecture of this one")
    model = load(files["architecture"])
    if form == "weights":
        model.load_weights(files[form])
    else:
        tf.train.Checkpoint(variables=[v.value for v in model.weights]).read(files[form]).assert_consumed()
    return model


def _predict(form: str, files: Mapping[str, str], inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float | str:
    import keras
    import tensorflow as tf

    from research.exports.inputs import inputs_of

    try:
        model = _rebuilt(form, files)
        tensors: Any = [tf.convert_to_tensor(a) for a in inputs]
        specs = inputs_of(model)
        x = keras.tree.pack_sequence_as(specs, tensors) if specs is not None else tensors[0] if len(tensors) == 1 else tensors
        outputs = keras.tree.flatten(model(x, training=False))
    except Exception as error:  # reported to the process that asked
        return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if form == "architecture":
        # It has no values: the outputs have only their shapes in common.
        return compare([np.zeros(a.shape) for a in expected], [np.zeros(a.shape) for a in outputs])
    return compare(expected, [np.asarray(t) for t in outputs])


def main() -> None:
    """Carries out the order on stdin."""
    order = json.load(sys.stdin)
    inputs, expected = _read(order["given"])
    if order["isolated"]:
        # None makes an import of the name fail.
        sys.modules.update({name: None for name in ("loops", "layers", "research")})  # type: ignore[dict-item]
        found: dict[str, Any] = {form: compare(expected, _serve(path, order["names"], inputs)) for form, path in order["files"].items()}
    else:
        for module in order["modules"]:
            importlib.import_module(module)
        found = {form: _predict(form, order["files"], inputs, expected) for form in order["files"]}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
