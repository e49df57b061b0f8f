"""`manifest.json`, the list of what a snapshot holds, with digests of everything, itself included; and the error for a damaged snapshot."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from loops.errors import DamagedSnapshot

__all__ = ["FILES", "MANIFEST", "STATE", "TENSORS", "Damage", "Entry", "File", "Manifest", "damage_found"]

FORMAT = 1
MANIFEST, TENSORS, STATE, FILES = "manifest.json", "tensors.bin", "state.json", "files"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array in `tensors.bin`.

    Attributes:
        name: the caller's name of the array.
        shape: shape of the array.
        dtype: "<f4" and so on, "bfloat16" and so on, or "object:bytes", "object:str" for strings of any length.
        offset: place of its first byte in the file.
        nbytes: number of bytes.
        digest: SHA-256 of the bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int
    digest: str


@dataclasses.dataclass(frozen=True)
class File:
    """A file beside the tensors: its path below the snapshot (with "/"), size in bytes, and SHA-256."""

    path: str
    nbytes: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A list of what a snapshot holds, without the values.

    Attributes:
        step: completed training steps.
        entries: the arrays, in the order in which they were given.
        files: `state.json` and the caller's own files.
        info: small values that the caller can read without the rest of the snapshot.
        retention: which snapshots were to be kept when this one was written; see `retention.Retention`.
    """

    step: int
    entries: tuple[Entry, ...]
    files: tuple[File, ...]
    info: dict[str, Any]
    retention: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Size of tensors and files in bytes."""
        return self.tensor_bytes + sum(file.nbytes for file in self.files)

    @property
    def tensor_bytes(self) -> int:
        """Size of `tensors.bin` in bytes."""
        return self.entries[-1].offset + self.entries[-1].nbytes if self.entries else 0

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`."""
        # One line for each array and file. With `indent`, json.dumps would use Python's slow encoder, which holds the interpreter lock
        # while training waits for it.
        fields = {"format": FORMAT, "step": self.step, "info": self.info, "retention": self.retention}
        lines = [f'"{name}": {json.dumps(value)}' for name, value in fields.items()]
        for name, rows in (("files", self.files), ("entries", self.entries)):
            listed = ",\n  ".join(json.dumps(vars(row)) for row in rows)
            lines.append(f'"{name}": [\n  {listed}\n ]')
        body = (" " + ",\n ".join(lines) + "\n}\n").encode()
        return _head(body) + body


def read_manifest(directory: pathlib.Path, step: int | None) -> Manifest:
    """Reads and checks the manifest, and none of the other files. Arguments and errors are those of `files.verify`."""
    with damage_found(directory, step):
        text = (directory / MANIFEST).read_bytes()
        body = text[len(_head(b"")) :]
        if text != _head(body) + body:
            raise Damage(f"{MANIFEST} is empty" if not text else f"{MANIFEST} does not fit its digest")
        found = json.loads(b"{\n" + body)
        if found["format"] != FORMAT:
            raise ValueError(
                f"The snapshot {str(directory)!r} has format {found['format']}, and this version reads format {FORMAT}; "
                "go on with the version that wrote it."
            )
        if step is not None and found["step"] != step:
            raise Damage(f"it is the snapshot of step {found['step']:,}")
    return Manifest(
        found["step"],
        tuple(Entry(**{**entry, "shape": tuple(entry["shape"])}) for entry in found["entries"]),
        tuple(File(**file) for file in found["files"]),
        found["info"],
        found["retention"],
    )


class Damage(Exception):
    """Says what is wrong with a snapshot; `damage_found` adds which snapshot it is."""


@contextlib.contextmanager
def damage_found(directory: pathlib.Path, step: int | None) -> Iterator[None]:
    """A context that turns `Damage`, and errors in reading files, into `DamagedSnapshot`."""
    try:
        yield
    except PermissionError:
        # The snapshot may be whole. A damaged one is passed over, so calling this one damaged could lose the run's progress.
        raise
    except FileNotFoundError as error:
        missing = os.path.relpath(error.filename or directory, directory)
        raise DamagedSnapshot(directory, step, f"{missing} is missing" if missing != "." else "it is gone") from error
    except OSError as error:
        raise DamagedSnapshot(directory, step, f"it cannot be read ({error.strerror})") from error
    except Damage as damage:
        raise DamagedSnapshot(directory, step, str(damage)) from None


def _head(body: bytes) -> bytes:
    return b'{\n "digest": "%s",\n' % hashlib.sha256(body).hexdigest().encode()
