"""Finds ops that draw random numbers from hidden state, which cannot be saved: a run with such an op could not be resumed exactly.

`tf.random.normal` and similar ops keep a counter inside the op's kernel. It belongs to the process, is in no variable, and starts from the
beginning in the next process. Stateless ops keep no state; `keras.random` with a `SeedGenerator` and `tf.random.Generator` keep theirs in a
variable. This module only finds such ops: the caller decides what to do about them.
"""

from __future__ import annotations

import dataclasses
import functools
import linecache
import pathlib
import sysconfig
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from loops import _private_api
from loops.graphs import walk

__all__ = ["REFUSAL_OF_EAGER", "Found", "draws_from_hidden_state", "refusal", "stateful_random_ops", "stateful_random_ops_of_def"]

_MOST_NAMED = 5
_DRAWS = "The step draws random numbers from hidden state that cannot be saved, so a resumed run would draw others"
_INSTEAD = "use tf.random.stateless_* with self.seed(), or a keras.random op with a keras.random.SeedGenerator."
# What an eager step is refused with at the line that draws.
REFUSAL_OF_EAGER = f"{_DRAWS}; {_INSTEAD}"
# It has a seed, but lists all classes in order.
_DRAWS_NOTHING = frozenset({"AllCandidateSampler"})
# The registry does not mark these as stateful, but they draw unless their attribute `deterministic` is set.
_UNMARKED = frozenset({"FractionalMaxPool", "FractionalAvgPool"})
_LIBRARIES = tuple(
    str(pathlib.Path(path).resolve()) + "/"
    for path in (pathlib.Path(tf.__file__).parent, pathlib.Path(keras.__file__).parent, pathlib.Path(__file__).parents[1])
)
_STANDARD_LIBRARY = str(pathlib.Path(sysconfig.get_paths()["stdlib"]).resolve()) + "/"


@dataclasses.dataclass(frozen=True)
class Found:
    """An op that draws from hidden state.

    Attributes:
        op: its type, such as "RandomStandardNormal".
        name: its name in the graph or function that holds it.
        source: the user's line that made it, "file:line: code"; None if that is not known.
    """

    op: str
    name: str
    source: str | None = None


def stateful_random_ops(graph: tf.Graph) -> list[Found]:
    """Ops of a traced graph, and of all functions that it calls at any depth, that draw from hidden state.

    Args:
        graph: a `tf.Graph`, such as `concrete_function.graph`.

    Returns:
        What was found, in the order of the graph; a function that is called twice is searched once.

    Example:
        >>> import tensorflow as tf
        >>> noisy = tf.function(lambda x: x + tf.random.normal([2]))
        >>> graph = noisy.get_concrete_function(tf.TensorSpec([2])).graph
        >>> [found.op for found in stateful_random_ops(graph)]
        ['RandomStandardNormal']
    """
    return _drawing(walk.nodes(graph, _may_draw))


def stateful_random_ops_of_def(graph_def: Any) -> list[Found]:
    """As `stateful_random_ops`, for a `GraphDef` with its library of functions; `source` is always None."""
    return _drawing(walk.nodes_of_def(graph_def, _may_draw))


def draws_from_hidden_state(node: Any) -> bool:
    """Whether a `NodeDef` is of an op that draws from hidden state: in TensorFlow's registry it is stateful and has a seed attribute."""
    if node.op in _UNMARKED:
        return not ("deterministic" in node.attr and node.attr["deterministic"].b)
    if not _marked(node.op):
        return False
    # Recurrent cuDNN ops draw only for their dropout.
    return "dropout" not in node.attr or node.attr["dropout"].f > 0.0


def refusal(found: Sequence[Found]) -> str:
    """One sentence that says which ops were found and what to do about it.

    Args:
        found: at least one finding.
    """
    distinct = list(dict.fromkeys(f"{f.op} ({f.source})" if f.source else f"{f.op} '{f.name}'" for f in found))
    named = distinct[:_MOST_NAMED]
    if len(distinct) > len(named):
        named.append(f"{len(distinct) - len(named)} more")
    return f"{_DRAWS}: {', '.join(named)}; {_INSTEAD}"


@functools.cache
def _marked(op_type: str) -> bool:
    definition = _private_api.op_definition(op_type)
    if definition is None or op_type in _DRAWS_NOTHING or op_type.startswith("CudnnRNNBackprop"):
        return False
    return definition.is_stateful and any(attr.name in ("seed", "seed2") for attr in definition.attr)


def _drawing(nodes: Iterable[tuple[Any, Any]]) -> list[Found]:
    drawing = [(op, node) for op, node in nodes if draws_from_hidden_state(node)]
    return [Found(node.op, node.name, _source(op) if isinstance(op, tf.Operation) else None) for op, node in drawing]


def _may_draw(op_type: str) -> bool:
    return _marked(op_type) or op_type in _UNMARKED


def _source(op: tf.Operation) -> str | None:
    for frame in reversed(op.traceback or []):
        path = str(pathlib.Path(frame.filename).resolve())
        in_library = path.startswith(_STANDARD_LIBRARY) and "-packages/" not in path
        if not in_library and not path.startswith(_LIBRARIES):
            code = (frame.line or linecache.getline(frame.filename, frame.lineno)).strip()
            return f"{frame.filename}:{frame.lineno}" + (f": {code}" if code else "")
    return None
