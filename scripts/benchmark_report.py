"""Writes the tables and the picture of docs/benchmarks.md from a file of `scripts/benchmark.py`.

    python scripts/benchmark_report.py                       # from docs/benchmarks.json, and docs/mode_choices.json if that exists
    python scripts/benchmark_report.py --json=measured.json  # from another file

Only what is between the marks of the page is written; the prose around them stays. What is written depends on the files alone.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import flags

from research import command_line
from research.benchmarks import report
from research.benchmarks.measurements import Measurements
from research.pictures import bars, figures
from research.study import InputError

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("json", str(DOCS / "benchmarks.json"), "What was measured.", flag_values=values)
    flags.DEFINE_string("mode_choices", str(DOCS / "mode_choices.json"), "What `scripts/mode_choices.py` wrote.", flag_values=values)
    flags.DEFINE_string("page", str(DOCS / "benchmarks.md"), "The page; the picture is written beside it.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    page = pathlib.Path(args.page)
    if not pathlib.Path(args.json).exists():
        raise InputError(f"There is no file {args.json!r}; scripts/benchmark.py --json={args.json} measures it.")
    content = Measurements(args.json).content
    page.write_text(written(page.read_text(encoding="utf-8"), content, pathlib.Path(args.mode_choices)), encoding="utf-8")
    if panels := report.bars(content):
        figures.save(bars.ratios(panels), page.with_suffix(".png"))
    return 0


def written(text: str, content: report.Content, choices: pathlib.Path) -> str:
    """The page with what was measured in its marked sections.

    Args:
        text: the page.
        content: of the file of measurements.
        choices: the file of chosen modes; if it does not exist, that section stays as it is.
    """
    sections = {name: lines(content) for name, lines in report.SECTIONS.items()}
    return report.filled(text, {**sections, "mode choices": _mode_choices(choices) if choices.exists() else None})


def _mode_choices(file: pathlib.Path) -> list[str]:
    with command_line.quiet_tensorflow():
        from research.benchmarks.mode_choices import Row
    from scripts.mode_choices import table

    return table([Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))], markdown=True)


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
