"""What a program prints at the end of a run: a table of metrics, sizes and durations in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["metrics_table"]


def metrics_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics as text, one line a data set, one column a metric, "loss" first, the others as they come; counts as whole numbers.

    Args:
        rows: name of the data set -> name of the metric -> scalar. Metrics that are not scalars are left out.

    Example:
        >>> rows = {"validation": {"accuracy": 0.95, "loss": 0.125, "seen": 573}, "test": {"accuracy": 0.9, "loss": 12345.0, "seen": 1797}}
        >>> print(metrics_table(rows))
                         loss  accuracy   seen
        validation     0.1250    0.9500    573
        test        1.234e+04    0.9000  1,797
    """
    scalars = {row: {k: float(v) for k, v in metrics.items() if np.ndim(v) == 0} for row, metrics in rows.items()}
    columns = sorted(dict.fromkeys(name for metrics in scalars.values() for name in metrics), key=lambda name: name != "loss")
    # By column: an accuracy of 1 beside others is no count.
    write = {name: _count if all(map(_whole, _column(scalars, name))) else _number for name in columns}
    cells = {row: {name: write[name](metrics[name]) if name in metrics else "" for name in columns} for row, metrics in scalars.items()}
    first = max(map(len, rows), default=0)
    widths = {name: max(len(name), *(len(metrics[name]) for metrics in cells.values())) for name in columns}
    lines = ["".ljust(first) + "".join(f"  {name:>{widths[name]}}" for name in columns)]
    lines += [row.ljust(first) + "".join(f"  {metrics[name]:>{widths[name]}}" for name in columns) for row, metrics in cells.items()]
    return "\n".join(line.rstrip() for line in lines)


def _column(rows: Mapping[str, Mapping[str, float]], name: str) -> list[float]:
    return [metrics[name] for metrics in rows.values() if name in metrics]


def _whole(value: float) -> bool:
    return value.is_integer() and abs(value) < 1e12


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3e}"
