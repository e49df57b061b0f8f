"""Several replicas: each has its own losses and noise, all have the same state, and metrics are those of one device."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from layers.testing.case import Batch, Case, Seen, agree, close, copy_state, local_name, state_kept

__all__ = ["replica_losses", "replica_metrics", "replica_noise", "replica_state"]


def replica_losses(case: Case) -> str | None:
    """Outputs and losses on a replica are those of its part of the batch alone."""
    if case.strategy is None:
        return "no strategy was given"
    training = case.modes()[0]
    _, found = _step(case, training)
    for i, (part, seen) in enumerate(zip(_parts(case), found, strict=True)):
        single = case.measure(case.layer, part, training, gradients=False)
        alone = {k: v for k, v in single.items() if k in seen or k.startswith("loss/")}
        agree(alone, seen, f"one device and replica {i}", rtol=1e-4, atol=1e-5)
    return None


def replica_state(case: Case) -> str | None:
    """After a training step the weights are the same on all replicas, and those of one device on the whole batch."""
    if case.strategy is None:
        return "no strategy was given"
    mirrored, _ = _step(case, True)
    with state_kept(case.layer):
        case.call(case.layer, case.batch.tensors(), True)
        single = [weight.numpy() for weight in case.layer.weights]
    for ours, theirs in zip(mirrored.weights, single, strict=True):
        values = [np.asarray(v) for v in case.strategy.experimental_local_results(ours.value)]
        for i, value in enumerate(values[1:], 1):
            close(value, values[0], f"{ours.name} on replica {i}, against replica 0", rtol=0, atol=0)
        if not case.stochastic:
            close(values[0], theirs, f"{ours.name} after a step of all replicas, against one device", rtol=1e-4, atol=1e-5)
    return None


def replica_noise(case: Case) -> str | None:
    """Replicas that are given the same batch draw different noise."""
    if case.strategy is None or not case.stochastic:
        return "no strategy was given, or the layer draws no noise"
    count = case.strategy.num_replicas_in_sync
    seen = _run(case, _mirrored(case), [case.batch] * count, True)
    for i in range(1, count):
        same = all(np.array_equal(value, seen[i][name]) for name, value in seen[0].items())
        assert not same, f"replicas 0 and {i} draw the same noise: use layers.replicas.replica_seed"
    return None


def replica_metrics(case: Case) -> str | None:
    """Metrics of all replicas are those of one device that saw all parts."""
    if case.strategy is None or not case.metrics:
        return "no strategy was given, or the layer reports no metrics"
    training = case.modes()[0]
    mirrored, _ = _step(case, training)
    single = case.layer
    for metric in single.metrics:
        metric.reset_state()
    for part in _parts(case):
        with state_kept(single):
            case.call(single, part.tensors(), training)
    for ours, theirs in zip(mirrored.metrics, single.metrics, strict=True):
        if type(ours).__name__ != "Last":  # the latest call is another one on one device
            close(ours.result(), theirs.result(), f"metric {local_name(ours)!r} of all replicas, against one device")
    return None


def _step(case: Case, training: bool) -> tuple[keras.layers.Layer, list[Seen]]:
    """A layer after one step on the parts of the batch, and what each replica saw."""

    def run() -> tuple[keras.layers.Layer, list[Seen]]:
        mirrored = _mirrored(case)
        return mirrored, _run(case, mirrored, _parts(case), training)

    step: tuple[keras.layers.Layer, list[Seen]] = case.once(("replicas", training), run)
    return step


def _mirrored(case: Case) -> keras.layers.Layer:
    """A layer on all replicas, with the state of the one that is on one device."""
    with case.strategy.scope():
        mirrored = case.make()
    copy_state(case.layer, mirrored)
    return mirrored


def _parts(case: Case) -> list[Batch]:
    """The batch in uneven parts, the first one larger."""
    count, size = case.strategy.num_replicas_in_sync, case.axes()[0]
    cuts = [0, *(size - (count - i) * max(1, size // (2 * count)) for i in range(1, count)), size]
    return [case.batch.take(slice(cuts[i], cuts[i + 1])) for i in range(count)]


def _run(case: Case, layer: keras.layers.Layer, parts: list[Batch], training: bool) -> list[Seen]:
    """What each replica sees of one step."""
    strategy = case.strategy

    def step(arrays: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        return case.seen(layer, case.batch.replace(arrays), training, gradients=False)

    def distributed(column: tuple[Any, ...]) -> Any:
        return strategy.experimental_distribute_values_from_function(lambda c: tf.constant(column[c.replica_id_in_sync_group]))

    arrays = [distributed(column) for column in zip(*(part.arrays for part in parts), strict=True)]
    found = tf.function(lambda arrays: strategy.run(step, args=(arrays,)), autograph=False)(arrays)
    local = {name: strategy.experimental_local_results(value) for name, value in found.items()}
    return [{name: np.asarray(values[i]) for name, values in local.items()} for i in range(len(parts))]
