"""The names under which a model reports what its layers count: unique within the model, and the same after it is saved and loaded.

A metric is called `"<layer name>/<name>"`. Where two of one model are called the same, because blocks have inner layers of one name, each
takes as many names of the layers around it as make the difference: `"encoder/gate/mean"`, `"decoder/gate/mean"`. Keras would keep the last
of them only. Names are settled when a model lists its metrics, as before that nobody knows what it consists of.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from layers import _private_api
from layers.aggregation import Aggregate

__all__ = ["load_names", "save_names", "settle"]

FILE = "reported_names.json"


def settle(root: Any) -> None:
    """Gives each metric of the layers in `root` a name that no other has. A name once taken is kept, if it is unique."""
    found = list(_reported(root, (), set()))
    taken = dict.fromkeys(range(len(found)), 0)  # how many names of layers each uses; 0: the name that it has
    names = [metric.name for metric, _, _ in found]
    while clashes := [n for n, count in collections.Counter(names).items() if count > 1]:
        for clash in clashes:
            same = [i for i, name in enumerate(names) if name == clash]
            longer = [i for i in same if taken[i] < len(found[i][1])]
            for i in longer:
                taken[i] += 1
                _, around, name = found[i]
                names[i] = "/".join([*around[len(around) - taken[i] :], name])
            for number, i in enumerate([] if longer else same[1:], 1):  # nothing but their order tells them apart
                around, name = found[i][1:]
                names[i] = "/".join([*around[:-1], f"{around[-1]}_{number}", name])
    for (metric, _, _), name in zip(found, names, strict=True):
        metric.name = name


def save_names(metrics: dict[str, Aggregate], folder: str) -> None:
    """Writes the names beside a saved layer: layers inside of others may have been named by Keras's counters, and be named anew."""
    if metrics:
        names = {name: metric.name for name, metric in metrics.items()}
        pathlib.Path(folder, FILE).write_text(json.dumps(names), encoding="utf-8")


def load_names(folder: str | None) -> dict[str, str]:
    """What `save_names` wrote; nothing if it did not."""
    path = folder and os.path.join(folder, FILE)
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8")) if path and os.path.exists(path) else {}


def _reported(layer: Any, around: tuple[str, ...], seen: set[int]) -> Iterator[tuple[Aggregate, tuple[str, ...], str]]:
    """Metrics of a layer and of those inside of it: the metric, the names of its layer and those around, without the outermost; its own."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    for name, metric in layer.__dict__.get("_reported_metrics", {}).items():
        yield metric, around or (layer.name,), name
    for inner in _private_api.inner_layers(layer):
        yield from _reported(inner, (*around, inner.name), seen)
