"""Writes the best weights of a run in every form that Keras and TensorFlow have, and checks each by reading it in a fresh process.

    python scripts/export.py --workdir=runs/first                          # all forms, to runs/first/export
    python scripts/export.py --workdir=runs/first --forms=keras,saved_model --to=served

Of a comparison, each part is exported to a folder of its own. The SavedModel takes inputs as they are stored: the study's normalisation
is inside. To go on with training, start scripts/train.py with the same workdir: that goes on from the exact state of the run.
"""

from __future__ import annotations

import json
import pathlib
import sys

from absl import flags, logging

from research import command_line
from research.study import InputError

_FORMS = ("weights", "checkpoint", "architecture", "keras", "h5", "saved_model")


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("workdir", None, "Folder that scripts/train.py wrote.", flag_values=values)
    flags.DEFINE_list("forms", list(_FORMS), f"What to write, of {', '.join(_FORMS)}.", flag_values=values)
    flags.DEFINE_string("to", None, "Folder to write to. Default: export/ in the workdir.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Folder with data that is not bundled. Default: $TAPELOOPS_DATA.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    if not args.workdir:
        raise InputError("Say which run to export: --workdir=runs/NAME.")
    if not args.forms or set(args.forms) - set(_FORMS):
        raise InputError(f"--forms is {','.join(args.forms)!r}; choose from {', '.join(_FORMS)}.")
    with command_line.quiet_tensorflow():
        import tensorflow as tf

        from research import runner
        from research.exports.check import check
        from research.exports.write import NotPossible, write

        tf.config.list_logical_devices()
    # Keras calls .h5 legacy by a warning; whoever asks for that form knows.
    logging.set_verbosity(logging.ERROR)

    workdir = pathlib.Path(args.workdir)
    studies = runner.restore(workdir, data_dir=args.data_dir)
    name_of_study = json.loads((workdir / "config.json").read_text(encoding="utf-8"))["config"]["study"]
    # What a comparison holds of several parts has a folder for each.
    several = len(studies) > 1
    failed = False
    for part, study in studies.items():
        folder = workdir / part / "export" if several else workdir / "export"
        if args.to:
            folder = pathlib.Path(args.to, part) if several else pathlib.Path(args.to)
        written = write(study, folder, args.forms)
        found = check(study, written, modules=["layers", f"research.studies.{name_of_study}"])
        print(f"{study.title}: {folder}" if not several else f"{part}: {folder}")
        for form, path in written.items():
            if isinstance(path, NotPossible):
                line, failed = f"not written: {path}.", True
            elif isinstance(found[form], str):
                line, failed = f"{path.relative_to(folder)}: {found[form]}.", True
            elif form == "architecture":
                line = f"{path.relative_to(folder)}: the same layers"
            else:
                line = f"{path.relative_to(folder)}: the same predictions (largest difference {found[form]:.1e})"
            print(f"  {form:<12}  {line}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
