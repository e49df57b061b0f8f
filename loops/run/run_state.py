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
from loops.tasks.tracking import flags_of

__all__ = ["RunState", "build_optimizers", "check_model", "gather", "restore", "select"]


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
    arrays, names = gather_variables(variables_of(parts.task, parts.step.graph))
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
        "logs": parts.logs.state_dict(),
        "looks": parts.hooks.state_dict(parts.now()),
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
        parts.step.retrace("the optimizers are built for the variables of the restored state")
    parts.step.trace_if_missing()
    groups = variables_of(parts.task, parts.step.graph)
    restore_variables(groups, arrays, state["variables"])
    parts.rates.load_state_dict(state["learning_rates"])
    parts.progress.load_state_dict(state["progress"])  # the feed stands there already
    parts.execution.load_trace(select(arrays, "trace/"), state["trace"])
    parts.logs.load_state_dict(state["logs"])
    parts.hooks.load_state_dict(state["looks"], parts.now())
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


def variables_of(task: Task, graph: tf.Graph | None) -> dict[str, list[Any]]:
    """The variables that a step may change: those of models, optimizers and metrics, and others that the traced step uses.

    Args:
        task: the task, with everything built.
        graph: the graph of its training step, or None before it is traced.

    Returns:
        group -> variables, in an order that is the same in every process that builds the same task.
    """
    tracked = task.tracked
    groups = {"model": tracked.model_variables(), "optimizer": tracked.optimizer_variables(), "metric": tracked.metric_variables()}
    known: set[int] = set()
    for name, variables in groups.items():
        groups[name] = [v for v in variables if id(v) not in known]
        known |= {id(v) for v in variables}
    local = {id(v) for variables in groups.values() for v in local_variables(variables)}
    used = _variables_in_order_of_use(graph) if graph is not None else []
    # Variables that the step uses and that no attribute of the task leads to, such as Keras's global seed generator.
    groups["captured"] = [v for v in used if id(v) not in local]
    return groups


def _variables_in_order_of_use(graph: tf.Graph) -> list[tf.Variable]:
    """The plain variables of a traced graph. `graph.variables` orders them by address in memory, which differs between processes."""
    place = {id(handle): i for i, (handle, _) in enumerate(getattr(graph, "captures", ()))}
    return sorted(local_variables(getattr(graph, "variables", ())), key=lambda v: place.get(id(v.handle), len(place)))


def gather_variables(groups: Mapping[str, Sequence[Any]]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Copies of all values, as "<group>/<i>", and the names of the variables by group."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    for group, variables in groups.items():
        flat = local_variables(variables)
        names[group] = [_name(v) for v in flat]
        arrays.update((f"{group}/{i}", np.asarray(v.numpy())) for i, v in enumerate(flat))
    return arrays, names


def restore_variables(groups: Mapping[str, Sequence[Any]], arrays: Mapping[str, np.ndarray], names: Mapping[str, list[str]]) -> None:
    """Checks that everything fits, then assigns what `gather_variables` copied.

    Raises:
        MismatchError: if number, shape or type of the variables differ; then nothing was assigned.
    """
    flat = {group: local_variables(variables) for group, variables in groups.items()}
    for group, variables in flat.items():
        _check_group(group, variables, arrays, names.get(group, []))
    for group, variables in flat.items():
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"{group}/{i}"])


def check_model(task: Task, saved: RunState) -> None:
    """Checks that a built model fits a state. A model that is built later is checked when the state is restored.

    Raises:
        MismatchError: if it does not fit.
    """
    if all(getattr(layer, "built", True) for layer in task.models):
        _check_group("model", local_variables(task.tracked.model_variables()), saved.arrays, saved.state["variables"]["model"])


def _check_group(group: str, variables: Sequence[Any], arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    for i, (variable, name) in enumerate(zip(variables, names, strict=False)):
        value = arrays[f"{group}/{i}"]
        here = f"{list(variable.shape)} {variable.dtype.name}"
        there = f"{list(value.shape)} {tf.as_dtype(value.dtype).name}"
        if here != there:
            raise MismatchError(f"the {group} variable {_name(variable)} is {here} now and was {there} ({name} in the snapshot)")
    if len(variables) != len(names):
        longer = [_name(v) for v in variables] if len(variables) > len(names) else list(names)
        raise MismatchError(
            f"there are {len(variables)} {group} variables now and were {len(names)}; "
            f"the first without a partner is {longer[min(len(variables), len(names))]}"
        )


def select(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries whose names begin with `prefix`, without the prefix."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _name(variable: Any) -> str:
    return str(variable.name).removesuffix(":0")
