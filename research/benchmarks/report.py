"""What docs/benchmarks.md shows of a file of `scripts/benchmark.py`: its tables, and the bars of its picture. `scripts/benchmark_report.py`
writes them; the prose around them stays as it is.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from research.benchmarks.ratios import OURS, Comparison, Ratio, geometric_mean, mine, rates_of, ratio
from research.benchmarks.registry import FITS, GRAPH_FITS, OTHERS, PEERS
from research.benchmarks.tables import aligned, steps

__all__ = ["SECTIONS", "bars", "filled"]

Content = Mapping[str, Mapping[str, Any]]  # as in `research.benchmarks.measurements`
_NOTHING = ["Not measured."]


def filled(text: str, sections: Mapping[str, Sequence[str] | None]) -> str:
    """A page whose marked sections hold these lines. What is between `<!-- measured: NAME -->` and `<!-- end -->` is replaced, None stays.

    Raises:
        ValueError: for a section that is not known.

    Example:
        >>> filled("before\\n<!-- measured: a -->\\nold\\n<!-- end -->\\nafter", {"a": ["new"]}).splitlines()
        ['before', '<!-- measured: a -->', 'new', '<!-- end -->', 'after']
    """

    def replaced(match: re.Match[str]) -> str:
        if match["name"] not in sections:
            raise ValueError(f"The page has a section {match['name']!r}; there are {', '.join(sections)}.")
        lines = sections[match["name"]]
        return match[0] if lines is None else "\n".join([match["begin"], *lines, "<!-- end -->"])

    return re.sub(r"(?P<begin><!-- measured: (?P<name>[\w ]+) -->)\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)


def bars(content: Content) -> dict[str, list[tuple[str, float, float, float, str]]]:
    """The panels of the picture, for `research.pictures.bars.ratios`."""
    panels: dict[str, list[tuple[str, float, float, float, str]]] = {}
    for title, name, others in (
        ("auto against the best model.fit", OURS, FITS),
        ("auto against the best of all others", OURS, PEERS),
        ("graph mode against the best graph-mode fit", "loops", GRAPH_FITS),
    ):
        found = {row: mine(rates_of(what["contenders"]), name, others) for row, what in content.get("rows", {}).items()}
        panels[title] = [(row, c.ratio.median, c.ratio.low, c.ratio.high, c.reference) for row, c in found.items() if c is not None]
    return {title: found for title, found in panels.items() if found}


def _rows(content: Content, source: str, batch_sizes: Callable[[int], bool]) -> dict[str, Any]:
    rows = content.get("rows", {})
    return {name: what for name, what in rows.items() if what["row"]["source"] == source and batch_sizes(what["row"]["batch_size"])}


def _speed(rows: Mapping[str, Any]) -> list[str]:
    """Auto beside all others."""
    lines = []
    for name, what in rows.items():
        rates, contenders = rates_of(what["contenders"]), what["contenders"]
        if OURS in rates:
            fits, others = mine(rates, OURS, FITS), mine(rates, OURS, OTHERS)
            of_hooks = ratio(rates, f"{OURS}_hooks", OURS)
            cells = [_times(ratio(rates, OURS, "fit")), _named(fits), _named(others), _times(mine(rates, OURS, PEERS)), _times(of_hooks)]
            model, rate, mode = what["data"]["title"], steps(statistics.median(rates[OURS])), contenders[OURS]["mode"]
            lines.append([f"`{name}`", model, rate, mode or "", *cells])
    titles = ["row", "model", "steps/s", "mode", "vs `fit`", "vs the best `fit`", "vs the best other library", "vs all", "hooks on / off"]
    return aligned([titles, *lines], markdown=True, text_columns=2) if lines else _NOTHING


def _graph(content: Content) -> list[str]:
    lines = []
    for name, what in content.get("rows", {}).items():
        rates = rates_of(what["contenders"])
        if "loops" in rates:
            found = mine(rates, "loops", GRAPH_FITS)
            lines.append([f"`{name}`", steps(statistics.median(rates["loops"])), _times(ratio(rates, "loops", "fit")), _named(found)])
    titles = ["row", "steps/s", "vs `fit`", "vs the best graph-mode `fit`"]
    return aligned([titles, *lines], markdown=True) if lines else _NOTHING


def _summary(content: Content) -> list[str]:
    """Geometric means and minima over all rows."""
    lines = []
    for title, name, others in (
        ("`auto` against the best `model.fit`", OURS, FITS),
        ("`auto` against the best other library", OURS, OTHERS),
        ("`auto` against the best of all of them", OURS, PEERS),
        ("graph mode against the best graph-mode `model.fit`", "loops", GRAPH_FITS),
        ("`auto` with all hooks against without", f"{OURS}_hooks", (OURS,)),
    ):
        found = {row: mine(rates_of(what["contenders"]), name, others) for row, what in content.get("rows", {}).items()}
        there = {row: c.ratio for row, c in found.items() if c is not None}
        if not there:
            continue
        least = min(there, key=lambda row: there[row].median)
        below = sum(one.median < 1 for one in there.values())
        mean = geometric_mean(there.values())
        lines.append([title, str(len(there)), f"{mean:.2f}x", f"{there[least].spread} `{least}`", str(below)])
    titles = ["comparison", "rows", "geometric mean", "least, with quartiles", "rows below 1.00"]
    return aligned([titles, *lines], markdown=True) if lines else _NOTHING


def _libraries(content: Content) -> list[str]:
    """Auto beside each library by itself."""
    names = [name for name in OTHERS if any(name in rates_of(what["contenders"]) for what in content.get("rows", {}).values())]
    lines = []
    for row, what in content.get("rows", {}).items():
        rates = rates_of(what["contenders"])
        if OURS in rates and any(name in rates for name in names):
            lines.append([f"`{row}`", *(_times(ratio(rates, OURS, name)) for name in names)])
    return aligned([["row", *(f"vs `{name}`" for name in names)], *lines], markdown=True) if lines else _NOTHING


def _inference(content: Content) -> list[str]:
    lines, titles = [], ["row", "contender", "call"]
    for row, what in content.get("rows", {}).items():
        for name, of in what["contenders"].items():
            for call, sizes in of.get("inference", {}).items() if of["ended"] is None else ():
                small, large = (_median_and_quartiles(sizes[size]["seconds"]) for size in ("small", "large"))
                examples, many = sizes["small"]["examples"], sizes["large"]["examples"]
                titles = ["row", "contender", "call", f"{examples:,} examples, ms", f"examples/s of {many:,}"]
                ms = f"{1000 * small.median:,.1f} ({1000 * small.low:,.1f}–{1000 * small.high:,.1f})"
                lines.append([f"`{row}`", _with_mode(name, of), f"`{call}`", ms, f"{many / large.median:,.0f}"])
    lines.sort(key=lambda line: (line[0], line[2]))
    return aligned([titles, *lines], markdown=True, text_columns=3) if lines else _NOTHING


def _first_step(content: Content) -> list[str]:
    lines = []
    for row, what in content.get("first_step", {}).items():
        for name, of in what["contenders"].items():
            if of.get("fits"):
                cells = [_median_and_quartiles([fits[fit][part] for fits in of["fits"]]).median for fit in (0, 1) for part in (0, 1)]
                lines.append([f"`{row}`", f"`{name}`", *(f"{1000 * seconds:,.0f}" for seconds in cells)])
    titles = ["row", "contender", "first fit: first step", "all of it", "second fit: first step", "all of it"]
    return aligned([titles, *lines], markdown=True, text_columns=2) if lines else _NOTHING


def _memory(content: Content) -> list[str]:
    rows = {name: what for name, what in content.get("rows", {}).items() if what["row"]["batch_size"] == 32}
    names = list(dict.fromkeys(name for what in rows.values() for name, of in what["contenders"].items() if "memory" in of))
    lines = []
    for row, what in rows.items():
        cells = []
        for name in names:
            memory = what["contenders"].get(name, {}).get("memory")
            cells.append("" if memory is None else f"{memory['peak'] - memory['imported']:,.0f}")
        lines.append([f"`{row}`", *cells])
    imported = ["after imports"]
    for name in names:
        found = [what["contenders"][name]["memory"]["imported"] for what in rows.values() if "memory" in what["contenders"].get(name, {})]
        imported.append(f"{statistics.median(found):,.0f}")
    return aligned([["row", *(f"`{name}`" for name in names)], imported, *lines], markdown=True) if lines else _NOTHING


def _who(content: Content) -> list[str]:
    """Who ran where, who did not, and how processes ended."""
    lines, ended = [], []
    ran: dict[tuple[str, ...], list[str]] = {}
    for row, what in content.get("rows", {}).items():
        ran.setdefault(tuple(rates_of(what["contenders"])), []).append(row)
        for name, of in what["contenders"].items():
            if of["ended"] is not None or "not_run" in of:
                ended.append(f"- `{name}` in `{row}`: {of['ended'] or 'not run, ' + of['not_run']}.")
    for names, rows in ran.items():
        lines.append(f"- {', '.join(f'`{row}`' for row in rows)}: {', '.join(f'`{name}`' for name in names)}.")
    idle = [share for what in content.get("rows", {}).values() for of in what["contenders"].values() if (share := _idle(of)) is not None]
    if idle:
        lines.append(f"- Between its turns a process took at most {max(idle):.1%} of a core, in the median {statistics.median(idle):.2%}.")
    return lines + ended if lines else _NOTHING


def _machine(content: Content) -> list[str]:
    runs = [what["run"] for part in content.values() for what in part.values()]
    if not runs:
        return _NOTHING
    versions: dict[str, str] = {}
    for run in runs:
        versions |= run["versions"]
    machines = dict.fromkeys("{cores} cores of {processor}, {system}, Python {python}".format(**run["machine"]) for run in runs)
    begun, ended = min(run["date"] for run in runs), max(run["ended"] for run in runs)
    loads = [load for run in runs for load in run["load"]]
    rounds = sorted({str(what["run"]["rounds"]) for what in content.get("rows", {}).values()})
    lines = [f"Measured on {'; '.join(machines)}; {', '.join(f'{name} {version}' for name, version in versions.items())}; no GPU."]
    lines.append(f"From {begun} to {ended} UTC, {' or '.join(rounds)} rounds a row, load average {min(loads):g} to {max(loads):g}.")
    slow = {what: sum(run["turns"][what] for run in runs if "turns" in run) for what in ("repeated", "disturbed")}
    if any("turns" in run for run in runs):
        lines.append(
            f"The machine was slower than at its best before or after {slow['repeated'] + slow['disturbed']:,} turns: "
            f"{slow['repeated']:,} were taken again, {slow['disturbed']:,} count as there was no patience left."
        )
    commands = dict.fromkeys(run["command"] for run in runs)
    return [*lines, "", *(f"    {command}" for command in commands)]


def _idle(of: Mapping[str, Any]) -> float | None:
    idle = of.get("idle")
    return idle["busy"] / idle["seconds"] if idle and idle["seconds"] else None


def _with_mode(name: str, of: Mapping[str, Any]) -> str:
    return f"`{name}` ({of['mode']})" if of.get("mode") and "auto" in name else f"`{name}`"


def _times(found: Ratio | Comparison | None) -> str:
    return "" if found is None else str(found.ratio if isinstance(found, Comparison) else found)


def _named(found: Comparison | None) -> str:
    return "" if found is None else f"{found.ratio.spread} `{found.reference}`"


def _median_and_quartiles(values: Sequence[float]) -> Ratio:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
    return Ratio(median, low, high)


#: Name of a section -> its lines, from the content of the file.
SECTIONS: Mapping[str, Callable[[Content], list[str]]] = {
    "machine": _machine,
    "summary": _summary,
    "arrays": lambda content: _speed(_rows(content, "arrays", lambda size: size == 32)),
    "batches": lambda content: _speed(_rows(content, "arrays", lambda size: size != 32)),
    "pipelines": lambda content: _speed(_rows(content, "tf.data", lambda size: True)),
    "graph": _graph,
    "libraries": _libraries,
    "inference": _inference,
    "first step": _first_step,
    "memory": _memory,
    "who": _who,
}
