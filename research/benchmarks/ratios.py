"""How many times faster one contender was than others, from the rates of `scripts/benchmark.py`. Knows figures only.

A ratio is formed within each round, in which all had the same machine; the ratio of a row is the median over the rounds.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.benchmarks.registry import FITS, GRAPH_FITS, OTHERS, PAIRS, PEERS

__all__ = ["COLUMNS", "OURS", "Comparison", "Ratio", "best", "compared", "geometric_mean", "mine", "partner_of", "ratio", "rates_of"]

Rates = Mapping[str, Sequence[float]]  # contender -> steps per second in each round

#: Of a table: the title, and those among whom the best is the reference.
COLUMNS: Mapping[str, Sequence[str]] = {
    "vs fit": ("fit",),
    "vs best graph fit": GRAPH_FITS,
    "vs best fit": FITS,
    "vs best of others": OTHERS,
    "vs best peer": PEERS,
}
OURS = "loops_auto"


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The median over the rounds, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x" if self.median < 10 else f"{self.median:.0f}x"

    @property
    def spread(self) -> str:
        """With the quartiles."""
        return f"{self} ({self.low:.2f}–{self.high:.2f})" if self.median < 10 else f"{self} ({self.low:.0f}–{self.high:.0f})"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A contender beside the best of several.

    Attributes:
        reference: the best one.
        ratio: how many times faster the contender was.
    """

    reference: str
    ratio: Ratio


def rates_of(contenders: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Those that were there to the end, from what `research.benchmarks.turns.measure` found."""
    return {name: what["rates"] for name, what in contenders.items() if what.get("rates") and what["ended"] is None}


def best(rates: Rates, names: Iterable[str]) -> str | None:
    """The contender among `names` with the highest median, None if none of them ran."""
    return max((name for name in names if name in rates), key=lambda name: statistics.median(rates[name]), default=None)


def ratio(rates: Rates, name: str, reference: str | None) -> Ratio | None:
    """How many times faster `name` was than `reference`; None if one of them did not run."""
    if reference is None or name not in rates or reference not in rates:
        return None
    return _summed_up([mine / other for mine, other in zip(rates[name], rates[reference], strict=True)])


def mine(rates: Rates, name: str, names: Iterable[str]) -> Comparison | None:
    """A contender beside the best of others; None if there is nothing to compare."""
    reference = best(rates, (other for other in names if other != name))
    found = ratio(rates, name, reference)
    return Comparison(reference, found) if found is not None and reference is not None else None


def partner_of(name: str) -> str | None:
    """The contender that differs in one thing from this one, if there is one."""
    return dict(PAIRS).get(name)


def compared(rates: Rates) -> dict[str, dict[str, Ratio | None]]:
    """Column -> contender -> ratio: the columns of the table that have something to be compared with, and one for each pair."""
    references = {title: reference for title, names in COLUMNS.items() if (reference := best(rates, names)) is not None}
    columns = {title: {name: ratio(rates, name, reference) for name in rates} for title, reference in references.items()}
    return {**columns, "vs its like": {name: ratio(rates, name, partner_of(name)) for name in rates}}


def geometric_mean(found: Iterable[Ratio | None]) -> float | None:
    """Of the medians that are there."""
    values = [one.median for one in found if one is not None]
    return statistics.geometric_mean(values) if values else None


def _summed_up(values: Sequence[float]) -> Ratio:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Ratio(median, low, high)
