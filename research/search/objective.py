"""Trains a trial: the config with the trial's values, in the trial's folder, given up where Optuna says so."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from loops import hooks
from research import runner
from research.search.trials import STORAGE_ERRORS, Trial
from research.study import InputError, Study, build

__all__ = ["NoSuchMetric", "Objective", "Unusable"]


class Unusable(ValueError):
    """A trial that cannot be judged. The message says why."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What trials are judged by, and how they are trained.

    Attributes:
        config: the config that trials change.
        metrics: names in the logs; a value is that of the epoch whose weights are kept.
        data_dir, compile, seed: as in `scripts/train.py`.
        logs: folder for what trials print.
    """

    config: Any
    metrics: Sequence[str]
    data_dir: str | None
    compile: str
    seed: int
    logs: pathlib.Path

    def study(self, config: Any) -> Study:
        """The study of a config.

        Raises:
            InputError: if it is a comparison, or cannot be built.
        """
        made = build(config, data_dir=self.data_dir, seed=self.seed)
        if not isinstance(made, Study):
            raise InputError(f"config.study {config.study!r} compares several runs; a search takes a study that is one run.")
        return made

    def default(self, folder: pathlib.Path) -> dict[str, Any]:
        """Trains the config as it is; returns its values and what was noted of them.

        Raises:
            InputError: if no trial can be judged in this way.
            Unusable, runner.Failed: if it does not train.
            runner.Interrupted: after Ctrl-C.
        """
        values, notes = self._train(self.config, folder, ())
        return {"values": values, **notes}

    def __call__(self, trial: Trial, config: Any) -> None:
        """Trains a trial, and tells Optuna what became of it.

        Args:
            trial: the trial.
            config: the config with its values.

        Raises:
            InputError: if no trial can be judged in this way.
            runner.Interrupted: after Ctrl-C; the trial goes on the next time, as it does after one of `STORAGE_ERRORS`.
        """
        report = hooks.Report(trial.report, self.metrics[0]) if len(self.metrics) == 1 else None
        try:
            values, notes = self._train(config, trial.folder, [report] if report is not None else [])
        except (runner.Interrupted, NoSuchMetric, *STORAGE_ERRORS) as error:
            if isinstance(error, NoSuchMetric):
                trial.failed(str(error))
            raise
        except Exception as error:  # whatever it was, other points may do better
            known = isinstance(error, InputError | Unusable | runner.Failed)
            trial.failed(str(error) if known else f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            return
        if report is not None and report.told_to_stop:
            trial.pruned(**notes)
        else:
            trial.completed(values, **notes)

    def _train(self, config: Any, folder: pathlib.Path, extra: Sequence[Any]) -> tuple[list[float], dict[str, Any]]:
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(self.logs / f"{folder.name}.txt", "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            run = runner.train(self.study(config), config, workdir=folder, compile=self.compile, seed=self.seed, extra_hooks=extra)
        assert not isinstance(run, dict)
        missing = [name for name in self.metrics if name not in run.history.history]
        if missing:
            known = ", ".join(run.history.history)
            raise NoSuchMetric(f"No epoch has logged {missing[0]!r}, by which trials are to be judged; there are {known}.")
        values = [float(run.logs.get(name, math.nan)) for name in self.metrics]
        if not all(map(math.isfinite, values)):
            raise Unusable(f"{self.metrics[0]} is {values[0]} in the epoch that was kept")
        notes = {"test": {name: float(value) for name, value in run.test.items()}, "steps": run.loop.progress.step}
        return values, {**notes, "epochs": len(run.history.epoch)}


class NoSuchMetric(InputError):
    """No trial will have it."""
