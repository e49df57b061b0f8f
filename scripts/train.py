"""Trains a study from a config, keeps what it learnt in a workdir, and says how good it became.

    python scripts/train.py                              # digits, in seconds; keeps nothing
    python scripts/train.py --workdir=runs/first         # look at it: tensorboard --logdir=runs; again, it goes on from where it was
    python scripts/train.py --config.dataset=fashion_mnist --config.normalize=minmax --config.epochs=10 --workdir=runs/fashion

A config says what an experiment is (research/configs/); the other flags say where and how it runs.
"""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from research import command_line
from research.report import metrics_table
from research.study import InputError, Study, build

if TYPE_CHECKING:
    import tensorflow as tf

    import loops

_DEFAULT_CONFIG = pathlib.Path(__file__).resolve().parent.parent / "research" / "configs" / "classification.py"

# What the loop leaves in a workdir.
BEST_WEIGHTS = pathlib.Path("checkpoints", "best.weights.h5")
LAST_WEIGHTS = pathlib.Path("checkpoints", "last.weights.h5")
HISTORY = pathlib.Path("history.csv")


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    command_line.define_config(values, argv, _DEFAULT_CONFIG)
    flags.DEFINE_string("workdir", None, "Folder for snapshots, weights, history, curves and TensorBoard.", flag_values=values)
    flags.DEFINE_enum(
        "resume",
        "auto",
        ["auto", "never", "must"],
        "auto: carry on the run in the workdir, if there is one. never: refuse it. must: refuse to begin one.",
        flag_values=values,
    )
    flags.DEFINE_string("data_dir", None, "Folder with data that is not bundled. Default: $TAPELOOPS_DATA.", flag_values=values)
    flags.DEFINE_enum("strategy", "none", ["none", "mirrored"], "none: one device. mirrored: all of them.", flag_values=values)
    flags.DEFINE_enum("compile", "auto", ["auto", "graph", "xla", "eager"], "How steps run; eager is for debugging.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of weights, order of the data, and random layers.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    with command_line.quiet_tensorflow():
        import tensorflow as tf

        import loops

        tf.config.list_logical_devices()

    if args.config.epochs < 1:
        raise InputError(f"config.epochs is {args.config.epochs}; train for 1 epoch or more.")
    strategy = _all_devices() if args.strategy == "mirrored" else None
    study = build(args.config, data_dir=args.data_dir, seed=args.seed, strategy=strategy)
    config = args.config
    best = loops.hooks.EarlyStopping(
        study.monitor, mode=study.mode, patience=config.get("patience", 0) or config.epochs, restore_best_weights=True
    )
    loop = _loop(study, best, args, strategy)
    print(study.description, flush=True)
    unsaved = False
    try:
        loop.run(epochs=config.epochs)
    except (loops.NonFiniteError, loops.WorkdirInUse) as error:
        print(f"{error} {_kept(loop.workdir)}", file=sys.stderr)
        return 1
    except loops.MismatchError as error:
        raise InputError(str(error)) from error
    except loops.SaveError as error:
        print(error, file=sys.stderr)
        unsaved = True
    except KeyboardInterrupt:
        # The first Ctrl-C ends the run at a step, without an exception; this is a second one.
        pass
    if loop.outcome == "interrupted":
        print(f"Interrupted in epoch {loop.progress.epoch + 1} of {config.epochs}. {_kept(loop.workdir)}")
        return command_line.EXIT_INTERRUPTED
    report(study, loop, best, args.compile)
    return int(unsaved)


def _all_devices() -> tf.distribute.Strategy:
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # On CPUs collectives gain nothing, and those of a second strategy in the same process would collide with the first's.
    on_cpu = not tf.config.list_logical_devices("GPU")
    joined = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy([device.name for device in devices], cross_device_ops=joined)


def _loop(
    study: Study, best: loops.hooks.EarlyStopping, args: flags.FlagValues, strategy: tf.distribute.Strategy | None
) -> loops.TrainLoop:
    import loops

    try:
        return loops.TrainLoop(
            study.task,
            study.train,
            hooks=[*study.hooks, best, loops.hooks.ProgressBar()],
            evaluate=study.evaluate,
            workdir=args.workdir,
            resume=args.resume,
            strategy=strategy,
            compile=args.compile,
            seed=args.seed,
            on_nonfinite=args.config.get("on_nonfinite", "raise"),
            config=args.config.to_dict(),
        )
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


def report(study: Study, loop: loops.TrainLoop, best: loops.hooks.EarlyStopping, compile: str) -> None:
    """Evaluates on the test set, draws the curves, and prints a table and where to look next.

    Args:
        study: what was trained; its model has the weights of the best epoch.
        loop: the loop that trained it.
        best: the hook that chose the best epoch.
        compile: how evaluation is to run.
    """
    import loops

    history, workdir, seconds = loop.history, loop.workdir, loop.progress.seconds
    found = best.best is not None
    at = history.epoch.index(best.best_epoch) if found else len(history.epoch) - 1
    logs = {name: values[at] for name, values in history.history.items() if len(values) == len(history.epoch)}
    test = loops.EvalLoop(study.task, strategy=loop.strategy, compile=compile).run(study.test)
    rows = {"train": {name: logs[name] for name in test if name in logs}}
    for name in study.evaluate:
        rows[name] = {metric: logs[f"{name}_{metric}"] for metric in test if f"{name}_{metric}" in logs}
    print(f"\n{metrics_table({**rows, 'test': test})}\n")

    chosen = f"Best {study.monitor} in epoch {best.best_epoch + 1}" if found else f"No epoch had a finite {study.monitor}: the last"
    print(f"{chosen} of {len(history.epoch)}; {loop.progress.step:,} steps in {seconds:.1f} s.")
    if workdir is None:
        print("Nothing was written: --workdir=runs/NAME keeps weights, history, curves and TensorBoard.")
        return
    if history.epoch:
        from research import plots

        curves = workdir / "plots" / "learning_curves.png"
        curves.parent.mkdir(exist_ok=True)
        plots.learning_curves(history, curves, best=at if found else None, title=study.title)
        print(f"Curves:      {curves}")
    print(f"TensorBoard: tensorboard --logdir={workdir}")
    if (workdir / BEST_WEIGHTS).exists():
        print(f"Test again:  python scripts/evaluate.py --workdir={workdir}")


def _kept(workdir: pathlib.Path | None) -> str:
    if workdir is None:
        return "Nothing was kept: there was no --workdir."
    kept = [str(file) for file in (BEST_WEIGHTS, LAST_WEIGHTS, HISTORY) if (workdir / file).exists()]
    return f"Kept in {workdir}: {', '.join(kept)}." if kept else f"No epoch was finished, so {workdir} holds no weights."


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
