"""Keeps the result of each measurement of `compile_mode.py` in a file, so that later runs make the same choice.

The folder is that of the environment variable `TAPELOOPS_CACHE`, else `tapeloops` in `XDG_CACHE_HOME` or `~/.cache`. It may be deleted.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from loops import files

__all__ = ["folder", "get", "put"]


def folder() -> pathlib.Path:
    """Where the files are; it need not exist."""
    given = os.environ.get("TAPELOOPS_CACHE")
    if given:
        return pathlib.Path(given).expanduser()
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tapeloops"


def get(key: str) -> dict[str, Any] | None:
    """The value that is kept under `key`; None if there is none, or it cannot be read."""
    try:
        found = json.loads((folder() / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("mode") in ("graph", "xla") else None


def put(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """Keeps `value` under `key`, unless another process has kept a value there first.

    Returns:
        The value that is kept now; `value` itself if the folder cannot be written.
    """
    path = folder() / f"{key}.json"
    try:
        if path.exists() and get(key) is None:
            path.unlink()  # damaged
        files.write_first(path, json.dumps(value, indent=1))
    except OSError:
        return value
    return get(key) or value
