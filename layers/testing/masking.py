"""Masks: what is padded does not count, and the mask goes on to the next layer, or it is said that masks are not supported."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers._private_api import get_keras_mask, set_keras_mask
from layers.testing.case import Batch, Case, Seen, close, state_kept

__all__ = ["masking"]


def masking(case: Case) -> str | None:
    """A padded batch with a mask gives what the trimmed batch gives, in outputs, losses, metrics and moving state; the mask goes on."""
    layer = case.layer
    takes_mask = "mask" in case.arguments
    if not layer.supports_masking:
        assert not (takes_mask and "masks" in case.rules), "call takes a mask, but supports_masking is False"
        return "the layer does not support masks"
    axis = case.time
    _assert_goes_on(case, layer)
    if axis is None:
        assert not (takes_mask and "masks" in case.rules), (
            "call takes a mask: give inputs with a time axis [B, T, ...], or time_axis, or skip masking"
        )
        return "the inputs have no time axis" if takes_mask else None
    length = case.batch.arrays[0].shape[axis]
    kept = max(1, length // 2)
    trimmed, padded = _pair(case, axis, length, kept)
    nested = not isinstance(case.batch.args[0], np.ndarray)
    if not takes_mask or nested:  # Keras hands over the masks that tensors carry, one for each
        for batch in (trimmed, padded):
            mask = tf.constant(batch.kwargs.pop("mask"))
            if takes_mask:
                batch = batch.map(tf.convert_to_tensor)
                set_keras_mask(batch.arrays[0], mask)
                if mask.shape[axis] == kept:
                    trimmed = batch
                else:
                    padded = batch
    training = case.modes()[0]
    short = case.measure(layer, trimmed, training, gradients=False)
    long = case.measure(layer, padded, training, gradients=False)
    _compare(short, long, axis, length, kept)
    return None


def _pair(case: Case, axis: int, length: int, kept: int) -> tuple[Batch, Batch]:
    random = np.random.default_rng(0)

    def along(array: np.ndarray) -> bool:
        return array.ndim > axis and array.shape[axis] == length

    def trim(array: np.ndarray) -> np.ndarray:
        return np.take(array, np.arange(kept), axis) if along(array) else array

    def spoil(array: np.ndarray) -> np.ndarray:
        if not along(array) or array.dtype.kind != "f":
            return array
        garbage = 100 * random.standard_normal(array.shape)
        shape = [length if i == axis else 1 for i in range(array.ndim)]
        return np.where(np.reshape(np.arange(length) < kept, shape), array, garbage).astype(array.dtype)

    shape = case.batch.arrays[0].shape[: axis + 1]
    mask = case.batch.kwargs.get("mask")
    mask = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    trimmed, padded = case.batch.map(trim), case.batch.map(spoil)
    trimmed.kwargs["mask"] = trim(mask)
    padded.kwargs["mask"] = mask & (np.arange(length) < kept)
    return trimmed, padded


def _compare(short: Seen, long: Seen, axis: int, length: int, kept: int) -> None:
    for name, value in short.items():
        other = long[name]
        if name.startswith("output/") and other.ndim > axis and other.shape[axis] == length:
            other = np.take(other, np.arange(kept), axis)
        close(other, value, f"{name} of the padded batch, against the trimmed one", rtol=1e-4, atol=1e-4)


def _assert_goes_on(case: Case, layer: Any) -> None:
    """The mask on the inputs arrives at the outputs that still have time: the same, unless the layer makes masks of its own."""
    first, strict = case.batch.arrays[0], "masks" in case.rules
    if first.ndim >= 3 and (strict or first.shape[1] not in first.shape[2:]):  # else there is no telling whether time is still there
        mask = tf.constant(np.arange(first.shape[1]) < 1 + np.arange(first.shape[0])[:, None])
    elif first.ndim == 2 and strict:  # what has no time may hand on any mask
        mask = tf.constant(np.arange(first.shape[0]) % 2 == 0)[:, None]
    else:
        return
    tensors = case.batch.tensors()
    tensors.kwargs.pop("mask", None)
    for tensor in tensors.arrays:
        if tensor.shape[:2] == mask.shape or first.ndim == 2:
            set_keras_mask(tensor, mask)
    with state_kept(layer):
        outputs = tf.nest.flatten(case.call(layer, tensors, False))
    for i, output in enumerate(outputs):
        if output.shape[:2] == mask.shape or first.ndim == 2:
            found = get_keras_mask(output)
            assert found is not None, f"supports_masking is True, but the mask does not arrive at output/{i}: compute_mask drops it"
            if type(layer).compute_mask is keras.layers.Layer.compute_mask or "mask" in case.arguments:
                close(found, mask, f"the mask on output/{i}")
