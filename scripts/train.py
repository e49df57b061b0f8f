"""Trains a study from a config, keeps what it learnt in a workdir, and says how good it became.

    python scripts/train.py                              # digits, in seconds; keeps nothing
    python scripts/train.py --workdir=runs/first         # look at it: tensorboard --logdir=runs; again, it goes on from where it was
    python scripts/train.py --config.dataset=fashion_mnist --config.normalize=minmax --config.epochs=10 --workdir=runs/fashion
    python scripts/train.py --list                       # all configs, a line each
    python scripts/train.py --config=deep_mlp            # one of them
    python scripts/launch.py --workers=2 scripts/train.py --strategy=multi_worker ...     # two processes train one model

A config says what an experiment is (research/configs/); the other flags say where and how it runs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from absl import flags

from research import command_line
from research.study import InputError, build

if TYPE_CHECKING:
    import tensorflow as tf

_DEFAULT_CONFIG = command_line.CONFIGS / "classification.py"


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    command_line.define_config(values, argv, _DEFAULT_CONFIG)
    flags.DEFINE_bool("list", False, "Show the names of all configs, with a line each.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder for snapshots, weights, history, pictures and TensorBoard.", flag_values=values)
    flags.DEFINE_enum(
        "resume",
        "auto",
        ["auto", "never", "must"],
        "auto: carry on the run in the workdir, if there is one. never: refuse it. must: refuse to begin one.",
        flag_values=values,
    )
    flags.DEFINE_string("data_dir", None, "Folder with data that is not bundled. Default: $TAPELOOPS_DATA.", flag_values=values)
    flags.DEFINE_enum(
        "strategy",
        "none",
        ["none", "mirrored", "multi_worker"],
        "none: one device. mirrored: all of them. multi_worker: those of several processes, started by scripts/launch.py or a scheduler.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "logical_cpus",
        None,
        "With --strategy=mirrored, on a machine without GPUs: TensorFlow takes the CPU for so many devices.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_enum("compile", "auto", ["auto", "graph", "xla", "eager"], "How steps run; eager is for debugging.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of weights, order of the data, and random layers.", flag_values=values)


def main(args: flags.FlagValues) -> int:
    if args.list:
        print(command_line.list_configs())
        return 0
    if args.logical_cpus is not None and args.strategy != "mirrored":
        raise InputError("--logical_cpus is for --strategy=mirrored: give both.")
    with command_line.quiet_tensorflow(level=3 if args.strategy == "multi_worker" else 2):
        import tensorflow as tf

        from loops import errors
        from loops.cluster import Cluster

        try:
            strategy = _strategy(args.strategy, args.logical_cpus)
        except TimeoutError as error:
            print(error, file=sys.stderr)
            return errors.EXIT_PREEMPTED
        tf.config.list_logical_devices()

    with command_line.only_printing_if(strategy is None or Cluster.of(strategy).is_chief):
        try:
            return _train(args, strategy)
        except Exception as error:
            if strategy is not None:
                Cluster.of(strategy).leave(error)  # the others may wait for this worker, whatever it was doing
            raise


def _train(args: flags.FlagValues, strategy: tf.distribute.Strategy | None) -> int:
    from research import runner

    made = build(args.config, data_dir=args.data_dir, seed=args.seed, strategy=strategy)
    try:
        trained = runner.train(
            made,
            args.config,
            workdir=args.workdir,
            resume=args.resume,
            strategy=strategy,
            compile=args.compile,
            seed=args.seed,
        )
    except runner.Interrupted as interrupted:
        print(interrupted)
        return command_line.EXIT_INTERRUPTED
    except runner.Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    runs = trained.values() if isinstance(trained, dict) else [trained]
    return int(not all(run.saved for run in runs))


def _strategy(name: str, logical_cpus: int | None) -> tf.distribute.Strategy | None:
    """The strategy of a flag. Nothing may have used TensorFlow before, if it joins several processes.

    Raises:
        InputError: if the processes cannot be joined as they were started.
        TimeoutError: if not all of them came.
    """
    import loops

    if name == "multi_worker":
        try:
            return loops.multi_worker_strategy()
        except TimeoutError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(str(error)) from error
    return _all_devices(logical_cpus) if name == "mirrored" else None


def _all_devices(logical_cpus: int | None) -> tf.distribute.Strategy:
    import tensorflow as tf

    if logical_cpus is not None:
        devices = [tf.config.LogicalDeviceConfiguration()] * logical_cpus
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # On CPUs collectives gain nothing, and those of a second strategy in the same process would collide with the first's.
    on_cpu = not tf.config.list_logical_devices("GPU")
    joined = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy([device.name for device in devices], cross_device_ops=joined)


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
