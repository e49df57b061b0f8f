"""Original files of public data sets: found below a data folder, known by their checksum, else downloaded once.

`research.data.datasets`, `research.data.tables` and `research.data.text` know what is in them.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from research.study import InputError

__all__ = ["Source", "data_folder", "fetch", "original", "unavailable"]


class Source(NamedTuple):
    """Where a file is downloaded from.

    Attributes:
        url: address of the file, or of an archive that holds it.
        sha256: checksum of what lies there.
    """

    url: str
    sha256: str


def data_folder(data_dir: str | os.PathLike[str] | None) -> pathlib.Path | None:
    """The folder that data is looked for in: `data_dir`, else what the environment variable `TAPELOOPS_DATA` names, else None.

    Raises:
        InputError: if there is no such folder.
    """
    named = data_dir if data_dir is not None else os.environ.get("TAPELOOPS_DATA")
    if not named:
        return None
    folder = pathlib.Path(named).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}, which --data_dir or TAPELOOPS_DATA names.")
    return folder


def original(path: pathlib.Path, md5: str) -> bytes:
    """The content of a file that has to be the original, byte for byte.

    Raises:
        InputError: if it cannot be read, or is another file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); put the original file of that name there.") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(f"{path} is damaged or not the original file (md5 {found}, expected {md5}); replace it.")
    return content


def fetch(name: str, source: Source, *, wanted: Iterable[str], root: pathlib.Path | None) -> pathlib.Path:
    """Downloads a file into Keras's cache, once.

    Args:
        name: the data set, the folder that its files are looked for in.
        source: where it is downloaded from.
        wanted: names of the files that would do instead, for the error.
        root: what `data_folder` gave.

    Returns:
        The downloaded file.

    Raises:
        InputError: if it cannot be had, or is another file than it was.
    """
    import keras

    try:
        downloaded = keras.utils.get_file(f"{name}-{pathlib.PurePosixPath(source.url).name}", source.url, file_hash=source.sha256)
    except Exception as error:  # Keras wraps whatever went wrong on the way into a bare Exception.
        raise unavailable(name, error, wanted=wanted, root=root) from error
    return pathlib.Path(downloaded)


def unavailable(name: str, error: Exception, *, wanted: Iterable[str], root: pathlib.Path | None) -> InputError:
    """What to say when a data set is neither in the data folder nor to be downloaded; see `fetch`."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    below = f"in {root / name}" if root else f"in a folder {name}/ below --data_dir (or below the environment variable TAPELOOPS_DATA)"
    return InputError(f"{name} could not be downloaded ({reason}); put {', '.join(wanted)} {below}.")
