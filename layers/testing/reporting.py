"""Metrics: values over several batches against NumPy, reset, names, and the same numbers from every way of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers.aggregation import Aggregate, Max, Mean, Min, Sum
from layers.testing.case import NAME, Case, ask, close, copy_state, local_name, state_kept

__all__ = ["metric_names", "metric_values", "training"]


def _latest(values: list[Any]) -> Any:
    return values[-1]


#: How values of batches with equally many elements become that of all; of `second_batch` and the first, means of means are means.
JOIN: dict[Any, Callable[[list[Any]], Any]] = {Mean: np.mean, Sum: np.sum, Max: np.max, Min: np.min}


EPOCHS = 2


def metric_values(case: Case) -> str | None:
    """After several batches a metric is what NumPy makes of them all; after a reset, of what came since."""
    if not case.metrics:
        return "the layer reports no metrics"
    assert case.metric_oracle is not None, "the layer reports metrics: give a metric_oracle"
    for mode in case.modes():
        with state_kept(case.layer):
            _compare_with_oracle(case, case.layer, mode)
    return None


def _compare_with_oracle(case: Case, layer: Any, mode: bool) -> None:
    assert case.metric_oracle is not None
    for batches in ([case.batch, case.second_batch()], [case.batch]):
        for metric in layer.metrics:
            metric.reset_state()
        expected: list[dict[str, Any]] = []
        for batch in batches:
            expected.append(dict(ask(case.metric_oracle, layer, batch, mode)))
            case.call(layer, batch.tensors(), mode)
        assert {*expected[0]} == {*case.metrics}, f"metric_oracle names {sorted(expected[0])}, expected {sorted(case.metrics)}"
        _compare(layer, expected, mode)


def _compare(layer: Any, expected: list[dict[str, Any]], mode: bool) -> None:
    for metric in layer.metrics:
        name = local_name(metric)
        values = [np.mean(e[name]) for e in expected]
        joined = JOIN.get(type(metric), _latest)(values)
        what = f"metric {name!r} after {len(values)} batches at training={mode}"
        if isinstance(metric, Aggregate) or len(values) == 1:
            close(metric.result(), joined, what, rtol=1e-4, atol=1e-5)


def metric_names(case: Case) -> str | None:
    """Two layers in one model report under different names, that begin with the layer's."""
    if not case.metrics:
        return "the layer reports no metrics"
    one, other = case.layer, case.make(name="other")
    for layer in (one, other):
        stray = [m.name for m in layer.metrics if not m.name.startswith(layer.name)]
        assert not stray, f"metrics {stray} do not begin with the layer's name: name sublayers after their parent"
    both = {m.name for m in one.metrics} & {m.name for m in other.metrics}
    assert not both, f"two layers both report {sorted(both)}"
    return None


def training(case: Case) -> str | None:
    """`model.fit` reports the layer's metrics, for training and validation.

    If another trainer was given as `fit`, it is the one that trains, and it has to report what Keras's own steps report in eager mode.
    """
    if not case.losses and not any(o.dtype.is_floating for o in tf.nest.flatten(case.call(case.layer, case.batch.tensors(), False))):
        return "there is nothing to train"
    x = [np.asarray(a) for a in case.batch.arrays]
    y = np.zeros([len(x[0]), 1], "float32")
    size = max(1, len(y) // 2)
    train, name = (keras.Model.fit, "model.fit") if case.fit is None else (case.fit, "the trainer")
    history = train(_model(case), x, y, batch_size=size, epochs=EPOCHS, shuffle=False, verbose=0, validation_data=(x, y)).history
    missing = [n for n in case.metrics for k in ("", "val_") if not any(h.startswith(k) and h.endswith(f"/{n}") for h in history)]
    assert not missing, f"{name} does not report {sorted({*missing})}; it reports {sorted(history)}"
    for key, values in history.items():
        assert np.isfinite(values).all(), f"{key} is not finite in {name}: {values}"
    if case.fit is not None:
        for key, values in _history_of_keras_steps(_model(case), x, y, size).items():
            assert key in history, f"{key} is reported by Keras only"
            close(history[key], values, f"{key} of the trainer, against Keras")
    return None


def _history_of_keras_steps(model: keras.Model, x: list[np.ndarray], y: np.ndarray, size: int) -> dict[str, list[float]]:
    """What `model.fit` reports, without its data pipeline."""
    history: dict[str, list[float]] = {}
    batches = [slice(i, i + size) for i in range(0, len(y), size)]
    for _ in range(EPOCHS):
        for prefix, step in (("", model.train_step), ("val_", model.test_step)):
            model.reset_metrics()
            for batch in batches:
                logs = step(tf.nest.map_structure(tf.constant, ([a[batch] for a in x], y[batch])))
            for key, value in logs.items():
                history.setdefault(prefix + key, []).append(float(value))
    return history


def _model(case: Case) -> keras.Model:
    symbols, inputs = case.batch.symbols()
    layer = case.factory(name=NAME)
    outputs = tf.nest.flatten(case.call(layer, symbols, None))
    copy_state(case.layer, layer)
    model = keras.Model(inputs, Readout()(outputs))
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    return model


class Readout(keras.layers.Layer):
    """All floating outputs as one number for each example, so that any layer can be trained on a target."""

    def __init__(self) -> None:
        super().__init__()
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        floats = [x for x in tf.nest.flatten(inputs) if tf.as_dtype(x.dtype).is_floating]
        rows = [tf.reduce_mean(tf.reshape(x, [tf.shape(x)[0], -1]), axis=1, keepdims=True) for x in floats if x.shape.rank]
        return tf.add_n(rows)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, int]:
        return (None, 1)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        return None
