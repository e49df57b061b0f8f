"""The outputs that an evaluation or prediction collected, of all its calls and, where there are several, of all worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops.cluster import Cluster
from loops.cluster.packing import packed, unpacked
from loops.engine.outputs import concatenated
from loops.engine.program import Call
from loops.engine.step import ROWS_OF_WORKER

__all__ = ["joined_outputs"]


def joined_outputs(calls: Sequence[tuple[Call, int]], cluster: Cluster) -> dict[str, Any]:
    """The outputs of all calls, in the order of the examples; with several workers, those of all, on every worker.

    Args:
        calls: each with the number of its steps.
        cluster: the workers.
    """
    parts: dict[str, list[Any]] = {}
    for call, n in calls:
        for name, outputs in call.collected.items():
            arrays = tf.nest.map_structure(lambda t, call=call, n=n: _unpadded(t, call, n), outputs)
            parts.setdefault(name, []).append(arrays)
    joined = {name: tf.nest.map_structure(lambda *arrays: concatenated(arrays), *arrays) for name, arrays in parts.items()}
    outputs = tf.nest.map_structure(lambda value: np.asarray(value) if isinstance(value, tf.Tensor) else value, joined)
    return _of_all_workers(outputs, cluster) if cluster.several else outputs


def _unpadded(outputs: Any, call: Call, n: int) -> Any:
    """The outputs of the first `n` steps; an XLA program returns outputs for as many steps as its capacity."""
    outputs = np.asarray(outputs) if isinstance(outputs, tf.Tensor) else outputs
    return outputs if call.capacity is None else outputs[: len(outputs) // call.capacity * n]


def _of_all_workers(outputs: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    counts = tf.nest.flatten(outputs.pop(ROWS_OF_WORKER))
    flat = tf.nest.flatten(outputs)
    sent = packed({f"{kind}{i}": np.asarray(v) for kind, values in (("v", flat), ("n", counts)) for i, v in enumerate(values)}, {}, {})
    received = [unpacked(part)[0] for part in cluster.gather(sent)]
    out = []
    for i in range(len(flat)):
        # Rows are sorted by their step; within a step the workers stand in order, as their parts do in a batch.
        steps = np.concatenate([np.repeat(np.arange(len(arrays[f"n{i}"])), arrays[f"n{i}"]) for arrays in received])
        out.append(np.concatenate([arrays[f"v{i}"] for arrays in received])[np.argsort(steps, kind="stable")])
    return dict(tf.nest.pack_sequence_as(outputs, out))
