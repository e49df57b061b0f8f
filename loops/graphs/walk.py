"""Walks over the operations of a traced graph, and of the functions that it calls, at any depth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from loops import _private_api

__all__ = ["calls", "functions_named_by", "nodes", "nodes_of_def"]

Wanted = Callable[[str], bool]


def nodes(graph: tf.Graph, wanted: Wanted) -> Iterator[tuple[Any, Any]]:
    """Operations whose type is wanted.

    Args:
        graph: a `tf.Graph`, such as `concrete_function.graph`.
        wanted: type of an operation -> whether to yield it. A `NodeDef` is made only for these, because making one copies constants.

    Yields:
        (operation, `NodeDef`), in the order of the graph. A function that is called twice is visited once. If a function has no graph in
        this process, the `NodeDef` takes the place of the operation.

    Example:
        >>> import tensorflow as tf
        >>> inner = tf.function(lambda x: tf.sin(x))
        >>> graph = tf.function(lambda x: inner(x) + 1.0).get_concrete_function(tf.TensorSpec([])).graph
        >>> [node.op for _, node in nodes(graph, lambda kind: kind == "Sin")]
        ['Sin']
    """
    yield from _walk(graph.get_operations(), [_private_api.functions_of(graph)], set(), wanted)


def nodes_of_def(graph_def: Any, wanted: Wanted) -> Iterator[tuple[Any, Any]]:
    """As `nodes`, for a `GraphDef` with its library of functions."""
    yield from _walk(graph_def.node, [{function.signature.name: function for function in graph_def.library.function}], set(), wanted)


@functools.cache
def calls(op_type: str) -> bool:
    """Whether an op calls functions; an op whose type is not registered is a call of the function with that name."""
    definition = _private_api.op_definition(op_type)
    return definition is None or any(attr.type in ("func", "list(func)") for attr in definition.attr)


def _walk(ops: Iterable[Any], libraries: list[Mapping[str, Any]], seen: set[str], wanted: Wanted) -> Iterator[tuple[Any, Any]]:
    # `libraries`: name -> function, those of the innermost graph first.
    for op in ops:
        op_type = op.type if isinstance(op, tf.Operation) else op.op
        calling = calls(op_type)
        if not (calling or wanted(op_type)):
            continue
        node = op.node_def if isinstance(op, tf.Operation) else op
        if wanted(op_type):
            yield op, node
        for name in functions_named_by(node) if calling else ():
            if name in seen:
                continue
            seen.add(name)
            function = next((library[name] for library in libraries if name in library), None)
            graph = _private_api.graph_of_function(function)
            if graph is not None:
                yield from _walk(graph.get_operations(), [_private_api.functions_of(graph), *libraries], seen, wanted)
            else:
                yield from _walk(_nodes_of_function(name, function), libraries, seen, wanted)


def functions_named_by(node: Any) -> list[str]:
    """Names of the functions that an op (a `NodeDef`) calls."""
    if _private_api.op_definition(node.op) is None:
        return [node.op]
    values = [node.attr[name] for name in sorted(node.attr)]
    return [f.name for value in values for f in ([value.func] if value.HasField("func") else value.list.func) if f.name]


def _nodes_of_function(name: str, function: Any) -> Any:
    """The nodes of a function without a graph in this process: it is in a `GraphDef`, or was loaded."""
    if function is None:
        registered = _private_api.registered_function(name)
        return registered.node_def if registered is not None else []
    return (function if hasattr(function, "node_def") else function.cached_definition).node_def
