"""What the steps of a contender of `scripts/benchmark.py` are made of: TensorFlow's profiler, summed up by kind of operation."""

from __future__ import annotations

import collections
import pathlib
import re
import tempfile

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from research.benchmarks.contender import Contender

__all__ = ["kind_of", "operations"]

# They contain other operations, which are counted by themselves.
_CONTAINERS = ("cond", "while", "call", "indexed_case", "tuple")


def operations(contender: Contender) -> dict[str, float]:
    """Kind of operation -> microseconds a step that the threads which compute spent in it, the most expensive first.

    Two threads may compute at the same time, so the sum may exceed the time of a step. The profiler makes small operations slower.

    Args:
        contender: set up; it does one more epoch.
    """
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder, options=tf.profiler.experimental.ProfilerOptions(host_tracer_level=3))
        try:
            steps = contender.run(1).steps
        finally:
            tf.profiler.experimental.stop()
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
    spent = collections.Counter[str]()
    for plane in space.planes:
        for line in plane.lines:
            if not line.name.startswith("tf_"):  # of TensorFlow's own threads
                continue
            for event in line.events:
                if (kind := kind_of(plane.event_metadata[event.metadata_id].name)) is not None:
                    spent[kind] += event.duration_ps / 1e6 / steps
    return dict(spent.most_common())


def kind_of(event: str) -> str | None:
    """The kind of operation that an event is of, None if it is of none.

    Example:
        >>> kind_of("while/body/_1/while/adam/Sqrt_1:Sqrt"), kind_of("MatMul_1.35"), kind_of("ThunkExecutor::Execute")
        ('Sqrt', 'MatMul', None)
    """
    if event.startswith("end: ") or "::" in event or " " in event:
        return None
    if ":" in event:  # of a graph, with name and kind
        return event.rsplit(":", 1)[1]
    kind = re.sub(r"(_\d+)?(\.\d+)?$", "", event)
    return None if kind in _CONTAINERS or "/" in event else kind
