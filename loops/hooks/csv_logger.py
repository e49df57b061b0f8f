"""Writes the logs of every epoch to a CSV file."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from loops.hooks.base import Hook, Phase

if TYPE_CHECKING:
    from loops.train_loop import TrainLoop

__all__ = ["CSVLogger"]

_ABSENT = "NA"


class CSVLogger(Hook):
    """One row for each epoch, with its 0-based number and what it logged; flushed at once, so that another program can follow.

    Unlike Keras's callback of that name: a log that appears later gets a column (rows before it read "NA"), no columns are made for an
    evaluation that never comes, and a run that goes on takes the file up where the run stands: epochs that it does again are not doubled.

    Args:
        filename: the file; folders are made.
        separator: what stands between two values.
        append: whether to keep what is in the file. A run that begins at epoch 0 adds its rows below; one that begins later drops the rows
            of
            the epochs that it does again. (A run that goes on with steps done before keeps them in any case.)

    Example:
        >>> from loops import hooks
        >>> hook = hooks.CSVLogger("history.csv", append=True)
    """

    phase = Phase.RECORD
    every = None

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False):
        self.filename = pathlib.Path(filename)
        self.separator = separator
        self.append = append
        self._columns: list[str] = []
        self._file: TextIO | None = None

    def on_train_begin(self, loop: TrainLoop) -> None:
        self._close()
        continues = loop.progress.step > 0 or loop.progress.epoch > 0
        rows: list[dict[str, str]] = []
        self._columns = []
        # A run that has done steps before wrote this file: it is taken up even without `append`.
        if (self.append or loop.progress.step > 0) and self.filename.exists():
            self._columns, rows = self._read()
            # After an epoch that ended its successor comes next, though `progress` moves on only when it begins.
            following = loop.progress.epoch + loop.progress.epoch_ended
            while continues and rows and not _before(rows[-1], following):
                rows.pop()
        self._rewrite(rows)

    def on_epoch_end(self, loop: TrainLoop, logs: Mapping[str, Any]) -> None:
        row = {"epoch": str(loop.progress.epoch), **{name: _text(value) for name, value in logs.items()}}
        new = [name for name in sorted(logs) if name not in self._columns]
        if new:
            if self._columns:
                self._close()
                rows = self._read()[1]
                self._columns += new
            else:
                rows, self._columns = [], ["epoch", *new]
            self._rewrite(rows)
        assert self._file is not None
        self._table(self._file).writerow(row)
        self._file.flush()

    def on_train_end(self, loop: TrainLoop) -> None:
        self._close()

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        with self.filename.open(newline="") as file:
            reader = csv.DictReader(file, delimiter=self.separator, restval=_ABSENT)
            rows = [{k: v for k, v in row.items() if k is not None} for row in reader]
            return list(reader.fieldnames or []), rows

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._close()
        self.filename.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.filename.with_name(f".{self.filename.name}.writing")
        with temporary.open("w", newline="") as file:
            if self._columns:
                table = self._table(file)
                table.writeheader()
                table.writerows(rows)
        os.replace(temporary, self.filename)
        self._file = self.filename.open("a", newline="")

    def _table(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval=_ABSENT, delimiter=self.separator)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _before(row: dict[str, str], epoch: int) -> bool:
    # A row that a crash cut short has no number.
    return row.get("epoch", "").isdigit() and int(row["epoch"]) < epoch


def _text(value: Any) -> str:
    if np.ndim(value) > 0:
        return f'"[{", ".join(str(v) for v in np.asarray(value))}]"'
    return str(value)
