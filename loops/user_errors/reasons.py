"""The reason that a long error of Keras or TensorFlow gives, as one line, and the user's lines that its text names.

Both put their reason between tracebacks, lists of arguments and names of graph nodes, which say nothing about what to change.
"""

from __future__ import annotations

import re
from typing import Any

import tensorflow as tf

from loops.user_errors.tracebacks import Place, is_internal, with_places

__all__ = ["described", "in_short", "reason_of", "without_nodes"]

_COLOUR = re.compile(r"\x1b\[\d*m")
_KERAS_CALL = re.compile(r"Exception encountered when calling (.*?)\.\n\n(.*?)\n\nArguments received by ", re.DOTALL)
_LINE = re.compile(r'^ *File "([^"]+)", line (\d+), in (.+?)(?:  \*+)?$', re.MULTILINE)
_GRAPH_ERROR = re.compile(r"Graph execution error:\s*")
_DEFINED_AT = re.compile(r"Detected at node \S+ defined at \(most recent call last\):\n(?:<stack traces unavailable>|(?: *File .*|\s*)\n)*")
_PYTHON_TRACEBACK = re.compile(r"Traceback \(most recent call last\):.*", re.DOTALL)
_NODE = re.compile(r"\[\[\{\{node (?:while/(?:body/[^/]*/)?)?([^}]*)\}\}\]\]")
_NAME = re.compile(r"\{\{node ([^}]*)\}\}")
_NODES = re.compile(r"\[\[\{\{node [^}]*\}\}\]\]|\{\{function_node [^}]*\}\}|\[Op:\w+\](?: name: ?[\w/]*)?")


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line without a full stop; the name of the error's class if it has no text.

    Example:
        >>> reason_of(ValueError("Shapes differ:\\n\\n  (2,) and (3,)."))
        'Shapes differ: (2,) and (3,)'
    """
    text = _COLOUR.sub("", error.message if isinstance(error, tf.errors.OpError) else str(error)).strip()
    if (call := _KERAS_CALL.match(text)) is not None:
        where, text = call[1], call[2]
        if not re.match(r"(Sequential|Functional|Model)\.", where):
            text = f"{text.strip().rstrip('.')} (in {where})"
    text = _DEFINED_AT.sub("", _GRAPH_ERROR.sub("", text))
    return without_nodes(_PYTHON_TRACEBACK.sub("", text)) or type(error).__name__


def without_nodes(text: str) -> str:
    """A text in one line, without the marks that TensorFlow sets around nodes of graphs, and without a full stop."""
    return " ".join(_NAME.sub(r"\1", _NODES.sub("", text)).split()).rstrip(". ")


def in_short(error: tf.errors.OpError) -> tf.errors.OpError:
    """An error of a compiled call with its reason and operation alone for its text.

    The user's lines that made the operation are in its traceback.
    """
    found = _COLOUR.sub("", error.message)
    places = [Place(file, int(line), function) for file, line, function in _LINE.findall(_PYTHON_TRACEBACK.sub("", found))]
    behind_us = next((i for i in range(len(places), 0, -1) if _is_ours(places[i - 1])), 0)
    node = _NODE.search(found)
    where = f" (in the operation {node[1]!r})" if node is not None else ""
    short = type(error)(error.node_def, error.op, reason_of(error) + where, error.error_code)
    return short.with_traceback(with_places(error, [place for place in places[behind_us:] if not is_internal(place.file)]))


def _is_ours(place: Place) -> bool:
    return place.function == "_on_replica" and is_internal(place.file)


def described(batch: Any) -> str:
    """A batch, or its type specs, for a sentence: dtype and shape of each part.

    Example:
        >>> described((tf.TensorSpec([32, 5]), tf.TensorSpec([None], tf.int64)))
        '(float32 [32, 5], int64 [None])'
    """
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{name!r}: {described(part)}" for name, part in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return "(" + ", ".join(map(described, batch)) + ("," if len(batch) == 1 else "") + ")"
    if batch is None:
        return "None"
    if not isinstance(batch, tf.TypeSpec):
        batch = tf.type_spec_from_value(batch)
    kind = type(batch).__name__.removesuffix("TensorSpec").removesuffix("Spec").lower()
    shape = "[...]" if batch.shape.rank is None else str(batch.shape.as_list())
    return f"{kind} {batch.dtype.name} {shape}".strip() if hasattr(batch, "dtype") else str(batch)
