"""Finds out which variables a traced function may write. It reads the graph only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from loops import _private_api

__all__ = ["written"]

_READS = frozenset({"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp"})
# TensorFlow marks the resources that a call, a loop or a conditional only reads, at any depth.
_READ_ONLY = "_read_only_resource_inputs"
# Operations that hand their inputs to functions: the attributes that name these, and the number of inputs that they do not hand on.
_CALLS = {
    **dict.fromkeys(("PartitionedCall", "StatefulPartitionedCall"), (("f",), 0)),
    **dict.fromkeys(("While", "StatelessWhile"), (("cond", "body"), 0)),
    **dict.fromkeys(("If", "StatelessIf"), (("then_branch", "else_branch"), 1)),
    **dict.fromkeys(("Case", "StatelessCase"), (("branches",), 1)),
}


def written(graph: tf.Graph, variables: Iterable[tf.Variable], but_by: Callable[[tf.Operation], bool] | None = None) -> list[tf.Variable]:
    """The variables that a graph may write; those for which it is not certain count as written.

    Args:
        graph: graph of a concrete function.
        variables: plain variables.
        but_by: operation -> whether what it writes does not count.

    Example:
        >>> import tensorflow as tf
        >>> a, b = tf.Variable(1.0), tf.Variable(2.0)
        >>> function = tf.function(lambda: a.assign_add(b)).get_concrete_function()
        >>> written(function.graph, [a, b]) == [a]
        True
    """
    inside = {id(outer): inner for outer, inner in graph.captures}
    found = [v for v in variables if id(v.handle) in inside and any(_writers(inside[id(v.handle)], [graph]))]
    if but_by is None:
        return found
    return [v for v in found if not all(but_by(op) for op in _writers(inside[id(v.handle)], [graph]))]


def _writers(handle: Any, graphs: list[Any]) -> Iterator[tf.Operation]:
    """The operations that may write the variable behind `handle`, at any depth; `graphs`: that of the handle, then those around it."""
    for op in handle.consumers():
        places = [i for i, given in enumerate(op.inputs) if given is handle]
        if op.type in _READS or (_READ_ONLY in op.node_def.attr and set(places) <= set(op.get_attr(_READ_ONLY))):
            continue
        within = [(graph, place - first) for graph, first in _called(op, graphs) for place in places]
        if not within or any(graph is None or not 0 <= place < len(graph.inputs) for graph, place in within):
            yield op
            continue
        for graph, place in within:
            yield from _writers(graph.inputs[place], [graph, *graphs])


def _called(op: tf.Operation, graphs: list[Any]) -> Iterator[tuple[Any, int]]:
    """The graphs of the functions that an operation calls, None for one without, and the place of their first input among the op's."""
    attributes, first = _CALLS.get(op.type, ((), 0))
    for attribute in attributes:
        value = op.node_def.attr[attribute]
        for function in [value.func] if value.HasField("func") else value.list.func:
            known = next((library[function.name] for g in graphs if function.name in (library := _private_api.functions_of(g))), None)
            yield _private_api.graph_of_function(known), first
