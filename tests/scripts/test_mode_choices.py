"""`scripts/mode_choices.py`: its table marks what the rule gets wrong."""

from research.benchmarks.mode_choices import Row
from scripts import mode_choices


def row(chosen, times):
    return Row("net", "held out", chosen, "", 1.5, times, (times, times) if times else None, {"graph": 2.0}, {"graph": 1.0}, {})


def test_what_the_chosen_mode_costs():
    assert [row(*given).cost for given in (("xla", 2.0), ("xla", 0.5), ("graph", 1.25), ("graph", None))] == [1.0, 2.0, 1.25, 1.0]


def test_a_row_that_is_slower_by_more_than_a_tenth_is_marked():
    lines = mode_choices.table([row("graph", 1.25), row("graph", 1.05), row("graph", None)], markdown=True)
    assert lines[2] == "| held out | net | 1.25 (1.25-1.25) | 1.50 | graph | 1.25x slower |"
    assert "slower" not in lines[3] and "cannot compile" in lines[4]
