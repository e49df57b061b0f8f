"""Finds which variables a traced graph can write: the others need no copy before it runs. Changes no graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops import _private_api

__all__ = ["written_captures", "written_variables"]

Skip = Callable[[tf.Operation], bool]

# Operations that take a variable and leave its value as it is. Whatever is not among them counts as writing.
_READ = frozenset({
    "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape", "VarIsInitializedOp", "DisableCopyOnRead",
    "_ReadVariablesOp", "ResourceStridedSlice", "LookupTableFindV2", "LookupTableSizeV2", "LookupTableExportV2",
})  # fmt: skip
# Passes its inputs on.
_PASS = frozenset({"Identity", "IdentityN"})
# They return each of their inputs.
_LOOPS = frozenset({"While", "StatelessWhile"})
# Operations that call functions with their own inputs, from the first or the second on.
_CALLS = {
    "PartitionedCall": 0, "StatefulPartitionedCall": 0, "While": 0, "StatelessWhile": 0,
    "If": 1, "StatelessIf": 1, "Case": 1, "StatelessCase": 1,
}  # fmt: skip


def written_variables(graph: Any, variables: Iterable[tf.Variable], but_by: Skip | None = None) -> list[tf.Variable]:
    """Those of some plain variables that the graph may write; see `written_captures`."""
    handles = {id(handle) for handle, _ in written_captures(graph, but_by)}
    return [v for v in variables if id(v.handle) in handles]


def written_captures(graph: Any, but_by: Skip | None = None) -> list[tuple[tf.Tensor, str]]:
    """The captured handles, of variables and of other resources, that the graph, or a function that it calls at any depth, may write.

    Args:
        graph: a function's graph, such as `concrete_function.graph`.
        but_by: operation -> whether what it writes does not count.

    Returns:
        Those of the tensors outside of the graph that it writes, in the order in which they were captured, each with the type of the first
        operation that writes it.

    Example:
        >>> import tensorflow as tf
        >>> a, b = tf.Variable(1.0), tf.Variable(2.0)
        >>> graph = tf.function(lambda: a.assign_add(tf.cond(b > 0.0, lambda: b * 2.0, lambda: b))).get_concrete_function().graph
        >>> [(handle is a.handle, by) for handle, by in written_captures(graph)]
        [(True, 'AssignAddVariableOp')]
    """
    written = _Search([_private_api.functions_of(graph)], {}, but_by or (lambda op: False)).written_inputs(graph)
    return [(outside, written[id(inside)]) for outside, inside in graph.captures if id(inside) in written]


class _Search:
    """Searches one graph. `known` holds what functions write, as index of the input -> type of the operation; None if that is not known."""

    def __init__(self, libraries: list[Mapping[str, Any]], known: dict[str, dict[int, str] | None], skip: Skip):
        self._libraries, self._known, self._skip = libraries, known, skip

    def written_inputs(self, graph: Any) -> dict[int, str]:
        """Id of each input tensor of the graph that it writes -> type of the operation."""
        origin = {id(tensor): tensor for tensor in graph.inputs if tensor.dtype == tf.resource}
        written: dict[int, str] = {}
        for op in graph.get_operations():
            resources = [(i, origin[id(tensor)]) for i, tensor in enumerate(op.inputs) if id(tensor) in origin]
            if not resources:
                continue
            if op.type in _PASS:
                origin.update((id(op.outputs[i]), outer) for i, outer in resources)
            elif op.type not in _READ and not self._skip(op):
                places = self._written_by(op)
                for i, outer in resources:
                    if places is None or i in places:
                        written.setdefault(id(outer), op.type if places is None else places[i])
                if op.type in _LOOPS:
                    origin.update((id(op.outputs[i]), outer) for i, outer in resources)
        return written

    def _written_by(self, op: tf.Operation) -> dict[int, str] | None:
        """Index of each input that an op writes -> type of the operation; None if it may write any."""
        is_function = _private_api.op_definition(op.type) is None
        hands_on = op.type not in _LOOPS and any(output.dtype == tf.resource for output in op.outputs)
        if hands_on or not (is_function or op.type in _CALLS):
            return None
        first, places = _CALLS.get(op.type, 0), dict[int, str]()
        for name in [op.type] if is_function else _functions_named_by(op):
            found = self._written_by_function(name)
            if found is None:
                return None
            places.update((i + first, by) for i, by in found.items())
        return places

    def _written_by_function(self, name: str) -> dict[int, str] | None:
        if name not in self._known:
            self._known[name] = {}  # a function that calls itself
            function = next((library[name] for library in self._libraries if name in library), None)
            graph: Any = _private_api.graph_of_function(function)
            if graph is None:
                self._known[name] = None
            else:
                written = _Search([_private_api.functions_of(graph), *self._libraries], self._known, self._skip).written_inputs(graph)
                self._known[name] = {i: written[id(tensor)] for i, tensor in enumerate(graph.inputs) if id(tensor) in written}
        return self._known[name]


@functools.cache
def _function_attributes(op_type: str) -> Sequence[str]:
    return [attribute.name for attribute in _private_api.op_definition(op_type).attr if attribute.type in ("func", "list(func)")]


def _functions_named_by(op: tf.Operation) -> Iterable[str]:
    for attribute in _function_attributes(op.type):
        value = op.get_attr(attribute)
        yield from (function.name for function in (value if isinstance(value, list) else [value]))
