"""What a study's model takes: its inputs as they are stored and as they are prepared, their shapes and names."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops.feeds import Position
from research.study import InputError, Study

__all__ = ["example_inputs", "inputs_of", "prepared", "specs_of"]


def example_inputs(study: Study, count: int = 32) -> Any:
    """Inputs for a study, as they are stored: its `examples`; else those of its first test batch, if they fit its model; else random ones.

    Args:
        study: what to find inputs for.
        count: how many of a batch to take, or to draw.

    Returns:
        Arrays `[n, ...]`, in the structure that the study's preprocessing takes.

    Raises:
        InputError: if there is a preprocessing, but neither `examples` nor an inverse of it.
    """
    if study.examples is not None:
        return keras.tree.map_structure(np.asarray, study.examples)
    inverse = getattr(study.preprocessing, "inverse", None)
    if study.preprocessing is not None and inverse is None:
        raise InputError("This study has a preprocessing of inputs that it shows no examples of; give its Study some.")
    x = _model_inputs(study, count)
    return x if inverse is None else keras.tree.map_structure(lambda a: np.asarray(inverse(a), np.float32), x)


def _model_inputs(study: Study, count: int) -> Any:
    feed = study.test if study.test is not None else study.train
    batch = next(iter(feed.blocks(Position()))).tensors
    x = tf.nest.map_structure(lambda t: t[0].numpy()[:count], batch[0] if isinstance(batch, (tuple, list)) else batch)
    specs = inputs_of(study.model)
    if specs is None:
        return x
    arrays = keras.tree.flatten(x)
    wanted = keras.tree.flatten(specs)
    if len(arrays) == len(wanted) and all(_fits(a, s) for a, s in zip(arrays, wanted, strict=True)):
        return keras.tree.pack_sequence_as(specs, arrays)
    random = np.random.default_rng(0)

    def drawn(spec: tf.TensorSpec) -> np.ndarray:
        shape, dtype = [count, *(8 if n is None else n for n in spec.shape[1:])], spec.dtype.as_numpy_dtype
        return random.normal(size=shape).astype(dtype) if spec.dtype.is_floating else np.ones(shape, dtype)

    return keras.tree.map_structure(drawn, specs)


def inputs_of(model: keras.Model) -> Any:
    """The specs of a model's inputs in their structure; None for a subclassed model that was not built from symbols."""
    structure = getattr(model, "_inputs_struct", None) if not isinstance(model, keras.Sequential) else None
    inputs = structure if structure is not None else getattr(model, "inputs", None)
    if inputs is None:
        return None
    if isinstance(inputs, list) and len(inputs) == 1:
        inputs = inputs[0]
    return keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype, t.name), inputs)


def specs_of(study: Study) -> Any:
    """What an exported program takes: specs in the structure of the study's inputs, each with the name that the program knows it by."""
    specs = inputs_of(study.model) if study.preprocessing is None and study.examples is None else None
    if specs is None:
        tensors = keras.tree.map_structure(tf.convert_to_tensor, example_inputs(study))
        specs = keras.tree.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), tensors)
    named = keras.tree.flatten_with_path(specs)
    names = [spec.name or "_".join(map(str, path)) for path, spec in named] if len(named) > 1 else ["inputs"]
    return keras.tree.pack_sequence_as(
        specs, [tf.TensorSpec(spec.shape, spec.dtype, name) for name, (_, spec) in zip(names, named, strict=True)]
    )


def prepared(study: Study, x: Any) -> Any:
    """Tensors as they are stored, as the model takes them."""
    return x if study.preprocessing is None else study.preprocessing(x)


def _fits(array: np.ndarray, spec: tf.TensorSpec) -> bool:
    return spec.shape.is_compatible_with(array.shape) and tf.as_dtype(array.dtype).is_floating == spec.dtype.is_floating
