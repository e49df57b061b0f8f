"""Tables of figures as text or Markdown: what `scripts/benchmark.py` prints of a row."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from research.benchmarks.ratios import COLUMNS, best, compared, geometric_mean, partner_of, rates_of

__all__ = ["aligned", "inference_table", "first_step_table", "mean_table", "operations_table", "row_table", "steps"]

Contenders = Mapping[str, Mapping[str, Any]]  # as `research.benchmarks.turns.measure` returns them


def row_table(contenders: Contenders, markdown: bool = False) -> list[str]:
    """Lines of the table of one row, with those that did not run."""
    rates = rates_of(contenders)
    columns = compared(rates)
    rows = []
    for name, values in rates.items():
        shown = f"{name} ({mode})" if (mode := contenders[name].get("mode")) and "auto" in name else name
        ratios = ["" if (found := column[name]) is None else str(found) for column in columns.values()]
        rows.append([shown, steps(statistics.median(values)), f"{_spread(values):.0%}", *ratios])
    lines = aligned([["contender", "steps/s", "spread", *columns], *rows], markdown) if rows else []
    for name, what in contenders.items():
        if what["ended"] is not None:
            lines.append(f"{name} ended: {what['ended']}" if not what["ended"].startswith("not installed") else f"{name}: {what['ended']}")
        elif "not_run" in what:
            lines.append(f"{name} not run: {what['not_run']}")
    lines += [f"{title.removeprefix('vs ')}: {best(rates, names)}" for title, names in COLUMNS.items() if best(rates, names)][1:]
    likes = [f"{name} vs {partner}" for name in rates if (partner := partner_of(name)) in rates]
    return lines + ([f"its like: {', '.join(likes)}"] if likes else [])


def mean_table(rows: Mapping[str, Contenders], markdown: bool = False) -> list[str]:
    """Lines of the table of geometric means; a contender's mean is over the rows in which it has the ratio."""
    by_row = [compared(rates_of(contenders)) for contenders in rows.values()]
    ran = [rates_of(contenders) for contenders in rows.values()]
    titles = list(dict.fromkeys(title for columns in by_row for title in columns))
    lines = []
    for name in dict.fromkeys(name for rates in ran for name in rates):
        means = [geometric_mean(columns.get(title, {}).get(name) for columns in by_row) for title in titles]
        cells = ["" if mean is None else f"{mean:.2f}x" for mean in means]
        lines.append([name, str(sum(name in rates for rates in ran)), *cells])
    return aligned([["contender", "rows", *titles], *lines], markdown)


def inference_table(contenders: Contenders, markdown: bool = False) -> list[str]:
    """Lines of the table of evaluation and prediction: milliseconds for few examples, examples a second for many."""
    rows = []
    for name, what in contenders.items():
        for call, sizes in what.get("inference", {}).items():
            small, large = (statistics.median(sizes[size]["seconds"]) for size in ("small", "large"))
            rows.append([name, call, f"{1000 * small:,.1f}", f"{sizes['large']['examples'] / large:,.0f}"])
    if not rows:
        return []
    examples = next(what["inference"]["evaluate"]["small"]["examples"] for what in contenders.values() if "inference" in what)
    return aligned([["contender", "call", f"ms for {examples:,}", "examples/s"], *rows], markdown)


def first_step_table(contenders: Contenders, markdown: bool = False) -> list[str]:
    """Lines of the table of first steps: medians over the rounds, in milliseconds."""
    rows = []
    for name, what in contenders.items():
        if what.get("fits"):
            cells = [statistics.median(fits[fit][part] for fits in what["fits"]) for fit in (0, 1) for part in (0, 1)]
            rows.append([name, *(f"{1000 * seconds:,.0f}" for seconds in cells)])
    titles = ["contender", "1st fit: first step, ms", "all of it", "2nd fit: first step, ms", "all of it"]
    ended = [f"{name} ended: {what['ended']}" for name, what in contenders.items() if what["ended"] is not None]
    return aligned([titles, *rows], markdown) + ended


def operations_table(spent: Mapping[str, float], most: int, markdown: bool = False) -> list[str]:
    """Lines of the table of what a step is made of: `most` kinds of operations, and the rest."""
    rows = [[kind, f"{microseconds:,.1f}"] for kind, microseconds in list(spent.items())[:most]]
    rest = sum(list(spent.values())[most:])
    return aligned([["operation", "µs"], *rows, ["all others", f"{rest:,.1f}"]], markdown)


def steps(rate: float) -> str:
    """Steps or examples a second, to two or more digits."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def aligned(rows: Sequence[Sequence[str]], markdown: bool, text_columns: int = 1) -> list[str]:
    """Lines of a table whose first row is its head; all but the first columns are to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [
        [cell.ljust(width) if i < text_columns else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    if not markdown:
        return ["  ".join(row).rstrip() for row in cells]
    rule = [":--" if i < text_columns else "--:" for i in range(len(widths))]
    return ["| " + " | ".join(cells[0]) + " |", "|" + "|".join(rule) + "|", *("| " + " | ".join(row) + " |" for row in cells[1:])]


def _spread(values: Sequence[float]) -> float:
    """How far the slowest and the fastest round are apart, as a part of the median."""
    return (max(values) - min(values)) / statistics.median(values)
