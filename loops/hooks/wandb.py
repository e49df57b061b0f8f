"""Follows a run in Weights & Biases, through its public client."""

from __future__ import annotations

import contextlib
import inspect
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loops.hooks import _wandb_files
from loops.hooks._optional import needed
from loops.hooks._tracked_points import Point
from loops.hooks._tracker import Tracker
from loops.hooks._tracker_thread import Client, Ending
from loops.hooks.base import Loop
from loops.triggers import Trigger

__all__ = ["WandB"]

_OURS = ("config", "fork_from", "id", "reinit", "resume", "resume_from")  # arguments of `wandb.init` that the hook gives
_SECONDS_FOR_THE_FILE = 20.0


class WandB(Tracker):
    """Logs a run to Weights & Biases: its config, scalars, evaluations, pictures, best weights and outcome. For any task.

    | in W&B | what |
    |---|---|
    | config | the loop's `config`; W&B shows nested fields by names with dots |
    | `NAME`, `learning_rate`, `epoch` | the logs of each epoch, at the training step at which it ended |
    | `val_NAME` and so on | each evaluation, at the training step at which it was made; one after training is in the summary |
    | `batch/NAME` | with `every`: the mean over the steps since the last look, or the value of the epoch to date |
    | pictures | what `image` was given, at its step |
    | an artifact of the type `model` | the best file of each `hooks.ModelCheckpoint(save_best_only=True)`, when training ends |
    | files | those of the workdir's folder `plots`, and what `add_files` was given |
    | summary `outcome`, `reason` | how training ended |
    | state | finished, also if it was stopped early; preempted: interrupted, it can go on; failed |

    W&B's step is the training step. A run that was killed goes on in the same run of W&B, which then holds each point once: the hook asks
    W&B for its last step, or reads it from W&B's files if it is offline, and logs what is missing. A run that went on offline has several
    folders `wandb/offline-run-*`; give all of them to `wandb sync`, which joins them. A run that began offline and goes on online is whole
    without them. If W&B fails, the hook says so once, and tries again now and then; training goes on. After a rollback the points of the
    steps that were dropped stay.

    Args:
        project: name of the project; None: W&B's own setting (WANDB_PROJECT).
        every: log values of training steps at this cadence, such as "100 steps", too.
        mode: "online", "offline", or "disabled"; None: W&B's own setting (WANDB_MODE).
        weights: whether the best weights are kept as an artifact.
        timeout: seconds to wait at the end of training until all is logged.
        **arguments: further arguments of `wandb.init`, such as `entity`, `group`, `tags`. Without `dir`, W&B's files go into the workdir,
            and without `name` the run has the name of the workdir.

    Raises:
        ImportError: if W&B is not installed; the extra `wandb` brings it.
        TypeError, ValueError: for arguments that do not fit.

    Example:
        >>> from loops import hooks
        >>> hook = hooks.WandB("digits", every="100 steps", mode="offline")    # doctest: +SKIP
        >>> history = loops.fit(model, x, y, epochs=3, callbacks=[hook], workdir="runs/first")    # doctest: +SKIP
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        every: Trigger | str | None = None,
        mode: str | None = None,
        weights: bool = True,
        timeout: float = 300.0,
        **arguments: Any,
    ):
        super().__init__(every=every, weights=weights, timeout=timeout)
        if project is not None and (not isinstance(project, str) or not project.strip()):
            raise TypeError(f"WandB(project=...) takes the name of a project, or None; got {project!r}.")
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"WandB(mode=...) takes 'online', 'offline', 'disabled' or None; got {mode!r}.")
        if taken := sorted(set(arguments) & set(_OURS)):
            raise ValueError(f"WandB gives wandb.init the argument {taken[0]!r} itself, so that a killed run goes on; leave it out.")
        known = inspect.signature(needed("wandb", "WandB", "init").init).parameters
        if unknown := sorted(set(arguments) - set(known)):
            raise TypeError(f"WandB passes further arguments to wandb.init, which has no {unknown[0]!r}; it takes {', '.join(known)}.")
        self.project, self.mode, self.arguments = project, mode, arguments

    def client(self, loop: Loop, identity: str, pictures: pathlib.Path) -> Client:
        arguments = {**self.arguments, "project": self.project, "mode": self.mode}
        if loop.workdir is not None:
            arguments.setdefault("name", loop.workdir.absolute().name)
            if "WANDB_DIR" not in os.environ:
                arguments.setdefault("dir", str(loop.workdir.absolute()))
        return _Run(identity, arguments, _plain(loop.config), pictures)


class _Run:
    """A run of W&B.

    Args:
        identity: its id.
        arguments: of `wandb.init`.
        config: what W&B keeps as config.
        pictures: folder of the points' pictures.
    """

    def __init__(self, identity: str, arguments: Mapping[str, Any], config: Mapping[str, Any], pictures: pathlib.Path):
        self._identity, self._arguments, self._config, self._pictures = identity, dict(arguments), config, pictures
        self._run: Any = None
        self._next = 0  # the first step that W&B has not got

    def open(self) -> None:
        import wandb

        # The streams stay the program's, and so does the global run: the program may have one of its own.
        settings = wandb.Settings(console="off").model_copy(update=_given(self._arguments.get("settings")))
        arguments = {**self._arguments, "settings": settings}
        self._run = run = wandb.init(**arguments, id=self._identity, resume="allow", reinit="create_new")
        run.config.update(self._config, allow_val_change=True)
        # The step at which W&B goes on comes from its server; offline it is always 0.
        folder = pathlib.Path(run.settings.sync_dir)
        self._next = 1 + self._last_step_of_files(folder) if run.offline else run.step

    def send(self, points: Sequence[Point]) -> None:
        import wandb

        for point in points:
            if point.step >= self._next:
                pictures = {name: wandb.Image(str(self._pictures / file)) for name, file in point.pictures.items()}
                self._run.log({**point.values, **pictures}, step=point.step)

    def end(self, ending: Ending) -> None:
        import wandb

        run = self._run
        run.summary.update({**ending.results, "outcome": ending.outcome, "reason": ending.reason or ""})
        for path in ending.files:
            run.save(str(path), base_path=str(path.parent), policy="now")
        for path in ending.weights:
            artifact = wandb.Artifact(f"{self._identity}-{path.name.partition('.')[0]}", type="model")
            artifact.add_file(str(path))
            run.log_artifact(artifact)
        if ending.outcome == "interrupted":
            run.mark_preempting()
        run.finish(exit_code=0 if ending.outcome in ("finished", "stopped") else 1)
        if run.offline:
            self._wait_for_file(pathlib.Path(run.settings.sync_dir) / f"run-{self._identity}.wandb")

    def abandon(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            with contextlib.suppress(Exception):
                run.finish(exit_code=1)

    def _wait_for_file(self, path: pathlib.Path) -> None:
        """Waits for the last record of an offline run, which W&B's own process writes after `finish` has returned."""
        end = time.monotonic() + _SECONDS_FOR_THE_FILE
        while path.parent.exists() and not _wandb_files.is_complete(path):
            if time.monotonic() > end:
                raise TimeoutError(f"{path} was not completed within {_SECONDS_FOR_THE_FILE:g} seconds")
            time.sleep(0.02)

    def _last_step_of_files(self, folder: pathlib.Path) -> int:
        """The last step in the files of earlier processes."""
        last = -1
        for path in folder.parent.glob(f"*run-*-{self._identity}*/run-{self._identity}.wandb"):
            if path.parent == folder or (path.parent.name.startswith("offline-") and not _wandb_files.made_whole(path)):
                continue
            last = max(last, _wandb_files.last_step(path))
        return last


def _given(settings: Any) -> dict[str, Any]:
    """The settings that a user gave, as a dict or as `wandb.Settings`."""
    return dict(settings) if isinstance(settings, Mapping) else settings.model_dump(exclude_unset=True) if settings is not None else {}


def _plain(value: Any) -> Any:
    """A value of a config as W&B takes it: what JSON cannot hold becomes a text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
