"""The folder of a run: who may use it, and the `config.json` that says how the run was made."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

from loops.resume import versions
from loops.workdir_lock import LOCK

__all__ = ["SNAPSHOTS", "check", "write_config"]

CONFIG = "config.json"
SNAPSHOTS = "snapshots"
RESUME = ("auto", "never", "must")


def check(path: str | os.PathLike[str], resume: str = "auto") -> pathlib.Path:
    """Whether a run may use the folder; makes nothing.

    Args:
        path: a folder that does not exist or is empty, or that an earlier run made.
        resume: "auto" carries an earlier run on, "never" takes a new folder only, "must" an earlier run only.

    Raises:
        ValueError: if it does not fit `resume`, holds something else, is no folder, or cannot be written.
    """
    if resume not in RESUME:
        raise ValueError(f"`resume` must be one of {', '.join(map(repr, RESUME))}; got {resume!r}.")
    workdir = pathlib.Path(path)
    if workdir.is_file():
        raise ValueError(f"The workdir {str(workdir)!r} is a file; give the name of a folder.")
    used = sorted(p.name for p in workdir.iterdir() if p.name != LOCK) if workdir.is_dir() else []
    ours = CONFIG in used or SNAPSHOTS in used
    if used and (resume == "never" or not ours):
        ways = "give a new one, delete it, or carry its run on with resume='auto'" if ours else "give a new one, or delete it"
        raise ValueError(f"The workdir {str(workdir)!r} is used already (it holds {', '.join(used[:4])}); {ways}.")
    if resume == "must" and not ours:
        raise ValueError(f"There is no run in {str(workdir)!r} to carry on; resume='auto' begins one.")
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {str(existing)!r} is no folder that you may write into.")
    return workdir


def write_config(workdir: pathlib.Path, config: dict[str, Any]) -> None:
    """Writes `config.json`: the settings of the run, and the versions it was made with.

    Raises:
        ValueError: if that is not possible.
    """
    text = json.dumps({**config, "versions": versions()}, indent=2, default=str)
    try:
        temporary = workdir / f".{CONFIG}"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, workdir / CONFIG)
    except OSError as error:
        raise ValueError(f"The workdir {str(workdir)!r} cannot be written: {error.strerror}.") from error
