"""Rules for resuming: which settings may differ between a run and the one that continues it.

A resumed run ends with the bits of the undisturbed one, so every setting that decides them has to be the same. Targets, cadences, verbosity
and hooks may change. This module compares descriptions; it knows neither snapshots nor the loop.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops.errors import MismatchError
from loops.tasks.optimizer_config import config_of

__all__ = ["allowed_differences", "as_saved", "changes_of_hooks", "description", "optimizers_of", "versions"]

# What a feed describes of its values. How the data differs is said by the names of its parts, not by fingerprints.
_PART_OF_DATA = re.compile(r"data\.(schedule\.(?P<epoch>\d+)\.)?(?P<kind>fingerprint|first_batches)\.(?P<name>.*)")
_ANNOUNCED = ("versions", "clip", "on_nonfinite", "task", "config")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    return {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}


def description(settings: Mapping[str, Any], feed: Mapping[str, Any], optimizers: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, its data, optimizers and versions, JSON-able; saved with every snapshot."""
    return as_saved({**settings, "data": dict(feed), "optimizer": dict(optimizers), "versions": versions()})


def as_saved(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description as it is after its way through JSON."""
    return dict(json.loads(json.dumps(described, default=str)))


def optimizers_of(optimizers: Mapping[str, Any]) -> dict[str, Any]:
    """Class and settings of every optimizer before training; values as text, so that JSON loses no digit."""
    found: dict[str, Any] = {}
    for name, optimizer in optimizers.items():
        config = {key: value for key, value in config_of(optimizer).items() if key != "name"}
        if isinstance(config.get("learning_rate"), dict):
            config["schedule"] = config.pop("learning_rate")  # a schedule is code, so the new one is used; a number is restored
        found[name] = {"class": type(optimizer).__name__, **{key: _text(value) for key, value in config.items()}}
    return found


def allowed_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compares the description in a snapshot with that of the run now.

    Returns:
        A sentence for each difference that is allowed.

    Raises:
        MismatchError: for a difference that is not allowed.
    """
    notes: list[str] = []
    differing: dict[str, list[str]] = {"fingerprint": [], "first_batches": []}
    before, after = dict(_flat(saved)), dict(_flat(now))
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key, "absent"), after.get(key, "absent")
        if old == new:
            continue
        head, _, tail = key.partition(".")
        if part := _PART_OF_DATA.fullmatch(key):
            of = f" (of the feed from epoch {part['epoch']} on)" if part["epoch"] else ""
            differing[part["kind"]].append(part["name"] + of)
        elif key.endswith(".learning_rate") and "absent" not in (old, new):
            notes.append(f"the learning rate was given as {new}, but the run goes on with its saved one (it began with {old})")
        elif head in _ANNOUNCED or (head == "optimizer" and tail and not tail.endswith(".class") and "absent" not in (old, new)):
            notes.append(f"{key} was {old} and is {new} now")
        else:
            raise MismatchError(f"{key} was {old} and is {new} now")
    if names := differing["fingerprint"]:
        raise MismatchError(
            f"the data is other data than that which the run was trained on, though of the same shape; what differs: {', '.join(names)}"
        )
    if names := differing["first_batches"]:
        notes.append(
            f"the first batches are others than those of the run ({', '.join(names)}): either this is other data, with which the run does "
            "not go on as it would have, or the data is drawn anew in every process"
        )
    return notes


def changes_of_hooks(saved: Iterable[str], now: Iterable[str]) -> list[str]:
    """A sentence for added hooks, and one for removed hooks."""
    saved, now = set(saved), set(now)
    told = []
    if added := sorted(now - saved):
        told.append(f"new hooks begin here: {', '.join(added)}")
    if gone := sorted(saved - now):
        told.append(f"hooks that are not there any more: {', '.join(gone)}")
    return told


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _text(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)
