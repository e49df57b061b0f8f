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

__all__ = ["claim", "write_config"]

CONFIG = "config.json"


def claim(path: str | os.PathLike[str]) -> pathlib.Path:
    """Makes the folder of a new run.

    Args:
        path: folder that does not exist or is empty.

    Raises:
        ValueError: if it holds something, is no folder, or cannot be written.
    """
    workdir = pathlib.Path(path)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"The workdir {str(workdir)!r} is a file; give the name of a folder.")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        used = sorted(p.name for p in workdir.iterdir())
        if not used:
            probe = workdir / ".writable"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {error.strerror}.") from error
    if used:
        raise ValueError(f"The workdir {str(workdir)!r} is used already (it holds {', '.join(used[:4])}); give a new one, or delete it.")
    return workdir


def write_config(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Writes `config.json`: the settings of the run, and the versions it was made with."""
    versions = {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }
    text = json.dumps({**config, "versions": versions}, indent=2, default=str)
    temporary = workdir / f".{CONFIG}"
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, workdir / CONFIG)
