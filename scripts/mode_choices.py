"""Shows what `compile="auto"` chooses for many models, beside the speed of both modes: the table of docs/benchmarks.md.

    python scripts/mode_choices.py                                   # all models, an hour on a busy machine
    python scripts/mode_choices.py --names=lstm,conv@                # those whose names contain one of these
    python scripts/mode_choices.py --notime                          # only what the rule says
    python scripts/mode_choices.py --json=choices.json --markdown
    python scripts/mode_choices.py --json=choices.json --fit         # the rule's constants, fitted to these measurements

Both modes of a model run in turns in one process, so that their ratio says something on a busy machine too. The rule itself measures
nothing (`loops/engine/compile_mode.py`). A row whose chosen mode is more than a tenth slower than the other is marked.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from research import command_line
from research.study import InputError

if TYPE_CHECKING:
    from research.benchmarks.mode_choices import Row

TOLERATED = 1.1


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_list("names", [], "Parts of names of models; all models if none is given.", flag_values=values)
    flags.DEFINE_bool("time", True, "Time both modes; else only the rule is asked.", flag_values=values)
    flags.DEFINE_float(
        "patience",
        60.0,
        "Seconds that a model may spend on waiting for the full speed of the machine and on timing without it; 0 not to look at that.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_bool("markdown", False, "Print the table in Markdown.", flag_values=values)
    flags.DEFINE_bool("fit", False, "Print the constants of the rule that fit the measurements of --json.", flag_values=values)
    flags.DEFINE_string(
        "json", None, "File for the rows, written after each; rows that it holds are not measured again.", flag_values=values
    )


def main(args: flags.FlagValues) -> int:
    with command_line.quiet_tensorflow():
        from research.benchmarks import mode_choices
        from research.benchmarks.machine_speed import MachineSpeed, Turns

    file = pathlib.Path(args.json) if args.json else None
    rows = [mode_choices.Row(**row) for row in json.loads(file.read_text())] if file is not None and file.exists() else []
    if args.fit:
        if not rows:
            raise InputError("--fit needs measurements: give a file that was written by --json.")
        print(*(f"{kind:<14}{graph:>10.2g}{xla:>10.2g}" for kind, (graph, xla) in mode_choices.fitted(rows).items()), sep="\n")
        return 0
    done = {row.name for row in rows}
    wanted = [c for c in mode_choices.candidates() if not args.names or any(part in c.name for part in args.names)]
    if not wanted:
        raise InputError(f"There is no model whose name contains one of {', '.join(args.names)}.")
    speed = MachineSpeed() if args.time and args.patience else None
    for candidate in wanted:
        if candidate.name in done:
            continue
        rows.append(mode_choices.measured(candidate, Turns(speed, args.patience) if args.time else None))
        print(*line_of(rows[-1]), sep="  ", flush=True)
        if file is not None:
            file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    print("", *table(rows, args.markdown), sep="\n")
    return 0


def line_of(row: Row) -> list[str]:
    """The cells of a row: group, model, measured ratio with its quartiles, ratio by the rule, chosen mode, what it costs."""
    spread = f" ({row.spread[0]:.2f}-{row.spread[1]:.2f})" if row.spread is not None else ""
    times = f"{row.times:.2f}{spread}" if row.times is not None else "cannot compile" if row.microseconds else ""
    wrong = f"{row.cost:.2f}x slower" if row.cost > TOLERATED else ""
    return [row.group, row.name, times, f"{row.estimated:.2f}" if row.estimated is not None else "", row.chosen, wrong]


def table(rows: list[Row], markdown: bool) -> list[str]:
    """The rows in columns."""
    cells = [["group", "model", "XLA / graph, measured", "by the rule", "chosen", ""], *map(line_of, rows)]
    if markdown:
        lines = [f"| {' | '.join(line)} |" for line in cells]
        return [lines[0], "|:--|:--|--:|--:|:--|:--|", *lines[1:]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
