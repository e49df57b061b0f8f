"""How a run ended, in `outcome.json` of its workdir: for tables of many runs. A run that was killed has none, and holds no lock either."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from loops.files import write_text

__all__ = ["OUTCOME", "read", "remove", "write"]

OUTCOME = "outcome.json"


def write(workdir: pathlib.Path, outcome: str | None, *, reason: str | None, step: int, epochs: int, seconds: float) -> None:
    """Writes how a run ended.

    Args:
        workdir: folder of the run.
        outcome: "finished", "stopped", "interrupted" or "failed".
        reason: why it stopped or failed.
        step: training steps that are done.
        epochs: epochs that are complete.
        seconds: how long the run took, in all processes that had a part in it.

    Raises:
        OSError: if the file cannot be written.
    """
    content = {"outcome": outcome, "reason": reason, "step": step, "epochs": epochs, "seconds": seconds, "time": time.time()}
    write_text(workdir / OUTCOME, json.dumps(content, indent=2) + "\n")


def read(workdir: pathlib.Path) -> Mapping[str, Any]:
    """What `write` wrote; empty if there is no such file, or none that can be read."""
    try:
        content = json.loads((workdir / OUTCOME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remove(workdir: pathlib.Path) -> None:
    """Removes the file, because the run goes on.

    Raises:
        OSError: if that is not possible.
    """
    (workdir / OUTCOME).unlink(missing_ok=True)
