"""Prints the metrics of a run's best weights on the test set.

    python scripts/evaluate.py --workdir=runs/first

The study is built again from the config that scripts/train.py left in the workdir. Of a comparison, all parts are evaluated; give the
folder of one to evaluate that.
"""

from __future__ import annotations

import sys

from absl import flags

from research import command_line
from research.report import metrics_table
from research.study import InputError


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("workdir", None, "Folder that scripts/train.py wrote.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Folder with data that is not bundled. Default: $TAPELOOPS_DATA.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    if not args.workdir:
        raise InputError("Say which run to evaluate: --workdir=runs/NAME.")
    with command_line.quiet_tensorflow():
        import tensorflow as tf

        import loops
        from research import runner

        tf.config.list_logical_devices()

    studies = runner.restore(args.workdir, data_dir=args.data_dir)
    rows = {}
    for name, study in studies.items():
        print(study.description if len(studies) == 1 else f"{name}: {study.description}")
        if study.test is not None:
            rows[name if len(studies) > 1 else "test"] = loops.EvalLoop(study.task).run(study.test)
    if not rows:
        raise InputError(f"The study of {args.workdir} has no test set.")
    print(f"\n{metrics_table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
