"""Everything that decides the future of a run, gathered into arrays and JSON, and put back.

    arrays   model/3, optimizer/0, metric/1, captured/0   variables, one entry for each replica where values may differ
             trace/rows/0, trace/totals                   what hooks have not seen yet, and the epoch to date
             hooks/<name>/<key>                           arrays that hooks keep
    state    progress, feed, learning rates, hooks, logs of the epoch, looks, stop decision, non-finite counts, task

Knows neither files (`snapshots.py`) nor what may differ between two runs (`resume.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops.epoch_logs import EpochLogs
from loops.execution import Execution
from loops.looks import Looks
from loops.progress import Progress
from loops.replicas import local_variables
from loops.schedules import LearningRates
from loops.task import Task

__all__ = ["MismatchError", "Parts", "RunState", "apply_flags", "check_model", "gather", "layers_of", "restore", "select"]


class MismatchError(ValueError):
    """A snapshot does not fit the run that is to be restored from it."""


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


@dataclasses.dataclass
class Parts:
    """What a run consists of, besides files and feed.

    Attributes:
        task: what is trained.
        progress: the counters.
        logs: logs of the epoch in progress.
        looks: the appointments of the hooks.
        execution: the steps, with what hooks have not seen of them.
        rates: the learning rates.
        decisions: stop reason and counts of recoveries, JSON-able; changed in place by `restore`.
        now: time on the loop's clock, in seconds.
    """

    task: Task
    progress: Progress
    logs: EpochLogs
    looks: Looks
    execution: Execution
    rates: LearningRates
    decisions: dict[str, Any]
    now: float


def gather(parts: Parts) -> RunState:
    """Copies everything to the host. Call it at a boundary, after all hooks acted."""
    arrays, names = gather_variables(variables_of(parts.task, parts.execution.step.graph))
    trace, described = parts.execution.trace.state()
    arrays.update((f"trace/{name}", array) for name, array in trace.items())
    hooks: dict[str, Any] = {}
    for hook in parts.looks:
        hooks[hook.name] = hook.state_dict()
        arrays.update((f"hooks/{hook.name}/{key}", array) for key, array in hook.state_arrays().items())
    state = {
        "progress": parts.progress.state_dict(),
        "variables": names,
        "trainable": flags_of(parts.task),
        "learning_rates": parts.rates.state_dict(),
        "trace": described,
        "logs": parts.logs.state_dict(),
        "looks": parts.looks.state_dict(parts.now),
        "hooks": hooks,
        "decisions": dict(parts.decisions),
        "task": parts.task.state_dict(),
    }
    return RunState(parts.progress.step, arrays, state)


def restore(parts: Parts, saved: RunState) -> None:
    """Puts everything back; models, optimizers and metrics have to be built.

    Raises:
        MismatchError: if the variables do not fit; nothing was changed then.
    """
    arrays, state = saved.arrays, saved.state
    groups = variables_of(parts.task, parts.execution.step.graph)
    restore_variables(groups, arrays, state["variables"])
    parts.rates.load_state_dict(state["learning_rates"])
    parts.progress.load_state_dict(state["progress"])  # the feed stands there already
    parts.execution.load_trace(select(arrays, "trace/"), state["trace"])
    parts.logs.load_state_dict(state["logs"])
    parts.looks.load_state_dict(state["looks"], parts.now)
    parts.decisions.update(state["decisions"])
    parts.task.load_state_dict(state["task"])
    for hook in parts.looks:
        if hook.name in state["hooks"]:
            hook.load_state_dict(state["hooks"][hook.name])
            if kept := select(arrays, f"hooks/{hook.name}/"):
                hook.load_state_arrays(kept)


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
    used = list(getattr(graph, "variables", ())) if graph is not None else []
    # A variable of the user's that no attribute of the task leads to, such as Keras's global seed generator.
    groups["captured"] = [v for v in local_variables(used) if id(v) not in local]
    return groups


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
    """Assigns what `gather_variables` copied, after it has been checked that everything fits.

    Raises:
        MismatchError: if number, shape or type of the variables differ; nothing was assigned then.
    """
    flat = {group: local_variables(variables) for group, variables in groups.items()}
    for group, variables in flat.items():
        _check_group(group, variables, arrays, names.get(group, []))
    for group, variables in flat.items():
        for i, variable in enumerate(variables):
            variable.assign(arrays[f"{group}/{i}"])


def check_model(task: Task, saved: RunState) -> None:
    """Whether a model that is built already fits a state; what is built later is checked when it is restored.

    Raises:
        MismatchError: if not.
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


def flags_of(task: Task) -> dict[str, list[bool]]:
    """The `trainable` flags of layers and variables."""
    return {"layers": [bool(layer.trainable) for layer in layers_of(task)], "variables": [bool(v.trainable) for v in _variables(task)]}


def apply_flags(task: Task, flags: Mapping[str, list[bool]]) -> None:
    """Sets what `flags_of` gave, as far as the layers exist by now."""
    for items, wanted in ((layers_of(task), flags["layers"]), (_variables(task), flags["variables"])):
        if len(items) == len(wanted):
            # A layer hands its flag on to those inside it, which follow it in the list.
            for item, flag in zip(items, wanted, strict=True):
                if item.trainable != flag:
                    item.trainable = flag


def layers_of(task: Task) -> list[Any]:
    """The task's Keras layers and those inside them, each once."""
    inner = [layer for outer in task.models if isinstance(outer, keras.layers.Layer) for layer in outer._flatten_layers()]
    return list({id(layer): layer for layer in inner}.values())


def select(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries below `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _variables(task: Task) -> list[Any]:
    return [v for v in task.tracked.model_variables() if isinstance(v, keras.Variable)]


def _name(variable: Any) -> str:
    return str(variable.name).removesuffix(":0")
