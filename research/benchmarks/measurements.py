"""The file in which `scripts/benchmark.py` keeps what it measured, row by row, and from which docs/benchmarks.md is written."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from research.benchmarks.registry import PLAN
from research.study import InputError

__all__ = ["Measurements"]


class Measurements:
    """The JSON file to which rows are added; what it holds already stays. None: no file."""

    def __init__(self, path: str | pathlib.Path | None):
        self._path = pathlib.Path(path) if path else None
        self.content: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            try:
                self.content = json.loads(self._path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise InputError(f"Cannot add to {self._path}, which is no JSON that this program wrote: {error}") from error

    def holds(self, part: str, name: str, rounds: int, seconds: float) -> bool:
        """Whether there is a row of this name, with as many rounds that are as long."""
        row = self.content.get(part, {}).get(name)
        return row is not None and row["run"]["rounds"] >= rounds and row["run"]["seconds"] >= seconds

    def add(self, part: str, name: str, found: Mapping[str, Any]) -> None:
        """Adds a row, in the place of one with the same name; rows are in the order of the plan."""
        rows = {**self.content.get(part, {}), name: found}
        order = [row.name for row in PLAN]
        self.content[part] = dict(sorted(rows.items(), key=lambda row: order.index(row[0]) if row[0] in order else len(order)))
        if self._path is None:
            return
        beside = self._path.with_name(self._path.name + ".new")
        try:
            beside.write_text(lines(self.content), encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:
            raise InputError(f"Cannot write {self._path}: {error.strerror}.") from error


def lines(content: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with four significant digits, a line for each contender."""
    parts = []
    for part, rows in content.items():
        lines = []
        for name, row in rows.items():
            contenders = [f"    {json.dumps(c)}: {json.dumps(_rounded(what))}" for c, what in row["contenders"].items()]
            rest = [f"   {json.dumps(key)}: {json.dumps(_rounded(value))}," for key, value in row.items() if key != "contenders"]
            body = "\n".join([*rest, '   "contenders": {\n' + ",\n".join(contenders) + "\n   }"])
            lines.append(f"  {json.dumps(name)}: {{\n{body}\n  }}")
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value
