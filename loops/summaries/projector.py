"""Writes the files of TensorBoard's embedding projector. They are not event files, but have to be in the directory of a TensorBoard run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from loops.files import write_anywhere

__all__ = ["Embedding", "read_metadata", "write"]


class Embedding(NamedTuple):
    """A matrix to show.

    Attributes:
        matrix: shape [points, dimensions].
        metadata: content of a metadata file (one label per line, or tab-separated columns below a header), or None.
    """

    matrix: npt.NDArray[np.floating]
    metadata: str | None = None


def write(run_dir: str | os.PathLike[str], embeddings: Mapping[str, Embedding]) -> None:
    """Writes the matrices, their metadata and the projector's configuration; replaces earlier ones.

    TensorBoard reads the configuration, and the files that it names, from the directory of a run only.

    Args:
        run_dir: directory of the TensorBoard run.
        embeddings: name -> matrix and labels.

    Example:
        >>> import os, tempfile
        >>> run_dir = tempfile.mkdtemp()
        >>> write(run_dir, {"words": Embedding(np.eye(2, dtype="float32"), "cat\\ndog\\n")})
        >>> sorted(os.listdir(run_dir + "/embeddings")), os.path.exists(run_dir + "/projector_config.pbtxt")
        (['words.tsv', 'words_metadata.tsv'], True)
    """
    directory = os.path.join(os.fspath(run_dir), "embeddings")
    tf.io.gfile.makedirs(directory)
    entries = []
    for name, embedding in embeddings.items():
        file = re.sub(r"[^\w.-]+", "_", name)
        rows = ("\t".join(f"{value:.7g}" for value in row) for row in np.asarray(embedding.matrix, np.float64).tolist())
        write_anywhere(os.path.join(directory, f"{file}.tsv"), ("\n".join(rows) + "\n").encode())
        entry = [f"tensor_name: {_quoted(name)}", f"tensor_path: {_quoted(f'embeddings/{file}.tsv')}"]
        if embedding.metadata is not None:
            write_anywhere(os.path.join(directory, f"{file}_metadata.tsv"), embedding.metadata.encode())
            entry.append(f"metadata_path: {_quoted(f'embeddings/{file}_metadata.tsv')}")
        entries.append("embeddings {\n  " + "\n  ".join(entry) + "\n}\n")
    write_anywhere(os.path.join(os.fspath(run_dir), "projector_config.pbtxt"), "".join(entries).encode())


def read_metadata(
    paths: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]] | None, directory: str
) -> str | dict[str, str] | None:
    """The contents of metadata files.

    Args:
        paths: one path, or layer name -> path. If there is no such file, the path is tried below `directory`.
        directory: the second place to look.

    Returns:
        The content, or layer name -> content; None for None.

    Raises:
        FileNotFoundError: if the file is in neither place.
    """
    if isinstance(paths, Mapping):
        return {layer: _metadata_at(os.fspath(path), directory) for layer, path in paths.items()}
    return None if paths is None else _metadata_at(os.fspath(paths), directory)


def _metadata_at(path: str, directory: str) -> str:
    for candidate in (path, os.path.join(directory, path)):
        if tf.io.gfile.exists(candidate):
            with tf.io.gfile.GFile(candidate) as file:
                return str(file.read())
    raise FileNotFoundError(f"There is no metadata file '{path}' for the embeddings, neither as given nor below '{directory}'.")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
