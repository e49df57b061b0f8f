"""A writer for `tf.summary` that makes its event file when something is written first."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

__all__ = ["WriterOnDemand"]


class WriterOnDemand(tf.summary.SummaryWriter):
    """What `tf.summary.create_file_writer` makes, at the first use; so a run in which nothing calls `tf.summary` leaves no file.

    Args:
        directory: where the event file is written.
        suffix: end of the file's name.
    """

    def __init__(self, directory: str | os.PathLike[str], suffix: str):
        self._directory, self._suffix = os.fspath(directory), suffix
        self._writer: Any = None

    @property
    def _resource(self) -> Any:
        """What TensorFlow's functions write to. It is made outside of the graph that is traced."""
        if self._writer is None:
            with tf.init_scope():
                self._writer = tf.summary.create_file_writer(self._directory, filename_suffix=self._suffix)
        return self._writer._resource

    def init(self) -> None:
        """Does nothing: the file is made at the first use."""

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
