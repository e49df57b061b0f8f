"""The distribution study: one device, several replicas in one process, and several processes train the same net to the same curves.

TensorFlow cannot have these strategies side by side in a process, so each of the others is a process (or several) of its own.
Config: `research/configs/distribution.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops.json_values import flattened
from research import run_folders
from research.pictures import plots
from research.report import metrics_table
from research.studies.classification import make_model
from research.study import InputError, Run, Study
from research.supervised import classifier, load_classes, supervised_study

__all__ = ["Trained", "build", "commands", "compared", "start"]

_SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
_LAST_WEIGHTS = pathlib.Path("checkpoints", "last.weights.h5")
_ONE = "one device"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is compared of a run.

    Attributes:
        curves: name of a metric -> values by epoch.
        weights: those of the last epoch.
        steps_per_second: over the whole run, evaluations and hooks included; None if that is unknown.
    """

    curves: Mapping[str, Sequence[float]]
    weights: Sequence[np.ndarray]
    steps_per_second: float | None


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`. Without a strategy it also trains with the others, and compares.

    Raises:
        InputError: for data without classes, sizes that fit no model or batch, less than two copies, or another dtype.
    """
    if config.copies < 2:
        raise InputError(f"config.copies is {config.copies}; compare with 2 copies or more.")
    if config.dtype not in ("float32", "float64"):
        raise InputError(f"config.dtype is {config.dtype!r}; it is float32 or float64.")
    data = load_classes(config, data_dir)

    def task() -> loops.Task:
        with _floatx(config.dtype):
            return classifier(make_model(data.train.x.shape[1:], len(data.class_names), hidden=config.hidden), config.optimizer)

    return supervised_study(
        data,
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        title=f"{config.dataset}, {config.optimizer.name}",
        description=f"{data.description} Inputs: {config.normalize}.",
        monitor=None,  # the weights of the last epoch, as they are compared
        after=None if strategy is not None else lambda run: _compare(run, config, data_dir, seed),
        preprocessing=data.scaling,
    )


@contextlib.contextmanager
def _floatx(dtype: str) -> Iterator[None]:
    """In its block Keras makes weights, losses and metrics of this dtype."""
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def commands(config: Any, *, data_dir: str | os.PathLike[str] | None, seed: int, compile: str = "graph") -> dict[str, list[str]]:
    """The command lines of the other runs, without their workdirs, by name.

    Args:
        config: the study's.
        data_dir, seed: as for `build`.
        compile: how their steps are compiled.
    """
    fields = flattened(config.to_dict())
    train = [str(_SCRIPTS / "train.py"), f"--config={config.study}", f"--seed={seed}", f"--compile={compile}"]
    train += [f"--config.{name}={value}" for name, value in fields.items() if name != "study"]
    if data_dir is not None:
        train.append(f"--data_dir={data_dir}")
    return {
        f"{config.copies} replicas": [*train, "--strategy=mirrored", f"--logical_cpus={config.copies}"],
        f"{config.copies} workers": [str(_SCRIPTS / "launch.py"), f"--workers={config.copies}", *train, "--strategy=multi_worker"],
    }


def start(command: Sequence[str]) -> int:
    """Runs a program to its end, whose lines go where this one's go; returns its exit code."""
    environment = dict(os.environ)
    if environment.get("TF_CPP_MIN_LOG_LEVEL") == "2":  # this process's own doing; the other shall keep its start quiet by itself
        del environment["TF_CPP_MIN_LOG_LEVEL"]
    process = subprocess.Popen([sys.executable, *command], env=environment)
    try:
        return process.wait()
    except BaseException:
        # A terminal's Ctrl-C has reached it too: it saves and ends.
        process.terminate()
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
        raise


def compared(runs: Mapping[str, Trained]) -> dict[str, dict[str, float]]:
    """For each run how far it is from the first: the largest differences of curves and weights.

    Args:
        runs: at least one.

    Returns:
        A row for `research.report.metrics_table` for each run.
    """
    first = next(iter(runs.values()))
    rows = {}
    for name, run in runs.items():
        row = {f"last {metric}": values[-1] for metric, values in run.curves.items()}
        for metric in ("loss", "val_loss"):
            row[f"{metric} apart"] = float(np.max(np.abs(np.subtract(run.curves[metric], first.curves[metric]))))
        row["a weight apart"] = _apart(run.weights, first.weights)
        if run.steps_per_second is not None:
            row["steps/s"] = run.steps_per_second
        rows[name] = row
    return rows


def _compare(run: Run, config: Any, data_dir: str | os.PathLike[str] | None, seed: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        folder = run.workdir or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {_ONE: _of_run(run)}
        for name, command in commands(config, data_dir=data_dir, seed=seed).items():
            workdir = folder / name.replace(" ", "_")
            print(f"\n{name}, in processes of their own\n", flush=True)
            if code := start([*command, f"--workdir={workdir}"]):
                raise InputError(f"The run with {name} ended with code {code}. The same command goes on from there.")
            runs[name] = _of_folder(workdir, run.study.model)
    replicas, workers = list(runs)[1:]
    one = f"loss, {_ONE}"
    curves = {f"{metric}, {name}": trained.curves[metric] for metric in ("loss", "val_loss") for name, trained in runs.items()}
    run.picture("curves", plots.lines(curves, y="loss", title=f"{run.study.title}: three ways, {config.epochs} epochs"))
    least = np.finfo(np.float32).eps  # of which a logarithm can be drawn
    differences = {name: least + np.abs(np.subtract(curves[f"loss, {name}"], curves[one])) for name in (replicas, workers)}
    run.picture("differences", plots.lines(differences, y="difference of the training loss from one device", log=True))
    apart = _apart(runs[replicas].weights, runs[workers].weights)
    same = "the same bits" if apart == 0 else f"at most {apart:.2g} apart"
    return [
        f"How far apart from one device they are at most, over all {config.epochs} epochs:",
        metrics_table(compared(runs)),
        "",
        f"The weights of {replicas} and {workers} are {same}.",
    ]


def _of_run(run: Run) -> Trained:
    progress = run.loop.progress
    rate = progress.step / progress.seconds if progress.seconds else None
    return Trained(_curves(run.history.history), run.study.model.get_weights(), rate)


def _of_folder(workdir: pathlib.Path, like: keras.Model) -> Trained:
    read = run_folders.read(workdir)
    if read is None:
        raise InputError(f"{workdir} is no workdir of a run: delete it, and start again.")
    model = keras.models.clone_model(like)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        model.load_weights(workdir / _LAST_WEIGHTS)
    return Trained(_curves({name: values for name, (_, values) in read.history.items()}), model.get_weights(), read.steps_per_second)


def _curves(history: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    return {name: history[name] for name in ("loss", "val_loss", "val_accuracy")}


def _apart(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    return max(float(np.max(np.abs(a - b))) for a, b in zip(one, other, strict=True))
