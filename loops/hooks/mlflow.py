"""Follows a run in MLflow, through its public client."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from loops import json_values
from loops.hooks._optional import needed
from loops.hooks._tracked_points import Point
from loops.hooks._tracker import Tracker
from loops.hooks._tracker_thread import Client, Ending
from loops.hooks.base import Loop
from loops.triggers import Trigger

__all__ = ["MLflow"]

_IDENTITY = "tapeloops.run"  # tag by which a run is found again
_MOST_METRICS, _MOST_PARAMS, _LONGEST_PARAM = 1000, 100, 6000  # of one call, by MLflow's limits
_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}


class MLflow(Tracker):
    """Logs a run to MLflow: its config, scalars, evaluations, pictures, best weights and outcome. For any task.

    | in MLflow | what |
    |---|---|
    | parameters | the loop's `config`, by names with dots between nested fields |
    | tags `config.NAME` | what a resumed run has changed in it, as MLflow's parameters cannot be changed |
    | metrics `NAME`, `learning_rate`, `epoch` | the logs of each epoch, at the training step at which it ended |
    | metrics `val_NAME` and so on | each evaluation, at the training step at which it was made |
    | metrics `batch/NAME` | with `every`: the mean over the steps since the last look, or the value of the epoch to date |
    | artifacts `weights/` | the best file of each `hooks.ModelCheckpoint(save_best_only=True)`, when training ends |
    | artifacts `pictures/` | what `image` was given, and files of the workdir's folder `plots` |
    | status, tags `outcome`, `reason` | FINISHED, also if it was stopped early; KILLED: interrupted, it can go on; FAILED |

    A run that was killed goes on in the same run of MLflow, which then holds each point once: the hook asks MLflow for the last step of
    each metric, and logs what is missing. Points are logged in a thread. If the server fails, the hook says so once, and tries again now
    and then; training goes on. After a rollback the points of the steps that were dropped stay.

    Args:
        experiment: name of the experiment, which is made if there is none.
        tracking_uri: a server ("http://..."), or a local store ("sqlite:///mlflow.db"); None: MLflow's own setting (MLFLOW_TRACKING_URI).
        every: log values of training steps at this cadence, such as "100 steps", too.
        name: the run's name; None: that of the workdir, or one that MLflow makes up.
        tags: further tags of the run.
        weights: whether the best weights are kept as an artifact.
        timeout: seconds to wait at the end of training until all is logged.

    Raises:
        ImportError: if MLflow is not installed; the extra `mlflow` brings it.
        TypeError, ValueError: for arguments that do not fit.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.MLflow("digits", tracking_uri="sqlite:///mlflow.db", every="100 steps")    # doctest: +SKIP
        >>> history = loops.fit(model, x, y, epochs=3, callbacks=[hook], workdir="runs/first")    # doctest: +SKIP
    """

    def __init__(
        self,
        experiment: str = "Default",
        *,
        tracking_uri: str | os.PathLike[str] | None = None,
        every: Trigger | str | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        weights: bool = True,
        timeout: float = 300.0,
    ):
        super().__init__(every=every, weights=weights, timeout=timeout)
        if not isinstance(experiment, str) or not experiment.strip():
            raise TypeError(f"MLflow(experiment=...) takes the name of an experiment; got {experiment!r}.")
        if tags is not None and not isinstance(tags, Mapping):
            raise TypeError(f"MLflow(tags=...) takes a mapping of names to texts; got {tags!r}.")
        needed("mlflow", "MLflow", "MlflowClient")
        self.experiment, self.tracking_uri = experiment, None if tracking_uri is None else os.fspath(tracking_uri)
        self.run_name, self.tags = name, dict(tags or {})

    def client(self, loop: Loop, identity: str, pictures: pathlib.Path) -> Client:
        name = self.run_name or (loop.workdir.name if loop.workdir is not None else None)
        return _Run(self, dict(loop.config), {**self.tags, _IDENTITY: identity}, name, pictures)


class _Run:
    """A run of MLflow.

    Args:
        hook: where and how to log.
        config: the loop's config.
        tags: tags of the run, with the one by which it is found again.
        name: its name, or None.
        pictures: folder of the points' pictures.
    """

    def __init__(self, hook: MLflow, config: Mapping[str, Any], tags: Mapping[str, str], name: str | None, pictures: pathlib.Path):
        self._hook, self._config, self._tags, self._name, self._pictures = hook, config, dict(tags), name, pictures
        self._last: dict[str, int] = {}  # metric -> last step that is logged
        self._found = False

    def open(self) -> None:
        import mlflow

        self._entities = mlflow.entities
        self._client = client = mlflow.MlflowClient(tracking_uri=self._hook.tracking_uri)
        experiment = client.get_experiment_by_name(self._hook.experiment)
        where = experiment.experiment_id if experiment is not None else client.create_experiment(self._hook.experiment)
        found = client.search_runs([where], filter_string=f"tags.`{_IDENTITY}` = '{self._tags[_IDENTITY]}'", max_results=1)
        self._found, self._last = bool(found), {}
        run = found[0] if found else client.create_run(where, tags=self._tags, run_name=self._name)
        self._id = run.info.run_id
        if found:
            client.update_run(self._id, status="RUNNING")
        self._log_config(run.data.params)

    def send(self, points: Sequence[Point]) -> None:
        metrics = []
        for point in points:
            for given, value in point.values.items():
                name = _allowed(given)
                if point.step > self._last_step(name):
                    metrics.append(self._entities.Metric(name, value, int(point.time * 1000), point.step))
                    self._last[name] = point.step
            for name, file in point.pictures.items():
                self._client.log_artifact(self._id, str(self._pictures / file), f"pictures/{_allowed(name)}")
        for i in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[i : i + _MOST_METRICS])

    def end(self, ending: Ending) -> None:
        self.send([Point(ending.step, ending.time, dict(ending.results))])
        for folder, paths in (("weights", ending.weights), ("pictures", ending.files)):
            for path in paths:
                self._client.log_artifact(self._id, str(path), folder)
        self._client.set_tag(self._id, "outcome", ending.outcome)
        self._client.set_tag(self._id, "reason", ending.reason or "")
        self._client.set_terminated(self._id, _STATUS.get(ending.outcome, "FAILED"))

    def abandon(self) -> None:
        self._last = {}

    def _last_step(self, name: str) -> int:
        if name not in self._last:
            # Points of a metric are logged in the order of their steps, so what is there is all up to its last one.
            history = self._client.get_metric_history(self._id, name) if self._found else []
            self._last[name] = max((metric.step for metric in history), default=-1)
        return self._last[name]

    def _log_config(self, known: Mapping[str, str]) -> None:
        given = {_allowed(name): str(value)[:_LONGEST_PARAM] for name, value in json_values.flattened(self._config).items()}
        new = [self._entities.Param(name, value) for name, value in given.items() if name not in known]
        for i in range(0, len(new), _MOST_PARAMS):
            self._client.log_batch(self._id, params=new[i : i + _MOST_PARAMS])
        for name, value in given.items():
            if known.get(name, value) != value:  # parameters cannot be changed
                self._client.set_tag(self._id, f"config.{name}", value)


def _allowed(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. /]", "_", name)
