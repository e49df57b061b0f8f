"""Finds out whether a value inside loops of TensorFlow differs from turn to turn. Knows graphs only, no step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["same_in_some_loop"]

_BODY = "WhileBodyFuncGraph"


def same_in_some_loop(values: Sequence[tf.Tensor], inner: Any, outer: Any) -> bool:
    """Whether none of some tensors changes from turn to turn of one of the loops around them, so that it repeats all of them.

    What it cannot follow (a variable that is read in the loop, the result of a conditional) counts as changing.

    Args:
        values: tensors that are used in the graph `inner`.
        inner: the body of a loop that is finished, or a graph within one.
        outer: the graph that the loops are in.

    Example:
        >>> seen, found = [], []
        >>> @tf.function(autograph=False)
        ... def step():
        ...     def body(i):
        ...         tf.while_loop(lambda j: j < 3, lambda j: seen.append((i, j)) or j + 1, [tf.constant(0)])
        ...         return i + 1
        ...     tf.while_loop(lambda i: i < 3, body, [tf.constant(0)])
        ...     i, j = seen[0]
        ...     graph = tf.compat.v1.get_default_graph()
        ...     found.extend(same_in_some_loop(values, j.graph, graph) for values in ([j], [i], [i, j]))
        >>> step(), found
        (None, [True, True, False])
    """
    graph, around = inner, []
    while graph is not None and graph is not outer:
        around.append(graph)
        graph = getattr(graph, "outer_graph", None)
    loops = [graph for graph in around if type(graph).__name__ == _BODY]
    return any(not any(_changes(value, loop) for value in values) for loop in loops)


def _depth(graph: Any) -> int:
    outer = getattr(graph, "outer_graph", None)
    return 0 if outer is None else 1 + _depth(outer)


def _changes(value: tf.Tensor, loop: Any) -> bool:
    """Whether a tensor, in the body `loop` or in a graph within it, is computed from what changes from turn to turn of that loop."""
    pending, seen = [value], set[int]()
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen or (tensor.graph is not loop and _depth(tensor.graph) <= _depth(loop)):
            continue
        seen.add(id(tensor))
        graph = tensor.graph
        place = next((i for i, argument in enumerate(graph.inputs) if argument is tensor), None)
        if place is None:
            op = tensor.op
            if op.op_def.is_stateful or any(attr.type in ("func", "list(func)") for attr in op.op_def.attr):
                return True
            pending += op.inputs
            continue
        in_turn = type(graph).__name__ == _BODY and graph.outputs[place] is not tensor
        if graph is loop:
            if in_turn:
                return True
            continue
        given = _argument(graph, place)
        if given is None:
            return True
        pending.append(given)
        if in_turn:
            pending.append(graph.outputs[place])
    return False


def _argument(graph: Any, place: int) -> Any:
    """The tensor that the op which runs a graph hands over for one of its inputs; None if there is none, or more than one such op."""
    found = []
    for op in graph.outer_graph.get_operations():
        for attribute, first in (("body", 0), ("then_branch", 1), ("else_branch", 1), ("f", 0)):
            if attribute in op.node_def.attr and op.node_def.attr[attribute].func.name == graph.name:
                found.append(op.inputs[first + place])
    return found[0] if len(found) == 1 else None
