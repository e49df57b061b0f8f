"""Measures what several worker processes cost, beside a loop by hand under the same strategy.

    python scripts/launch.py --workers=2 scripts/benchmark_workers.py
    python scripts/launch.py --workers=4 scripts/benchmark_workers.py --hidden=2000,1000 --batch_size=256 --rounds=11

The contenders take turns, round after round, all in the same processes. A ratio is formed within each round; shown are medians. Besides:
what crosses the network at a step, read from the traced graph, and the time of each thing that workers tell each other between calls.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import sys
import tempfile

from absl import flags

from research import command_line
from research.report import metrics_table
from research.study import InputError


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_list("hidden", ["300", "100"], "Units of the hidden layers.", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Examples in a batch, of all workers together.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("rounds", 7, "Rounds.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", 200, "Steps of each contender in a round.", lower_bound=1, flag_values=values)


def main(args: flags.FlagValues) -> int:
    if "TF_CONFIG" not in os.environ:
        raise InputError("There is one process only; start several by scripts/launch.py --workers=2 scripts/benchmark_workers.py.")
    with command_line.quiet_tensorflow(level=3):
        import loops
        from research.benchmarks import workers

        strategy = loops.multi_worker_strategy()
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    with command_line.only_printing_if(index == 0), tempfile.TemporaryDirectory() as folder:
        model = workers.Model(strategy, [int(units) for units in args.hidden], args.batch_size)
        made, loop = workers.contenders(model, pathlib.Path(folder))
        rates = workers.rates(made, args.rounds, args.steps)
        base, ours = rates["by hand"], rates["loops"]
        rows = {
            name: {
                "steps/s": statistics.median(found),
                "of by hand": statistics.median(a / b for a, b in zip(found, base, strict=True)),
                "of loops": statistics.median(a / b for a, b in zip(found, ours, strict=True)),
            }
            for name, found in rates.items()
        }
        print(f"{strategy.num_replicas_in_sync} replicas, {loop.task.model.count_params():,} parameters, batches of {args.batch_size}")
        print(f"\n{metrics_table(rows)}\n")
        for dtype, elements, size in workers.collectives(loop.graph):
            print(f"a step sums {elements:,} numbers of {dtype} over the workers: {size:,} bytes")
        print()
        for name, taken in workers.boundary(loop).items():
            print(f"{name:<38}{taken:8.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
