"""Trains a study, or the parts of a comparison one after the other, and reports how good it became.

It knows no study by name (see `research.study`); flags and exit codes are read and set by `scripts/train.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from ml_collections import config_dict

import loops
from loops import errors, hooks
from loops.cluster import Cluster
from loops.run import workdir
from research.pictures import plots
from research.report import metrics_table
from research.study import PLOTS, Comparison, InputError, Run, Runs, Study, build

__all__ = ["Failed", "Interrupted", "restore", "train"]

# What a run leaves in its workdir.
BEST_WEIGHTS = pathlib.Path("checkpoints", "best.weights.h5")
LAST_WEIGHTS = pathlib.Path("checkpoints", "last.weights.h5")
HISTORY = pathlib.Path("history.csv")


class Interrupted(Exception):
    """Somebody ended the run before its end. The message says where it stands and what was kept."""


class Failed(RuntimeError):
    """The run cannot go on. The message says why, and what was kept."""


def train(
    made: Study | Comparison,
    config: Any,
    *,
    workdir: str | os.PathLike[str] | None = None,
    resume: str = "auto",
    strategy: tf.distribute.Strategy | None = None,
    compile: str = "auto",
    seed: int = 0,
    extra_hooks: Sequence[Any] = (),
) -> Run | Runs:
    """Trains a study or a comparison, evaluates it on its test set, draws, and prints.

    With a workdir, what an earlier call has trained is not trained again: a run goes on from where it was, a part of a comparison that is
    complete is only read. Of several worker processes the chief alone uses the workdir; all of them print.

    Args:
        made: what `research.study.build` gave.
        config: what it was built from. Of its fields this uses `epochs`, `patience` (epochs without a better `Study.monitor` until training
            stops; 0 or absent: never) and `on_nonfinite` ("raise" if absent).
        workdir: folder for everything that the run leaves, a comparison has a folder in it for each part; None keeps nothing.
        resume: "auto" carries on what is in the workdir, "never" refuses it, "must" refuses to begin a new run.
        strategy: distribution strategy, the one that the study was built with.
        compile: how steps run, as in `loops.TrainLoop`.
        seed: seed of the loop, the one that the study was built with.
        extra_hooks: hooks beside those of the study.

    Returns:
        The `Run` of a study, the `Runs` of a comparison.

    Raises:
        InputError: for settings or a workdir that cannot be used.
        Interrupted: after Ctrl-C.
        Failed: after a loss that is not finite, if another process uses the workdir, or if another worker has failed.
    """
    how: dict[str, Any] = {"strategy": strategy, "compile": compile, "seed": seed}
    if isinstance(made, Study):
        made = dataclasses.replace(made, hooks=[*made.hooks, *extra_hooks])
    folder = pathlib.Path(workdir) if workdir is not None else None
    if isinstance(made, Comparison):
        return _train_parts(made, config, folder, resume, how)
    if folder is not None and "parts" in _config_of(folder):
        raise InputError(f"{folder} holds a comparison of several runs; give a new workdir.")
    run = _train_one(made, config, folder, resume, how)
    if folder is None:
        print("Nothing was written: --workdir=runs/NAME keeps weights, history, pictures and TensorBoard.")
    else:
        print(f"Pictures:    {folder / 'plots'}\nTensorBoard: tensorboard --logdir={folder}")
        if (folder / BEST_WEIGHTS).exists() or (made.monitor is None and (folder / LAST_WEIGHTS).exists()):
            print(f"Test again:  python scripts/evaluate.py --workdir={folder}")
    return run


def _train_parts(made: Comparison, config: Any, folder: pathlib.Path | None, resume: str, how: dict[str, Any]) -> Runs:
    cluster = Cluster.of(how["strategy"] or tf.distribute.get_strategy())
    if folder is not None:
        loop = {name: how[name] for name in ("compile", "seed")}
        content = {"loop": loop, "config": config.to_dict(), "parts": list(made.parts)}
        try:
            with cluster.noticing_loss():
                cluster.together(lambda: _open_comparison(folder, resume, content), on="opening the workdir")
        except errors.WorkerFailed as error:
            raise Failed(str(error)) from error
        except InputError:
            raise
        except (ValueError, OSError) as error:
            raise InputError(str(error)) from error
    print(made.description, flush=True)
    runs = Runs(folder, writes=cluster.is_chief)
    for number, name in enumerate(made.parts, 1):
        print(f"\n{name} ({number} of {len(made.parts)})\n", flush=True)
        study = made.make(name, runs, seed=how["seed"])
        runs[name] = _train_one(study, config, folder / name if folder is not None else None, "auto", how, part=name)
    print(f"\n{made.description}")
    lines = made.conclude(runs)
    print("\n".join(["", *lines, ""]))
    if folder is None:
        print("Nothing was written: --workdir=runs/NAME keeps weights, history, pictures and TensorBoard.")
    else:
        print(f"TensorBoard: tensorboard --logdir={folder}\nTest again:  python scripts/evaluate.py --workdir={folder}")
    return runs


def _open_comparison(folder: pathlib.Path, resume: str, content: dict[str, Any]) -> None:
    workdir.check_usable(folder, resume)
    if (folder / workdir.SNAPSHOTS).exists():
        raise InputError(f"{folder} holds a single run; give a new workdir.")
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_config(folder, content)


def _train_one(study: Study, config: Any, folder: pathlib.Path | None, resume: str, how: dict[str, Any], part: str | None = None) -> Run:
    epochs = study.epochs if study.epochs is not None else config.epochs
    if epochs < 1:
        raise InputError(f"config.epochs is {epochs}; train for 1 epoch or more.")
    best = None
    if study.monitor is not None:
        patience = config.get("patience", 0) or epochs
        best = hooks.EarlyStopping(study.monitor, mode=study.mode, patience=patience, restore_best_weights=True)
    settings = config.to_dict() if part is None else {**config.to_dict(), "part": part}
    loop = _loop(study, best, folder, resume, config.get("on_nonfinite", "raise"), settings, how)
    print(study.description, flush=True)
    saved = True
    try:
        loop.run(epochs=epochs)
    except errors.WorkerFailed as error:
        raise Failed(str(error)) from error
    except (loops.NonFiniteError, loops.WorkdirInUse) as error:
        raise Failed(f"{error} {_kept(loop.workdir)}") from error
    except loops.MismatchError as error:
        raise InputError(str(error)) from error
    except loops.SaveError as error:
        print(error, file=sys.stderr)
        saved = False
    except KeyboardInterrupt:
        # The first Ctrl-C ends the run at a step, without an exception; this is a second one.
        pass
    if loop.outcome == "interrupted":
        where = f"epoch {loop.progress.epoch + 1} of {epochs}"
        raise Interrupted(f"Interrupted in {where if part is None else f'{part}, {where}'}. {_kept(loop.workdir)}")
    return _report(study, loop, best, how["compile"], saved)


def _loop(
    study: Study,
    best: hooks.EarlyStopping | None,
    folder: pathlib.Path | None,
    resume: str,
    on_nonfinite: str,
    settings: Mapping[str, Any],
    how: dict[str, Any],
) -> loops.TrainLoop:
    all_hooks = [*study.hooks, *([best] if best is not None else []), hooks.ProgressBar()]
    if folder is not None:
        if study.monitor is not None:
            keeper = {"monitor": study.monitor, "mode": study.mode, "save_best_only": True, "save_weights_only": True}
            all_hooks.append(hooks.ModelCheckpoint(folder / BEST_WEIGHTS, **keeper))
        all_hooks.append(hooks.ModelCheckpoint(folder / LAST_WEIGHTS, save_weights_only=True))
    else:
        # Without a workdir it would write into a folder of its own choice.
        all_hooks = [hook for hook in all_hooks if not (isinstance(hook, hooks.TensorBoard) and hook.log_dir is None)]
    try:
        return loops.TrainLoop(
            study.task,
            study.train,
            hooks=all_hooks,
            evaluate=study.evaluate,
            workdir=folder,
            resume=resume,
            steps_per_epoch=study.steps_per_epoch,
            clip=study.clip,
            on_nonfinite=on_nonfinite,
            config=settings,
            **how,
        )
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


def _report(study: Study, loop: loops.TrainLoop, best: hooks.EarlyStopping | None, compile: str, saved: bool) -> Run:
    """Evaluates on the test set, prints a table, draws the curves, and has the study say its own."""
    history = loop.history
    at = history.epoch.index(best.best_epoch) if best is not None and best.best is not None else None
    test: dict[str, Any] = {}
    if study.test is not None:
        test = loops.EvalLoop(study.task, strategy=loop.strategy, compile=compile).run(study.test)
    run = Run(study, loop, test, at, saved)
    print(f"\n{metrics_table(_rows(run))}\n")
    chosen = "The last epoch" if best is None else f"No epoch had a finite {study.monitor}: the last"
    if at is not None:
        chosen = f"Best {study.monitor} in epoch {history.epoch[at] + 1}"
    print(f"{chosen} of {len(history.epoch)}; {loop.progress.step:,} steps in {loop.progress.seconds:.1f} s.")
    if run.workdir is not None and history.epoch:
        run.picture("learning_curves", plots.learning_curves(history, best=at, title=study.title))
    if study.after is not None and (lines := study.after(run)):
        print("\n".join(["", *lines, ""]))
    if run.workdir is not None and loop.timing.steps:
        for hook in loop.hooks:
            if isinstance(hook, (hooks.MLflow, hooks.WandB)):  # what is drawn after training belongs to the run too
                hook.add_files(loop, *sorted((run.workdir / PLOTS).glob("*.png")))
    return run


def _rows(run: Run) -> dict[str, Mapping[str, Any]]:
    """The table of metrics: one row a data set."""
    logs = {name: value for name, value in run.logs.items() if name != "learning_rate"}
    rows: dict[str, Mapping[str, Any]] = {}
    for name in run.study.evaluate:
        rows[name] = {key.removeprefix(f"{name}_"): logs.pop(key) for key in list(logs) if key.startswith(f"{name}_")}
    rows = {"train": logs, **rows, **({"test": run.test} if run.test else {})}
    # What only training logs (a norm, a count) would make columns that are empty for every other row.
    shown = set(run.test) or set().union(*(rows[name] for name in run.study.evaluate)) or set(logs)
    return {name: {key: value for key, value in metrics.items() if key in shown} for name, metrics in rows.items()}


def _kept(workdir: pathlib.Path | None) -> str:
    if workdir is None:
        return "Nothing was kept: there was no --workdir."
    kept = [str(file) for file in (BEST_WEIGHTS, LAST_WEIGHTS, HISTORY) if (workdir / file).exists()]
    return f"Kept in {workdir}: {', '.join(kept)}." if kept else f"No epoch was finished, so {workdir} holds no weights."


def restore(workdir: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None) -> dict[str, Study]:
    """Builds the studies of a workdir again, each with its best weights.

    Args:
        workdir: what `train` wrote: the folder of a run, of a part of a comparison, or of a whole comparison.
        data_dir: see `research.data.datasets.load`.

    Returns:
        Name -> study: all parts of a comparison, or the one that the folder holds, by the name of its part or "".

    Raises:
        InputError: if it is no such folder, its study cannot be built any more, or it holds no weights.
    """
    folder = pathlib.Path(workdir)
    try:
        written = json.loads(_config_file(folder).read_text(encoding="utf-8"))
        config, seed = config_dict.ConfigDict(written["config"]), written["loop"]["seed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} is no workdir of scripts/train.py: its config.json cannot be read ({error}).") from error
    if "study" not in config:
        raise InputError(f"{_config_file(folder)} names no study: the run was not made by scripts/train.py.")
    part = config.get("part", None)
    if part is not None:
        del config["part"]
    elif "parts" not in written:
        _weights(folder)
    made = build(config, data_dir=data_dir, seed=seed)
    if isinstance(made, Study):
        _load(made, folder)
        return {"": made}
    names = [part] if part is not None else written["parts"]
    if missing := [name for name in names if name not in made.parts]:
        raise InputError(f"The comparison of {folder} has no part {missing[0]!r} any more; it has {', '.join(made.parts)}.")
    runs = _Restored(made, folder if part is None else folder.absolute().parent, seed)
    return {name: runs[name].study for name in names}


class _Restored(Mapping[str, Run]):
    """The runs of a comparison, each built when it is asked for, with its best weights but without its history."""

    def __init__(self, made: Comparison, folder: pathlib.Path, seed: int):
        self._made, self._folder, self._seed = made, folder, seed
        self._runs: dict[str, Run] = {}

    def __getitem__(self, name: str) -> Run:
        if name not in self._made.parts:
            raise KeyError(name)
        if name not in self._runs:
            study = self._made.make(name, self, seed=self._seed)
            _load(study, self._folder / name)
            self._runs[name] = Run(study, loops.TrainLoop(study.task, study.train), {})
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made.parts)

    def __len__(self) -> int:
        return len(self._made.parts)


def _weights(folder: pathlib.Path) -> pathlib.Path:
    for file in (BEST_WEIGHTS, LAST_WEIGHTS):
        if (folder / file).is_file():
            return folder / file
    raise InputError(f"There is no {folder / BEST_WEIGHTS}: the run has not finished an epoch.")


def _load(study: Study, folder: pathlib.Path) -> None:
    weights = _weights(folder)
    try:
        with warnings.catch_warnings():
            # The file holds the optimizer's state too, which is of no use to a model that is only to predict.
            warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
            study.model.load_weights(weights)
    except (OSError, ValueError) as error:
        raise InputError(f"{weights} does not hold the weights of this study's model ({str(error).splitlines()[0]}).") from error


def _config_file(folder: pathlib.Path) -> pathlib.Path:
    return folder / workdir.CONFIG


def _config_of(folder: pathlib.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_config_file(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
