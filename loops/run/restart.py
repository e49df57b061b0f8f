"""The beginning of a run: from nothing, or from the last snapshot in its workdir. Settings that would change the results are refused.

find the last snapshot, compare the settings            SavedStates.open
call `on_train_begin` of every hook
choose the first program, open the execution            only once
trace, restore variables, hooks, logs, position         if there was a snapshot
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from loops.choices import Compile
from loops.engine.execution import Execution
from loops.errors import SaveError
from loops.graphs import hidden_random_state
from loops.messages import say, warn
from loops.run import resume_rules, run_state
from loops.run.parts import RunParts
from loops.run.run_state import RunState
from loops.run.saved_states import SavedStates
from loops.tasks.replicas import local_variables
from loops.tasks.run_variables import flat, name_of, note_on_other_state
from loops.tasks.tracking import apply_flags

__all__ = ["Restart", "Settings"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Arguments of a loop that decide the bits of its run and are not kept in `RunParts`.

    Attributes:
        compile, seed, clip, strategy: as given to `loops.TrainLoop`.
        config: settings to keep in `config.json` beside those of the loop.
    """

    compile: Compile
    seed: int
    clip: Any
    strategy: tf.distribute.Strategy
    config: Mapping[str, Any]


class Restart:
    """Begins the runs of a loop.

    Args:
        parts: the run.
        saved: its saved states.
        settings: what the loop was given.
    """

    def __init__(self, parts: RunParts, saved: SavedStates, settings: Settings):
        self._parts, self._saved, self._settings = parts, saved, settings

    def prepare(self) -> None:
        """Does everything that comes before the first step. If the first run fails here, all is undone, so that `run` can be called again.

        Raises:
            ValueError: if the run in the workdir cannot be carried on, or would not be exactly resumable.
        """
        first = not self._parts.step.is_open
        try:
            self._begin()
        except BaseException:
            if first:
                self._parts.step.open(None)
                self._saved.forget()
            raise

    def check_targets(self, epochs: int | None, steps: int | None) -> None:
        """Checks the targets given to `loop.run`.

        Raises:
            ValueError: if there is none, or one is not a whole number, or an epoch would never end.
        """
        for name, value in (("epochs", epochs), ("steps", steps)):
            whole = isinstance(value, (int, float, np.integer)) and not isinstance(value, bool) and int(value) == value
            if value is not None and (not whole or value < 0):
                raise ValueError(f"`{name}` must be a whole number, 0 or more; got {value!r}.")
        if epochs is None and steps is None:
            raise ValueError("Say how far to train: run(epochs=...) or run(steps=...).")
        self._parts.feeds.check_that_epochs_end(steps)

    def save_between_runs(self) -> None:
        """Saves the state between two calls of `run`.

        Raises:
            RuntimeError: before the first run.
            SaveError: if it cannot be saved.
        """
        if not self._parts.step.is_open:
            raise RuntimeError("There is nothing to save before the first run.")
        try:
            self._open_workdir()
            self._saved.write(self._parts, on_disk=True)
        finally:
            failure = self._saved.close(self._parts, None)
        if failure is not None:
            raise SaveError(failure)

    def _open_workdir(self) -> tuple[RunState, pathlib.Path | None] | None:
        """Locks the workdir and finds the state to go on from; see `SavedStates.open`."""
        return self._saved.open(self._settings_at_start)

    def _begin(self) -> None:
        parts, policy = self._parts, self._parts.on_nonfinite
        parts.requests.end_epoch, parts.requests.save, parts.requests.rollback = False, False, None
        self._saved.failures.clear()
        self._check_workers()
        found = self._open_workdir()
        saved = found[0] if found is not None else None
        if saved is not None:
            parts.step.mode = saved.state["made"]["mode"]
            parts.progress.load_state_dict(saved.state["progress"])
            parts.task.load_state_dict(saved.state["task"])  # before variables are looked at: the task may make other models
            apply_flags(parts.task.tracked, saved.state["trainable"])
            if not any(_is_users(hook.on_train_begin) for hook in parts.loop.hooks):
                self._saved.check_model(parts.task, saved)
        parts.feeds.begin()
        parts.task.follow(parts.progress)
        for hook in parts.loop.hooks:
            hook.on_train_begin(parts.loop)
        if saved is not None:
            self._saved.check_model(parts.task, saved)
        if policy.learning_rate_factor != 1.0:
            parts.rates.make_scalable()
        if saved is not None:
            parts.rates.load_state_dict(saved.state["learning_rates"])
            self._saved.load_feed(parts, saved, found[1] if found is not None else None)
        if parts.step.is_open:
            parts.step.run_begins_again()
            parts.execution.run_begins()
        else:
            self._open_execution(found)
        if saved is not None:
            self._restore(saved)
        if parts.step.graph is not None and parts.step.mode != "eager":
            parts.step.remember_constants()  # already traced, so changes by hooks from here on have to be noticed
        parts.hooks.start(parts.progress.step, parts.agreed_now())
        if parts.steps_per_epoch is not None or parts.feed.steps_per_epoch is not None:
            parts.progress.steps_per_epoch = parts.steps_per_epoch or parts.feed.steps_per_epoch
        if self._saved.keeps_good and saved is None:
            parts.step.create_variables()
            self._saved.keep(parts, on_disk=False)

    def _check_workers(self) -> None:
        """Checks that several worker processes run the same thing, and agrees on the time.

        Raises:
            MismatchError: if not.
        """
        parts, cluster = self._parts, self._parts.agreement.cluster
        if not cluster.several:
            return
        variables = {name_of(v): [list(v.shape), v.dtype.name] for v in local_variables(parts.task.tracked.model_variables())}
        cluster.check_same(
            {
                **self._settings_at_start(),
                "compile": self._settings.compile,
                "epochs": parts.loop.epochs,
                "steps": parts.loop.steps,
                "workdir": self._saved.workdir is not None,
                "hooks": parts.all_hooks,
                "variables": variables,
                "step": parts.progress.step,
            }
        )
        parts.agreement.refresh()

    def _open_execution(self, found: tuple[RunState, pathlib.Path | None] | None) -> None:
        parts, guarded = self._parts, self._parts.on_nonfinite.action != "ignore"
        with parts.accounts.of("compile"):
            program = parts.step.first_program(parts.feed, steps=self._length(), saved=self._saved.workdir is not None, guarded=guarded)
        execution = Execution(
            program,
            parts.feed,
            parts.progress,
            guarded=guarded,
            continuing=parts.steps_per_epoch is not None,
            resume=found[1:] if found is not None else None,
            clock=parts.now,
            accounts=parts.accounts,
            agreement=parts.agreement,
        )
        parts.step.open(execution)
        if found is None:
            assert parts.step.mode is not None
            self._saved.begin(parts.step.mode, self._config)
        self._check_resumable()

    def _length(self) -> int | None:
        """The length of the run in steps, earlier steps included; None if that is unknown."""
        loop = self._parts.loop
        by_epochs = None if loop.epochs is None else self._parts.feeds.steps_in(loop.epochs)
        return min((n for n in (loop.steps, by_epochs) if n is not None), default=None)

    def _check_resumable(self) -> None:
        """Refuses or names, before training, what would make a resumed run differ from an undisturbed one."""
        parts = self._parts
        if self._saved.workdir is None:
            return
        for finding in parts.feed.findings():
            warn(f"Note on the data: {finding}")
        if parts.step.mode == "eager":
            parts.execution.step.used.refusal = hidden_random_state.REFUSAL_OF_EAGER
        else:
            parts.execution.build()
            if parts.step.graph is not None and (found := hidden_random_state.stateful_random_ops(parts.step.graph)):
                raise ValueError(hidden_random_state.refusal(found))
        variables = flat(parts.execution.program.variables())
        if (note := note_on_other_state(parts.task, parts.step.graph, variables)) is not None:
            warn(f"Note: {note}")

    def _restore(self, saved: RunState) -> None:
        parts = self._parts
        # If the models are not built yet, tracing builds them, and `restore` does this.
        if run_state.build_optimizers(parts.task, saved) and parts.step.graph is not None:
            parts.step.retrace(run_state.BUILT)
        parts.step.trace()
        parts.step.set_flags(saved.state["trainable"])
        self._saved.restore(parts, saved)
        if parts.target_reached() or parts.stop_reason is not None:
            reason = parts.stop_reason or f"{parts.progress.step:,} steps, {len(parts.loop.history.epoch)} epochs"
            say(f"The run is complete ({reason}); there is nothing to do.")

    def _settings_at_start(self) -> dict[str, Any]:
        """The settings that decide the bits of the run, besides the model's variables."""
        parts, settings = self._parts, self._settings
        described = {
            "seed": settings.seed,
            "steps_per_epoch": parts.steps_per_epoch,
            "replicas": settings.strategy.num_replicas_in_sync,
            "workers": parts.agreement.cluster.count,
            "mode": parts.step.mode,
            "task": type(parts.task).__name__,
            "clip": None if settings.clip is None else re.sub(r" at 0x[0-9a-f]+", "", repr(settings.clip)),
            "on_nonfinite": dataclasses.asdict(parts.on_nonfinite),
            "config": settings.config,
        }
        return resume_rules.description(described, parts.feeds.describe(), resume_rules.optimizers_of(parts.task.optimizers))

    def _config(self, at_start: dict[str, Any]) -> dict[str, Any]:
        """The content of `config.json`."""
        loop = {name: value for name, value in at_start.items() if name not in ("config", "versions")}
        why = {"why_mode": self._parts.step.why_mode} if self._parts.step.why_mode else {}
        return {"loop": {"compile": self._settings.compile, **why, **loop}, "config": self._settings.config}


def _is_users(method: Any) -> bool:
    """Whether a method of a hook is not ours: it may make other models then."""
    return not getattr(method, "__module__", "").startswith(f"{Restart.__module__.split('.')[0]}.")
