"""Writes the logs of every epoch to a CSV file."""

from __future__ import annotations

import csv
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

import numpy as np

from loops import files
from loops.hooks.base import Hook, Loop, Phase

__all__ = ["CSVLogger"]

_ABSENT = "NA"


class CSVLogger(Hook):
    """Writes one row for each epoch: its 0-based number and its logs. Each row is flushed at once, so that another program can follow.

    Differences from Keras's callback of that name: a log that first appears in a later epoch gets a column (the rows before read "NA"); an
    evaluation that never takes place gets none; a resumed run drops the rows of the epochs that it does again, and its file ends with the
    bytes of an uninterrupted run. The file is not touched before the first epoch begins.

    Args:
        filename: the file; folders are made.
        separator: text between two values.
        append: whether to keep the rows that are in the file. A run that begins at epoch 0 adds its rows below them; a run that begins
            later drops the rows of the epochs that it does again. (A run that continues earlier steps keeps the rows in any case.)

    Raises:
        OSError: in training, if the file cannot be written.

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
        self._rows = 0
        self._file: TextIO | None = None
        self._opened = True
        self._keeps_rows = append
        self._next_epoch: int | None = None

    def on_train_begin(self, loop: Loop) -> None:
        self._close()
        progress = loop.progress
        # After earlier steps the rows in the file are those of this run, so it keeps them even without `append`.
        self._keeps_rows = self.append or progress.step > 0
        # `progress.epoch` is still the epoch that has ended; the next row belongs to the one after it.
        self._next_epoch = progress.epoch + progress.epoch_ended if progress.step > 0 or progress.epoch > 0 else None
        # The file is opened later: `load_state_dict` may follow and say how many rows a resumed run keeps.
        self._opened = False

    def on_epoch_begin(self, loop: Loop) -> None:
        self._open()

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        self._open()
        row = {"epoch": str(loop.progress.epoch), **{name: _text(value) for name, value in logs.items()}}
        if new := [name for name in dict.fromkeys(("epoch", *sorted(logs))) if name not in self._columns]:
            self._close()
            rows = self._columns_and_rows()[1] if self._columns else []
            self._columns += new
            self._rewrite(rows)
        assert self._file is not None
        self._table(self._file).writerow(row)
        self._file.flush()
        self._rows += 1

    def on_train_end(self, loop: Loop) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        self._open()
        return {"columns": list(self._columns), "rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._close()
        self._opened, self._columns = True, list(state["columns"])
        rows = self._columns_and_rows()[1][: state["rows"]] if self.filename.exists() else []
        if len(rows) < state["rows"]:
            warnings.warn(
                f"{self.filename} has {len(rows)} of the {state['rows']} rows that this run had written; the others are lost.", stacklevel=2
            )
        # Columns that are not in the state belong to epochs after the snapshot, which this run does again.
        self._rewrite([{name: row.get(name, _ABSENT) for name in self._columns} for row in rows])

    def _open(self) -> None:
        if self._opened:
            return
        self._opened, self._columns = True, []
        rows: list[dict[str, str]] = []
        if self._keeps_rows and self.filename.exists():
            self._columns, rows = self._columns_and_rows()
            while self._next_epoch is not None and rows and not _is_before(rows[-1], self._next_epoch):
                rows.pop()
        self._rewrite(rows)

    def _columns_and_rows(self) -> tuple[list[str], list[dict[str, str]]]:
        with self.filename.open(newline="") as file:
            reader = csv.DictReader(file, delimiter=self.separator, restval=_ABSENT)
            rows = [{k: v for k, v in row.items() if k is not None} for row in reader]
            return list(reader.fieldnames or []), rows

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._close()

        def write(name: str) -> None:
            with open(name, "w", newline="") as file:
                if self._columns:
                    table = self._table(file)
                    table.writeheader()
                    table.writerows(rows)

        files.write_atomically(self.filename, write)
        self._rows = len(rows)
        self._file = self.filename.open("a", newline="")

    def _table(self, file: TextIO) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval=_ABSENT, delimiter=self.separator)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _is_before(row: dict[str, str], epoch: int) -> bool:
    # A crash may have cut the last row short, so that it has no number.
    return row.get("epoch", "").isdigit() and int(row["epoch"]) < epoch


def _text(value: Any) -> str:
    if np.ndim(value) > 0:
        return f'"[{", ".join(str(v) for v in np.asarray(value))}]"'
    return str(value)
