"""What belongs to a run: every variable that a step may change, in groups, and by what it is known again in another process.

    model, optimizer, metric    found by attribute from the task (`tracking.py`)
    captured                    used by the step, and no attribute leads to it

The guard against non-finite steps, snapshots, rollbacks and evaluation all take this answer. Found variables are known by their place among
the attributes. A captured one is known by its name, shape and type; several that have these in common are told apart by the order in which
the traced step uses them.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.errors import MismatchError
from loops.graphs.written_resources import written_captures
from loops.tasks.base import Task
from loops.tasks.learning_rates import multipliers_of
from loops.tasks.replicas import local_variables

__all__ = [
    "ADVICE",
    "CAPTURED",
    "Identity",
    "described",
    "flat",
    "identities",
    "name_of",
    "note_on",
    "note_on_other_state",
    "partners",
    "unnumbered",
    "variables_of",
]

CAPTURED = "captured"

# How operations begin that take variables, or put those of replicas in order.
_WITHOUT_OTHER_STATE = ("Assign", "Resource", "Collective")

Identity = tuple[str, tuple[Any, ...], str]


def variables_of(
    task: Task, graphs: Iterable[tf.Graph] = (), used: Iterable[tf.Variable] = (), *, apart: Iterable[tf.Variable] = ()
) -> dict[str, list[Any]]:
    """The variables that belong to the run of a task.

    Args:
        task: the task, with everything built.
        graphs: the graphs of its step, in the order in which they were traced.
        used: plain variables that the step was seen to use, in the order of their first use.
        apart: variables that the step uses and that are no state of the run.

    Returns:
        group -> variables, each in one group, in an order that is the same in every process that builds the same task.
    """
    tracked = task.tracked
    groups = {"model": tracked.model_variables(), "optimizer": tracked.optimizer_variables(), "metric": tracked.metric_variables()}
    known: set[int] = set()
    for name, variables in groups.items():
        groups[name] = [v for v in variables if id(v) not in known]
        known |= {id(v) for v in variables}
    multipliers = multipliers_of([*tracked.optimizers.values(), *tracked.inner_optimizers])
    local = {id(v) for variables in (*groups.values(), multipliers, apart) for v in local_variables(variables)}
    graphs, used = list(graphs), list(used)
    in_order = {id(v): v for v in ([v for graph in graphs for v in in_order_of_use(graph, used)] if graphs else used)}
    groups[CAPTURED] = [v for v in in_order.values() if id(v) not in local]
    return groups


def flat(groups: dict[str, list[Any]]) -> list[tf.Variable]:
    """The plain variables of all groups."""
    return [v for variables in groups.values() for v in local_variables(variables)]


def in_order_of_use(graph: Any, used: Iterable[tf.Variable]) -> list[tf.Variable]:
    """The plain variables of a traced graph, in the order in which it captured them.

    Args:
        graph: a function's graph.
        used: variables that were seen to be used while it was traced. The graph itself does not list those that only operations of
            optimizers take, and lists others by their address in memory, which differs between processes.
    """
    by_handle = {id(v.handle): v for v in [*local_variables(getattr(graph, "variables", ())), *used]}
    return [by_handle[id(handle)] for handle, _ in getattr(graph, "captures", ()) if id(handle) in by_handle]


# Captured variables in another process.


def name_of(variable: Any) -> str:
    """The name of a variable, without TensorFlow's output number."""
    return str(variable.name).removesuffix(":0")


def identities(variables: Sequence[Any]) -> list[Identity]:
    """Name, shape and type of each variable."""
    return [(name_of(v), tuple(v.shape.as_list()), v.dtype.name) for v in variables]


def partners(saved: Sequence[Identity], now: Sequence[Identity]) -> list[int]:
    """For each of `now` the index of the one in `saved` that it is.

    Raises:
        MismatchError: if that is not clear.

    Example:
        >>> a, b = ("a", (), "float32"), ("b", (), "float32")
        >>> partners([a, b], [b, a]), partners([a, a], [a, a])
        ([1, 0], [0, 1])
    """
    if sorted(map(repr, saved)) == sorted(map(repr, now)):  # the same ones; those that are alike by their order
        places: dict[Identity, collections.deque[int]] = collections.defaultdict(collections.deque)
        for i, one in enumerate(saved):
            places[one].append(i)
        return [places[one].popleft() for one in now]
    # Names that Keras or TensorFlow numbered may have other numbers here, if other things were made before.
    for here, there in zip(now, saved, strict=False):
        if (unnumbered(here[0]), *here[1:]) != (unnumbered(there[0]), *there[1:]):
            raise MismatchError(f"the step uses {described(here)} where it used {described(there)} before; {ADVICE}")
    if len(now) != len(saved):
        rest = (now if len(now) > len(saved) else saved)[min(len(now), len(saved))]
        raise MismatchError(
            f"the step uses {len(now)} variables that no attribute of the task leads to and used {len(saved)} before; "
            f"the first without a partner is {described(rest)}; {ADVICE}"
        )
    return list(range(len(now)))


def note_on(task: Task, captured: Sequence[tf.Variable]) -> str | None:
    """A sentence that names what no attribute leads to, for the user to act on; None if there is nothing but Keras's own seed."""
    names = [name_of(v) for v in captured if not _private_api.is_global_seed(v) and "/replica_" not in v.name]
    if not names:
        return None
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"no attribute of {type(task).__name__} leads to {len(names)} of the variables that its step uses ({', '.join(names[:5])}{more}). "
        "They are saved and put back all the same, known by name and order of use; held by attributes they are safe from changes of both."
    )


def note_on_other_state(task: Task, graph: tf.Graph | None, variables: Iterable[tf.Variable]) -> str | None:
    """A sentence that names what the task holds, or its traced step changes, that has state in no variable; None if there is nothing.

    Args:
        task: the task.
        graph: the graph of its step, or None.
        variables: the plain variables that belong to the run.
    """
    found = list(task.tracked.not_saved)
    if not found and graph is not None:
        known = {id(v.handle) for v in variables}
        changed = [by for handle, by in written_captures(graph) if id(handle) not in known and not by.startswith(_WITHOUT_OTHER_STATE)]
        found = [f"what {op_type} changes in its step" for op_type in dict.fromkeys(changed)]
    if not found:
        return None
    return (
        f"{type(task).__name__} has state that is in no variable, so it is not saved ({', '.join(found[:5])}): a resumed run begins it "
        "anew. Batches come at their place again if they come from the feed."
    )


ADVICE = "hold such variables as attributes of the task, or of an object that it holds"


def unnumbered(name: str) -> str:
    """A name without the numbers that Keras and TensorFlow put behind names that are there already."""
    return re.sub(r"_\d+(?=/|$)", "", name)


def described(identity: Identity) -> str:
    """Name, shape and type in words."""
    name, shape, dtype = identity
    return f"{name} ({list(shape)} {dtype})"
