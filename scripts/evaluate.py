"""Prints the metrics of a run's best weights on the test set.

    python scripts/evaluate.py --workdir=runs/first

The study is built anew from the config that scripts/train.py left in the workdir.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import flags
from ml_collections import config_dict

from research import command_line
from research.report import metrics_table
from research.study import InputError, build


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("workdir", None, "Folder that scripts/train.py wrote.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Folder with data that is not bundled. Default: $TAPELOOPS_DATA.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    if not args.workdir:
        raise InputError("Say which run to evaluate: --workdir=runs/NAME.")
    workdir = pathlib.Path(args.workdir)
    weights = workdir / "checkpoints" / "best.weights.h5"
    try:
        written = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        config, seed = config_dict.ConfigDict(written["config"]), written["loop"]["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{workdir} is no workdir of scripts/train.py: its config.json cannot be read ({error}).") from error
    if "study" not in config:
        raise InputError(f"{workdir / 'config.json'} names no study: the run was not made by scripts/train.py.")
    if not weights.is_file():
        raise InputError(f"There is no {weights}: the run has not finished an epoch.")

    with command_line.quiet_tensorflow():
        import tensorflow as tf

        import loops

        tf.config.list_logical_devices()

    study = build(config, data_dir=args.data_dir, seed=seed)
    try:
        study.model.load_weights(weights)
    except (OSError, ValueError) as error:
        raise InputError(f"{weights} does not hold the weights of this study's model ({str(error).splitlines()[0]}).") from error
    print(study.description)
    print(f"\n{metrics_table({'test': loops.EvalLoop(study.task).run(study.test)})}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
