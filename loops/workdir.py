"""The folder of a run: who may use it, and the `config.json` that says how the run was made."""

from __future__ import annotations

import json
import os
import pathlib
import platform
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["check", "claim"]

CONFIG = "config.json"


def check(path: str | os.PathLike[str]) -> pathlib.Path:
    """Whether a new run may use the folder; makes nothing.

    Args:
        path: folder that does not exist or is empty.

    Raises:
        ValueError: if it holds something, is no folder, or cannot be written.
    """
    workdir = pathlib.Path(path)
    if workdir.is_file():
        raise ValueError(f"The workdir {str(workdir)!r} is a file; give the name of a folder.")
    if workdir.is_dir() and (used := sorted(p.name for p in workdir.iterdir())):
        raise ValueError(f"The workdir {str(workdir)!r} is used already (it holds {', '.join(used[:4])}); give a new one, or delete it.")
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {str(existing)!r} is no folder that you may write into.")
    return workdir


def claim(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Makes the folder and writes `config.json`: the settings of the run, and the versions it was made with.

    Raises:
        ValueError: see `check`.
    """
    check(workdir)
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}
    text = json.dumps({**config, "versions": versions}, indent=2, default=str)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = workdir / f".{CONFIG}"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, workdir / CONFIG)
    except OSError as error:
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {error.strerror}.") from error
