"""Finds out what a value of a step is computed from, in a graph or in eager mode: from some variables and constants alone, or not."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from loops import _private_api

__all__ = ["EagerOps", "computed_from_variables"]

_READ = "ReadVariableOp"


@dataclasses.dataclass(eq=False)
class _Frame:
    """A graph that a call runs, and where its arguments come from.

    Attributes:
        graph: the graph.
        arguments: id of an argument -> the tensors that it may be, each with its own frame.
        outer: the frame of the call, None for the step itself.
    """

    graph: Any
    arguments: dict[int, list[tuple[Any, _Frame]]]
    outer: _Frame | None = None

    def function(self, name: str) -> Any:
        """The graph of a function that this graph, or one around it, knows; None if it has none in this process."""
        found = _private_api.functions_of(self.graph).get(name)
        graph = _private_api.graph_of_function(found) if found is not None else None
        return graph if graph is not None or self.outer is None else self.outer.function(name)


def computed_from_variables(value: tf.Tensor, handles: Iterable[tf.Tensor], also: Iterable[tf.Tensor] = ()) -> bool:
    """Whether a tensor in the graph that is being traced is computed from some variables and constants alone.

    Conditionals, loops and functions are followed into their graphs.

    Args:
        value: a tensor of a `tf.Graph`.
        handles: the handles of the variables, of which at least one has to be read.
        also: tensors that count as constants.

    Example:
        >>> count, found = tf.Variable(2.0), []
        >>> @tf.function
        ... def step(x):
        ...     root = tf.sqrt(count) + 1.0
        ...     found.extend(computed_from_variables(value, [count.handle]) for value in (root, root * x, x, tf.constant(1.0)))
        >>> step(tf.constant(3.0)), found
        (None, [True, False, False, False])
    """
    wanted = {id(handle) for handle in handles}
    step, constants = _Frame(value.graph, {}), {id(tensor) for tensor in also}
    captured = {id(inner): outer for outer, inner in value.graph.captures}
    reads, pending, seen = False, [(value, step)], set()
    while pending:
        tensor, frame = pending.pop()
        if (id(tensor), id(frame)) in seen:
            continue
        seen.add((id(tensor), id(frame)))
        if id(tensor) in constants:
            continue
        if id(tensor) in frame.arguments:
            pending += frame.arguments[id(tensor)]
        elif tensor.op.type == _READ:
            sources = _sources(tensor.op.inputs[0], frame)
            if not all(id(captured.get(id(source))) in wanted for source in sources):
                return False
            reads = True
        elif tensor.op.type == "Placeholder":
            outer = captured.get(id(tensor))
            if outer is None or not hasattr(outer, "numpy"):  # the batch, or a tensor from outside of the step
                return False
        elif (inside := _into_functions(tensor, frame)) is not None:
            pending += inside
        elif tensor.op.op_def.is_stateful:
            return False
        else:
            pending += [(source, frame) for source in tensor.op.inputs]
    return reads


def _sources(tensor: Any, frame: _Frame) -> list[Any]:
    """The tensors of the step's own graph that an argument of an inner function may be."""
    if id(tensor) not in frame.arguments:
        return [tensor]
    found: list[Any] = []
    pending, seen = list(frame.arguments[id(tensor)]), set()
    while pending:
        source, there = pending.pop()
        if (id(source), id(there)) in seen:
            continue
        seen.add((id(source), id(there)))
        if id(source) in there.arguments:
            pending += there.arguments[id(source)]
        else:
            found.append(source)
    return found


def _into_functions(tensor: Any, frame: _Frame) -> list[tuple[Any, _Frame]] | None:
    """What an output of an op that calls functions is computed from; None if the op calls none."""
    op = tensor.op
    if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
        return _outputs(op, ("f",), op.inputs, tensor.value_index, frame)
    if op.type in ("If", "StatelessIf"):
        return [(op.inputs[0], frame), *_outputs(op, ("then_branch", "else_branch"), op.inputs[1:], tensor.value_index, frame)]
    if op.type in ("While", "StatelessWhile"):
        graph = frame.function(op.get_attr("body").name)
        body = _Frame(graph, {}, frame)
        for i, (argument, given) in enumerate(zip(graph.inputs, op.inputs, strict=True)):
            body.arguments[id(argument)] = [(given, frame), (graph.outputs[i], body)]
        return [(op.inputs[tensor.value_index], frame), (graph.outputs[tensor.value_index], body)]
    return None


def _outputs(op: Any, attributes: Sequence[str], given: Iterable[Any], index: int, frame: _Frame) -> list[tuple[Any, _Frame]]:
    found = []
    for attribute in attributes:
        graph = frame.function(op.get_attr(attribute).name)
        arguments = {id(argument): [(source, frame)] for argument, source in zip(graph.inputs, given, strict=True)}
        found.append((graph.outputs[index], _Frame(graph, arguments, frame)))
    return found


class EagerOps:
    """Records the operations that this thread runs eagerly, so that values can be followed back afterwards. A context manager.

    Example:
        >>> count, x = tf.Variable(4.0), tf.constant(3.0) * 1.0
        >>> with EagerOps() as ops:
        ...     root = tf.sqrt(count.read_value())
        ...     both = root * tf.abs(x)
        >>> [ops.computed_from_variables(value, [count.handle], batch=[x]) for value in (root, both, x)]
        [True, False, False]
    """

    def __init__(self) -> None:
        self._made_by: dict[int, tuple[str, tuple[Any, ...], Any]] = {}
        self._recording = _private_api.op_callback(self._record)

    def __enter__(self) -> EagerOps:
        self._recording.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._recording.__exit__(None, None, None)

    def _record(self, op_type: str, inputs: Any, attributes: Any, outputs: Any, op_name: Any = None, graph: Any = None) -> None:
        if graph is None:
            for output in outputs:
                self._made_by[id(output)] = op_type, tuple(inputs), output  # the output too: an id is used again when its tensor is gone

    def computed_from_variables(self, value: Any, handles: Iterable[tf.Tensor], *, batch: Iterable[Any], known: Iterable[Any] = ()) -> bool:
        """As the function of that name.

        Args:
            value: a tensor.
            handles: the handles of the variables.
            batch: the tensors of the batch.
            known: tensors that are computed from these variables; some reads happen inside of TensorFlow, where nothing records them.
        """
        wanted, others, certain = ({id(tensor) for tensor in tensors} for tensors in (handles, batch, known))
        reads, pending, seen = False, collections.deque([value]), set()
        while pending:
            tensor = pending.popleft()
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            op_type, inputs, _ = self._made_by.get(id(tensor), ("Const", (), None))
            definition = _private_api.op_definition(op_type)
            if id(tensor) in certain or (op_type == _READ and id(inputs[0]) in wanted):
                reads = True
            elif id(tensor) in others or definition is None or definition.is_stateful:
                return False
            else:
                pending.extend(inputs)
        return reads
