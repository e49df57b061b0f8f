"""Searches for a better config: many runs, each in a folder of its own, chosen and given up by Optuna.

    python scripts/search.py --config=regression --workdir=runs/search --trials=20 --space.optimizer.learning_rate=1e-4:1e-1:log
    python scripts/search.py --config=regression --workdir=runs/search --trials=40 --space.optimizer.learning_rate=1e-4:1e-1:log  # 20 more
    tensorboard --logdir=runs/search                     # HParams: a table and parallel coordinates of all trials
    python scripts/runs.py list runs/search --sort=val_loss

What may change is said by flags, --space.FIELD=LOW:HIGH, --space.FIELD=LOW:HIGH:log or --space.FIELD=A,B,C, or by a function
search_space(trial, config) in the config's file. The same command goes on after a kill, in the middle of a trial, and finds what it would
have found. Several machines join one search by --storage=URL, each with a workdir of its own; --jobs=N runs N processes on this one.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

from absl import flags

from research import command_line
from research.search import space as spaces
from research.study import InputError

_DEFAULT_CONFIG = command_line.CONFIGS / "regression.py"


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    command_line.define_config(values, argv, _DEFAULT_CONFIG)
    flags.DEFINE_string("workdir", None, "Folder of the search; trials/0007/ in it is the run of trial 7.", flag_values=values)
    flags.DEFINE_integer("trials", 20, "Trials that there shall be in the end, earlier ones included.", lower_bound=1, flag_values=values)
    flags.DEFINE_list("metric", None, "Metrics of the logs to judge by. Default: the study's own, such as val_loss.", flag_values=values)
    flags.DEFINE_list("mode", None, "min or max, for each metric. Default: told by the study, or by the name.", flag_values=values)
    flags.DEFINE_enum("sampler", "tpe", spaces.SAMPLERS, "How points are chosen.", flag_values=values)
    flags.DEFINE_enum("pruner", "median", spaces.PRUNERS, "How trials are given up early.", flag_values=values)
    flags.DEFINE_string(
        "storage",
        None,
        "URL of a database to share; the workdir's last part names the search. Default: a file in the workdir.",
        flag_values=values,
    )
    flags.DEFINE_integer("jobs", 1, "Processes on this machine, each with its share of the cores.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("failures", 5, "So many failed trials in a row end the search.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("data_dir", None, "Folder with data that is not bundled. Default: $TAPELOOPS_DATA.", flag_values=values)
    flags.DEFINE_enum("compile", "auto", ["auto", "graph", "xla", "eager"], "How steps run.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the samplers, and of each trial's weights and data.", flag_values=values)
    flags.DEFINE_bool("only_work", False, "Work on trials, and conclude nothing: what --jobs starts.", flag_values=values)


def program(argv: list[str]) -> int:
    """Does what a command line says; returns the exit code."""
    try:
        rest, given = spaces.take_flags(argv)
    except InputError as error:
        print(f"search.py: {error}", file=sys.stderr)
        return command_line.EXIT_REFUSED
    return command_line.run(lambda args: _main(args, given, argv), define_flags, rest)


def _main(args: flags.FlagValues, given: dict[str, str], argv: list[str]) -> int:
    if args.workdir is None:
        raise InputError("A search needs --workdir=runs/NAME, for its trials.")
    config_file = args["config"].config_filename
    space = spaces.space_of(config_file, args.config, given)
    if importlib.util.find_spec("optuna") is None:
        raise InputError('A search needs Optuna: pip install -e ".[search]".')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if args.jobs > cores:
        raise InputError(f"--jobs={args.jobs} is more than this machine has cores ({cores}): they would only wait for each other.")
    if args.jobs > 1:
        codes = _jobs(args.jobs, max(1, cores // args.jobs), argv)
        if any(codes):
            return max(codes)
    with command_line.quiet_tensorflow():
        import tensorflow as tf

        devices = tf.config.list_logical_devices()
    if (args.jobs > 1 or args.only_work) and any(device.device_type == "GPU" for device in devices):
        raise InputError("--jobs is for processors: several processes would share the GPU. Start one process for each GPU instead.")
    return _search(args, space, pathlib.Path(config_file))


def _search(args: flags.FlagValues, space: spaces.Space, config_file: pathlib.Path) -> int:
    from research import run_folders, runner
    from research.search import conclusion
    from research.search.objective import Objective
    from research.search.trials import STORAGE_ERRORS, Search, guesses

    folder = pathlib.Path(args.workdir)
    if (folder / run_folders.CONFIG).exists():
        raise InputError(f"{folder} holds a run, not a search; give a new workdir.")
    objective = Objective(args.config, (), args.data_dir, args.compile, args.seed, folder / "logs")
    study = objective.study(copy.deepcopy(args.config))
    space.check(guesses(), args.config)
    metrics, modes = _judged_by(args, study)
    objective = dataclasses.replace(objective, metrics=metrics)
    settings = {"config": json.loads(json.dumps(args.config.to_dict(), default=str)), "metrics": metrics, "seed": args.seed}
    search = Search(
        folder,
        space,
        {**settings, "sampler": args.sampler, "pruner": args.pruner},
        directions=[f"{mode}imize" for mode in modes],
        sampler=args.sampler,
        pruner=args.pruner if len(metrics) == 1 else "none",
        seed=args.seed,
        storage=args.storage,
        several=args.jobs > 1 or args.only_work,
    )
    default = None
    try:
        if not args.only_work:
            default = _default(search, objective, metrics)
        _work(args, search, objective, space, metrics)
    except STORAGE_ERRORS as error:
        raise search.gone(error) from error
    except runner.Interrupted:
        print(f"Interrupted: {len(search.finished())} of {search.limit(args.trials)} trials have ended; the same command goes on.")
        return command_line.EXIT_INTERRUPTED
    except ValueError as error:  # a sampler's
        raise InputError(str(error)) from error
    if args.only_work:
        return 0
    print("\n".join(["", conclusion.table(search, metrics, default), "", *conclusion.told(search)]))
    for path in conclusion.draw(search, metrics, default):
        print(f"Picture:     {path}")
    number = conclusion.best_number(search)
    best = None if number is None else run_folders.read(folder / "trials" / f"{number:04d}")
    if best is not None:
        written = json.loads((best.path / "config.json").read_text(encoding="utf-8"))["config"]
        name = config_file.stem if config_file.parent.resolve() == command_line.CONFIGS else str(config_file)
        print(f"Train it:    {conclusion.command_of(spaces.module_of(config_file).get_config().to_dict(), written, name, folder)}")
    print(f"TensorBoard: tensorboard --logdir={folder}")
    return int(number is None)


def _default(search: Any, objective: Any, metrics: list[str]) -> dict[str, Any] | None:
    """Trains the config as it is, unless another process does so just now; returns what it reached, None if it did not train."""
    from loops.run.workdir_lock import is_locked
    from research import runner
    from research.search.objective import NoSuchMetric, Unusable

    folder = search.folder / "default"
    try:
        reached: dict[str, Any] | None = None if is_locked(folder) else objective.default(folder)
    except (Unusable, runner.Failed) as error:  # points may do better
        print(f"default    FAILED  {error}", flush=True)
        return None
    except NoSuchMetric:
        search.take_back()
        raise
    print(f"default    {'trained by another process' if reached is None else _values(metrics, reached['values'])}", flush=True)
    return reached


def _work(args: flags.FlagValues, search: Any, objective: Any, space: spaces.Space, metrics: list[str]) -> None:
    """Does trials until there are enough.

    Raises:
        InputError: if too many have failed in a row.
    """
    failed = 0
    while True:
        with search.next(args.trials) as trial:
            if trial is None:
                return
            config = copy.deepcopy(args.config)
            try:
                space.apply(trial, config)
            except InputError as error:  # at this point only: `space.check` has tried some
                trial.failed(str(error))
            else:
                objective(trial, config)
            ended = next(t for t in search.finished() if t.number == trial.number)
        words = {"COMPLETE": "", "PRUNED": "given up  ", "FAIL": "FAILED  "}[ended.state.name]
        reached = ended.values if ended.state.name == "COMPLETE" else list(ended.intermediate_values.values())[-1:]
        what = ended.user_attrs.get("reason") if ended.state.name == "FAIL" else _values(metrics, reached or [])
        params = "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in ended.params.items())
        print(f"trial {ended.number:<4} {words}{what}  {params}", flush=True)
        failed = failed + 1 if ended.state.name == "FAIL" else 0
        if failed >= args.failures:
            raise InputError(f"{failed} trial{'s' * (failed > 1)} in a row failed, the last because: {ended.user_attrs.get('reason')}")


def _judged_by(args: flags.FlagValues, study: Any) -> tuple[list[str], list[str]]:
    """The metrics, and "min" or "max" for each."""
    from research import run_folders

    metrics = args.metric or ([study.monitor] if study.monitor else None)
    if not metrics:
        raise InputError("The study names no metric to judge by: give --metric=NAME.")
    modes = args.mode or [study.mode if name == study.monitor else run_folders.better(name) for name in metrics]
    if len(modes) != len(metrics) or not all(mode in ("min", "max") for mode in modes):
        raise InputError(f"Give --mode=min or --mode=max for each of {', '.join(metrics)}.")
    if len(metrics) > 1 and args.sampler == "cmaes":
        raise InputError("--sampler=cmaes takes one metric; tpe and random take several.")
    return list(metrics), list(modes)


def _values(metrics: list[str], values: Any) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in zip(metrics, values, strict=False))


def _jobs(count: int, cores: int, argv: list[str]) -> list[int]:
    """Runs this command `count` times side by side on so many cores each, handing signals on; returns their exit codes."""
    threads = {name: str(cores) for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")}
    command = [sys.executable, *argv, "--jobs=1", "--only_work"]
    workers = [subprocess.Popen(command, env={**os.environ, **threads}) for _ in range(count)]
    before = {number: signal.signal(number, lambda number, _: [w.send_signal(number) for w in workers]) for number in (signal.SIGTERM,)}
    try:
        return [worker.wait() for worker in workers]
    except KeyboardInterrupt:  # the terminal has sent it to them too
        return [worker.wait() for worker in workers]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(program(sys.argv))
