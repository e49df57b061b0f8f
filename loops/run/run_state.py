"""The state of a run: gathers everything that decides its future into arrays and JSON, and restores it.

    arrays   model/3, optimizer/0, metric/1, captured/0   variables, one entry for each replica where values may differ
             trace/rows/0, trace/totals                   rows that hooks have not seen yet, and sums of the epoch to date
             hooks/<name>/<key>                           arrays that hooks keep
    state    progress, feed, learning rates, hooks, logs of the epoch, last looks, stop decision, non-finite counts, task

It knows neither files (`snapshots/`) nor what may differ between two runs (`resume_rules.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops.errors import MismatchError
from loops.run.parts import RunParts
from loops.tasks.base import Task
from loops.tasks.optimizer_slots import build_as, built_for
from loops.tasks.replicas import local_variables
from loops.tasks.run_variables import CAPTURED, Identity, identities, name_of, partners
from loops.tasks.tracking import apply_flags, flags_of

__all__ = ["RunState", "build_optimizers", "check_model", "gather", "restore", "select"]


BUILT = "the optimizers are built for the variables of the restored state"


@dataclasses.dataclass(frozen=True)
class RunState:
    """A run at one instant, on the host.

    Attributes:
        step: completed steps.
        arrays: name -> array.
        state: JSON-able.
    """

    step: int
    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]


def gather(parts: RunParts) -> RunState:
    """Copies the state to the host. Call it at a boundary, after all hooks have acted."""
    parts.step.trace_if_missing()
    tracked = parts.task.tracked
    arrays, names = gather_variables(parts.execution.program.variables(), *parts.execution.step.used.waiting)
    trace, described = parts.execution.trace.state()
    arrays.update((f"trace/{name}", array) for name, array in trace.items())
    hooks: dict[str, Any] = {}
    for hook in parts.hooks:
        hooks[hook.name] = hook.state_dict()
        arrays.update((f"hooks/{hook.name}/{key}", array) for key, array in hook.state_arrays().items())
    state = {
        "progress": parts.progress.state_dict(),
        "variables": names,
        "trainable": flags_of(tracked),
        "slots": {"of": len(tracked.model_variables()), "built_for": built_for(tracked.optimizers, tracked.model_variables())},
        "learning_rates": parts.rates.state_dict(),
        "trace": described,
        "metrics": _places(parts.execution.metrics, parts.task),
        "logs": parts.logs.state_dict(),
        "looks": parts.hooks.state_dict(parts.agreed_now()),
        "hooks": hooks,
        "decisions": dict(parts.decisions),
        "replaced": parts.step.replaced,
        "task": parts.task.state_dict(),
    }
    return RunState(parts.progress.step, arrays, state)


def restore(parts: RunParts, saved: RunState) -> None:
    """Restores a state, but for that of the task itself (`Task.load_state_dict`), which comes before: it may make other models.

    Raises:
        MismatchError: if the variables do not fit; then no variable was changed.
    """
    arrays, state = saved.arrays, saved.state
    if build_optimizers(parts.task, saved) and parts.step.graph is not None:
        parts.step.retrace(BUILT)
    parts.step.trace_if_missing()
    _create_what_is_missing(parts, state["variables"], state["trainable"])
    groups = parts.execution.program.variables()
    if parts.step.mode == "eager":
        restore_variables({**groups, CAPTURED: []}, arrays, {**state["variables"], CAPTURED: []})
        captured = _saved_identities(CAPTURED, arrays, state["variables"])
        values = [arrays[f"{CAPTURED}/{i}"] for i in range(len(captured))]
        parts.execution.step.used.restore(captured, values)
    else:
        restore_variables(groups, arrays, state["variables"])
    parts.rates.load_state_dict(state["learning_rates"])
    parts.progress.load_state_dict(state["progress"])  # the feed stands there already
    parts.execution.load_trace(select(arrays, "trace/"), state["trace"])
    metrics = parts.task.tracked.metrics
    parts.execution.metrics = {name: metrics[place] for name, place in state["metrics"].items()}
    parts.logs.load_state_dict(state["logs"])
    parts.hooks.load_state_dict(state["looks"], parts.agreed_now())
    parts.decisions.update(state["decisions"])
    parts.step.replaced |= state["replaced"]
    for hook in parts.hooks:
        if hook.name in state["hooks"]:
            hook.load_state_dict(state["hooks"][hook.name])
            if kept := select(arrays, f"hooks/{hook.name}/"):
                hook.load_state_arrays(kept)


def build_optimizers(task: Task, saved: RunState) -> bool:
    """Builds optimizers for the variables of a state, as far as the models are built; returns whether that changed something."""
    tracked, slots = task.tracked, saved.state["slots"]
    variables = tracked.model_variables()
    return len(variables) == slots["of"] and build_as(tracked.optimizers, variables, slots["built_for"])


def _places(metrics: Mapping[str, Any], task: Task) -> dict[str, int]:
    """The place of each metric among those of the task, by the name under which steps of the epoch to date returned it."""
    places = {id(metric): i for i, metric in enumerate(task.tracked.metrics)}
    return {name: places[id(metric)] for name, metric in metrics.items() if id(metric) in places}


def _create_what_is_missing(parts: RunParts, names: Mapping[str, list[str]], flags: Mapping[str, list[bool]]) -> None:
    """Traces an eager step if variables that were found by attribute when the state was saved do not exist yet: the first step makes them.

    Raises:
        MismatchError: if that is not possible.
    """
    groups = parts.execution.program.variables()
    short = [group for group in groups if group != CAPTURED and len(local_variables(groups[group])) < len(names[group])]
    if parts.step.mode != "eager" or not short:
        return
    try:
        parts.execution.build()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MismatchError(
            f"some {short[0]} variables do not exist before the first eager step, and the step cannot be traced to make them ({reason}); "
            "build models and optimizers and make variables before the loop runs"
        ) from error
    apply_flags(parts.task.tracked, flags)


def gather_variables(
    groups: Mapping[str, Sequence[Any]], waiting: Sequence[Identity] = (), values: Sequence[np.ndarray] = ()
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Copies of all values, as "<group>/<i>", and the names of the variables by group.

    Args:
        groups: the variables.
        waiting: captured variables of an earlier process that this one has not used yet.
        values: their values.
    """
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    for group, variables in groups.items():
        plain = local_variables(variables)
        names[group] = [name_of(v) for v in plain]
        arrays.update((f"{group}/{i}", np.asarray(v.numpy())) for i, v in enumerate(plain))
    for (name, *_), value in zip(waiting, values, strict=True):
        arrays[f"{CAPTURED}/{len(names[CAPTURED])}"] = value
        names[CAPTURED].append(name)
    return arrays, names


def restore_variables(groups: Mapping[str, Sequence[Any]], arrays: Mapping[str, np.ndarray], names: Mapping[str, list[str]]) -> None:
    """Checks that everything fits, then assigns what `gather_variables` copied.

    Raises:
        MismatchError: if number, shape or type of the variables differ; then nothing was assigned.
    """
    plain = {group: local_variables(variables) for group, variables in groups.items()}
    captured = plain.pop(CAPTURED)
    for group, variables in plain.items():
        _check_group(group, variables, arrays, names.get(group, []))
    places = partners(_saved_identities(CAPTURED, arrays, names), identities(captured))
    for group, variables in plain.items():
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"{group}/{i}"])
    for variable, place in zip(captured, places, strict=True):
        variable.assign(arrays[f"{CAPTURED}/{place}"])


def _saved_identities(group: str, arrays: Mapping[str, np.ndarray], names: Mapping[str, list[str]]) -> list[Identity]:
    saved = [(name, arrays[f"{group}/{i}"]) for i, name in enumerate(names[group])]
    return [(name, value.shape, tf.as_dtype(value.dtype).name) for name, value in saved]


def check_model(task: Task, saved: RunState) -> None:
    """Checks that a built model fits a state. What is built by the first step is checked when the state is restored.

    Raises:
        MismatchError: if it does not fit.
    """
    variables, names = local_variables(task.tracked.model_variables()), saved.state["variables"]["model"]
    if all(getattr(layer, "built", True) for layer in task.models) and len(variables) >= len(names):
        _check_group("model", variables, saved.arrays, names)


def _check_group(group: str, variables: Sequence[Any], arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    for i, (variable, name) in enumerate(zip(variables, names, strict=False)):
        value = arrays[f"{group}/{i}"]
        here = f"{list(variable.shape)} {variable.dtype.name}"
        there = f"{list(value.shape)} {tf.as_dtype(value.dtype).name}"
        if here != there:
            raise MismatchError(f"the {group} variable {name_of(variable)} is {here} now and was {there} ({name} in the snapshot)")
    if len(variables) != len(names):
        longer = [name_of(v) for v in variables] if len(variables) > len(names) else list(names)
        raise MismatchError(
            f"there are {len(variables)} {group} variables now and were {len(names)}; "
            f"the first without a partner is {longer[min(len(variables), len(names))]}"
        )


def select(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names begin with `prefix`, without the prefix."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
