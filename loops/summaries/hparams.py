"""Hyper-parameters for TensorBoard's HParams dashboard, by its own API: what a run was given, and whether it came to its end.

The dashboard finds the metrics of a run in the scalars of the runs below it, such as `train` and `validation`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from loops import json_values

__all__ = ["as_text", "ended", "flat", "given"]


def flat(config: Mapping[str, Any]) -> dict[str, bool | float | str]:
    """The values of a config by names with dots between nested fields; what the dashboard cannot hold becomes a text, None is left out.

    Example:
        >>> flat({"optimizer": {"name": "sgd", "learning_rate": 0.1}, "hidden": [300, 100], "clip": None})
        {'optimizer.name': 'sgd', 'optimizer.learning_rate': 0.1, 'hidden': '[300, 100]'}
    """
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in json_values.flattened(config).items()}
    return {name: v if isinstance(v, bool | int | float | str) else str(v) for name, v in values.items() if v is not None}


def given(values: Mapping[str, bool | float | str]) -> list[bytes]:
    """The event with the hyper-parameters of a run. Runs with the same values are one row of the dashboard."""
    from tensorboard.plugins.hparams import api  # takes a moment to import, and most runs have no config

    return [_event(api.hparams_pb(dict(values)))]


def ended(outcome: str | None) -> list[bytes]:
    """The event that says how a run ended: "finished" and "stopped" are a success."""
    from tensorboard.plugins.hparams import api_pb2, summary

    good = outcome in ("finished", "stopped")
    return [_event(summary.session_end_pb(api_pb2.STATUS_SUCCESS if good else api_pb2.STATUS_FAILURE))]


def as_text(config: Mapping[str, Any]) -> str:
    """A config as Markdown that TensorBoard shows as it is."""
    return f"```\n{json.dumps(config, indent=2, default=str)}\n```"


def _event(summary: Any) -> bytes:
    now = tf.compat.v1.Summary.FromString(summary.SerializeToString())
    return bytes(tf.compat.v1.Event(wall_time=time.time(), step=0, summary=now).SerializeToString())
