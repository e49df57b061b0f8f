"""Brings values out of the conditionals and loops of a step: a tensor made in there cannot be used outside, but a variable can.

Each value has a variable, which is set to zero at the beginning of the step. They are no state of the run.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["Carried", "graphs_within"]


def graphs_within(outer: Any) -> list[str]:
    """The kinds of graphs that are being traced inside of `outer`, innermost first; `outer` is None for a step that runs eagerly."""
    kinds: list[str] = []
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None and graph is not outer:
        kinds.append(type(graph).__name__)
        graph = getattr(graph, "outer_graph", None)
    return kinds


class Carried:
    """The values that one trace of a step brings out.

    Args:
        graph: the graph of the step.
        variables: variables of earlier traces, by name, to use again.
    """

    def __init__(self, graph: Any, variables: dict[tuple[str, str], tf.Variable]):
        self._graph, self._variables = graph, variables
        self._used: dict[tuple[str, str], tf.Variable] = {}

    def put(self, name: tuple[str, str], value: Any) -> None:
        """Keeps `value`, in place of an earlier one of that name.

        Raises:
            ValueError: if the shape of the value is not known while it is traced.
        """
        self._variable(name, value).assign(value)

    def add(self, name: tuple[str, str], value: Any) -> None:
        """Keeps the sum of the values of that name."""
        self._variable(name, value).assign_add(value)

    def values(self) -> dict[tuple[str, str], tf.Tensor]:
        """Name -> value, zero where control flow went another way. Call it outside of control flow."""
        return {name: variable.read_value() for name, variable in self._used.items()}

    def _variable(self, name: tuple[str, str], value: Any) -> tf.Variable:
        if name in self._used:
            return self._used[name]
        value = tf.convert_to_tensor(value)
        if not value.shape.is_fully_defined():
            raise ValueError(
                f"{name!r} has the shape {value.shape} inside a conditional or loop; only a fixed shape can be brought out of it."
            )
        known = self._variables.get(name)
        if known is None or (known.shape, known.dtype) != (value.shape, value.dtype):
            with tf.init_scope():
                known = tf.Variable(tf.zeros(value.shape, value.dtype), trainable=False, name="carried_out_of_control_flow")
        self._variables[name] = self._used[name] = known
        with self._graph.as_default():
            known.assign(tf.zeros(value.shape, value.dtype))
        return known
