"""Ratios of rates, and the tables and the page that show them."""

from __future__ import annotations

import pytest

from research.benchmarks import ratios, registry, report, tables

RATES = {"fit": [100.0, 50.0, 90.0], "fit_50": [150.0, 100.0, 120.0], "fit_50_xla": [300.0, 300.0, 300.0], "loops": [300.0, 200.0, 360.0]}
RATES |= {"while": [300.0, 250.0, 300.0]}


def contenders(rates):
    return {name: {"ended": None, "rates": values, "mode": None} for name, values in rates.items()}


def content(**rows):
    described = {"workload": "net", "batch_size": 32, "source": "arrays"}
    machine = {"cores": 2, "processor": "P", "system": "S", "python": "3"}
    run = {"command": "c", "date": "1", "ended": "2", "load": [0.1, 0.2], "rounds": 3, "versions": {"keras": "3"}, "machine": machine}
    data = {"title": "a net", "examples": 10, "steps": 10}
    return {"rows": {name: {"row": described, "run": run, "data": data, "contenders": found} for name, found in rows.items()}}


def test_ratios_are_medians_over_rounds_not_ratios_of_medians():
    found = ratios.ratio(RATES, "loops", "fit")
    assert (found.median, found.low, found.high) == (4.0, 3.5, 4.0)  # of 3, 4 and 4; the medians' ratio is 3.33
    assert ratios.ratio(RATES, "loops", "eager") is None


def test_the_best_is_that_of_the_highest_median():
    assert ratios.best(RATES, registry.GRAPH_FITS) == "fit_50" and ratios.best(RATES, registry.FITS) == "fit_50_xla"
    assert ratios.best(RATES, ["eager"]) is None
    against = ratios.mine(RATES, "loops", registry.PEERS)
    assert against.reference == "fit_50_xla" and against.ratio.median == 1.0


def test_who_ended_too_early_is_nobodys_reference():
    found = contenders(RATES)
    found["fit_50_xla"] |= {"ended": "round 3: killed by SIGSEGV", "rates": [300.0, 300.0]}
    assert ratios.best(ratios.rates_of(found), registry.FITS) == "fit_50"
    lines = tables.row_table(found)
    assert "fit_50_xla ended: round 3: killed by SIGSEGV" in lines


def test_the_table_has_every_ratio_that_is_promised():
    lines = tables.row_table(contenders({**RATES, "torch": [150.0, 100.0, 180.0], "jax": [100.0, 100.0, 100.0]}))
    (line,) = [line for line in lines if line.startswith("loops")]
    assert line.split() == ["loops", "300", "53%", "4.00x", "2.00x", "1.00x", "2.00x", "1.00x", "1.00x"]
    assert "best of others: torch" in lines and lines[-1] == "its like: loops vs while"


def test_the_mean_over_rows_is_geometric():
    (line,) = [line for line in tables.mean_table({"a": contenders(RATES), "b": contenders({"fit": [100.0], "loops": [100.0]})})][-2:-1]
    assert line.split()[:3] == ["loops", "2", "2.00x"]


def test_sections_are_filled_and_all_else_stays():
    page = "a\n<!-- measured: x -->\n<!-- end -->\nb\n<!-- measured: y -->\nold\nlines\n<!-- end -->\nc\n"
    once = report.filled(page, {"x": ["1", "2"], "y": None})
    assert once == "a\n<!-- measured: x -->\n1\n2\n<!-- end -->\nb\n<!-- measured: y -->\nold\nlines\n<!-- end -->\nc\n"
    assert report.filled(once, {"x": ["1", "2"], "y": None}) == once
    with pytest.raises(ValueError, match="section 'y'; there are x"):
        report.filled(page, {"x": []})


def test_the_page_shows_means_least_rows_and_who_did_not_run():
    slow = contenders({"fit": [100.0, 100.0], "loops": [50.0, 60.0], "loops_auto": [50.0, 70.0], "jax": [20.0, 20.0]})
    slow["torch"] = {"ended": "not installed: torch"}
    fast = contenders({"fit": [100.0, 100.0], "loops": [200.0, 200.0], "loops_auto": [240.0, 240.0]})
    fast["loops_auto"]["mode"] = "xla"
    sections = {name: lines(content(slow=slow, fast=fast)) for name, lines in report.SECTIONS.items()}
    (auto,) = [line for line in sections["summary"] if "best `model.fit`" in line and "auto" in line]
    assert [cell.strip() for cell in auto.strip("|").split("|")][1:] == ["2", "1.20x", "0.60x (0.55–0.65) `slow`", "1"]
    assert "- `torch` in `slow`: not installed: torch." in sections["who"]
    (line,) = [line for line in sections["arrays"] if line.startswith("| `fast`")]
    assert [cell.strip() for cell in line.strip("|").split("|")][1:6] == ["a net", "240", "xla", "2.40x", "2.40x (2.40–2.40) `fit`"]
    panels = report.bars(content(slow=slow, fast=fast))
    assert [bar[0] for bar in panels["auto against the best of all others"]] == ["slow", "fast"]
    assert all(report.SECTIONS[name]({}) == ["Not measured."] for name in report.SECTIONS)
