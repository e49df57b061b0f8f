"""Inspects a `tf.data` pipeline: finds what would make a resumed run differ from an uninterrupted one, or be slow to resume.

It reads the graph of the dataset and makes no iterator: that would advance the seeds of `shuffle`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.graphs.hidden_random_state import stateful_random_ops_of_def

__all__ = ["PYTHON_OPERATIONS", "Pipeline", "Replay", "findings", "parts"]

_IGNORE, _FAIL = (tf.data.experimental.ExternalStatePolicy[name].value for name in ("IGNORE", "FAIL"))
# Datasets that make exactly one iterator of their input, when their own iterator is made. The input dataset is their first input.
_EAGER = frozenset(
    {
        "AssertCardinalityDataset",
        "BatchDatasetV2",
        "FilterDataset",
        "FlatMapDataset",
        "InterleaveDataset",
        "MapDataset",
        "OptionsDataset",
        "PaddedBatchDatasetV2",
        "ParallelBatchDataset",
        "ParallelInterleaveDatasetV4",
        "ParallelMapDatasetV2",
        "PrefetchDataset",
        "ScanDataset",
        "ShardDataset",
        "SkipDataset",
        "TakeDataset",
        "TakeWhileDataset",
        "UnbatchDataset",
        "WindowDataset",
    }
)
_BATCHING = ("BatchDatasetV2", "ParallelBatchDataset", "PaddedBatchDatasetV2", "MapAndBatchDataset")
# The graph of a dataset contains the arrays that it was made from, and is copied several times before this module can read it.
_INSPECTED_AT_MOST_MB = 128
PYTHON_OPERATIONS = {"PyFunc": "numpy_function", "PyFuncStateless": "numpy_function", "EagerPyFunc": "py_function"}


class Replay(enum.Enum):
    """What a new process has to repeat of an earlier pass, so that later passes shuffle as they would have.

    Making an iterator draws a seed from the generator of each `shuffle` below it, at once or when it is first pulled from.
    """

    NOTHING = "nothing"
    ITERATORS = "its iterators made"
    FIRST_BATCH = "its iterators made, and the first batch read"
    WHOLE = "all of it read"


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The properties of a dataset that matter for resuming.

    Attributes:
        replay: what a new process has to repeat of earlier passes.
        generators: number of random number generators whose position a saved iterator has to contain; 0 if no pass depends on the one
            before.
        unsaveable: why TensorFlow cannot save the position in the pipeline, None if it can.
        findings: a sentence on each thing that would make a resumed run differ, or make resuming slow.
        operations: the operations of the dataset and of its functions; empty if it could not be inspected.
        batch_size: the size in its last `batch`, None if there is none or it could not be inspected.
    """

    replay: Replay
    generators: int
    unsaveable: str | None
    findings: tuple[str, ...]
    operations: frozenset[str] = frozenset()
    batch_size: int | None = None

    @classmethod
    def of(cls, dataset: tf.data.Dataset) -> Pipeline:
        """Inspects a dataset."""
        megabytes = _source_bytes(dataset) >> 20
        if megabytes > _INSPECTED_AT_MOST_MB:
            return cls._unknown(f"it holds {megabytes} MB of arrays, which would be copied; loops.ArrayFeed takes arrays of any size")
        try:
            graph = tf.compat.v1.GraphDef.FromString(_serialized(dataset, _IGNORE).numpy())
        except (tf.errors.OpError, ValueError) as error:  # it cannot be serialized, or is larger than a protocol buffer may be
            return cls._unknown(_first_line(error))
        replay = _replay(graph)
        generators = sum(_has_generator(node) for node in graph.node) if replay is not Replay.NOTHING else 0
        unsaveable = _unsaveable(dataset, graph)
        found = [*_unseeded(graph), *_unordered(dataset, graph), *_hidden_state(graph)]
        if unsaveable is not None:
            found.append(
                f"TensorFlow cannot save the position in this pipeline, because {unsaveable}: "
                "a resumed run reads the batches of the pass that were trained on again and drops them."
            )
        if replay is Replay.WHOLE:
            found.append(
                "The pipeline shuffles below repeat, cache, concatenate or another transformation that starts it anew at times of its own: "
                "where TensorFlow does not save the shuffle's seeds (close to the end of a pass), resuming reads all earlier passes again."
            )
        return cls(replay, generators, unsaveable, tuple(found), frozenset(node.op for node, _ in _all_nodes(graph)), _batch_size(graph))

    @classmethod
    def _unknown(cls, reason: str) -> Pipeline:
        sentence = (
            f"The pipeline could not be inspected ({reason}). A resumed run reads all earlier passes again and drops them; it gets the "
            "same batches if every shuffle has a seed and nothing draws from hidden state."
        )
        return cls(Replay.WHOLE, 0, "it could not be inspected", (sentence,))


def findings(dataset: tf.data.Dataset) -> list[str]:
    """One sentence on each thing that would make a resumed run differ from an uninterrupted one, or make resuming slow.

    A seed that comes from `tf.random.set_seed` is as good as one given to `shuffle`.

    Args:
        dataset: any `tf.data.Dataset`. No iterator of it is made.

    Example:
        >>> import tensorflow as tf
        >>> findings(tf.data.Dataset.range(9).shuffle(9, seed=1).batch(2))
        []
        >>> tf.random.set_seed(None)
        >>> print(*findings(tf.data.Dataset.range(9).shuffle(9).batch(2)))
        shuffle has no seed: a resumed run would see another order; give shuffle(..., seed=...), or call tf.random.set_seed before.
    """
    return list(Pipeline.of(dataset).findings)


def _serialized(dataset: tf.data.Dataset, policy: int) -> tf.Tensor:
    return tf.raw_ops.DatasetToGraphV2(input_dataset=_private_api.variant_of(dataset), external_state_policy=policy)


def parts(dataset: Any) -> list[Any]:
    """The dataset and all datasets below it, each once."""
    found, to_visit = {id(dataset): dataset}, [dataset]
    while to_visit:
        for part in _private_api.inputs_of(to_visit.pop()):
            if id(part) not in found:
                found[id(part)] = part
                to_visit.append(part)
    return list(found.values())


def _source_bytes(dataset: Any) -> int:
    tensors = [tensor for part in parts(dataset) for tensor in _private_api.arrays_in(part)]
    return sum(int(t.shape.num_elements() or 0) * t.dtype.size for t in tensors)


def _all_nodes(graph: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every node of the graph and of the functions in its library, with the nodes of the same graph or function by name."""
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        by_name = {node.name: node for node in nodes}
        for node in nodes:
            yield node, by_name


def _unseeded(graph: Any) -> list[str]:
    found = []
    for node, beside in _all_nodes(graph):
        inputs = _inputs_by_name(node)
        if not {"seed", "seed2"} <= inputs.keys():
            continue
        if all(_constant(inputs[name], beside) == 0 for name in ("seed", "seed2")):
            what = "shuffle" if node.op.startswith("Shuffle") else "Dataset.random (or what is made with it, such as sample_from_datasets)"
            seed = "shuffle(..., seed=...)" if node.op.startswith("Shuffle") else "it a seed"
            found.append(f"{what} has no seed: a resumed run would see another order; give {seed}, or call tf.random.set_seed before.")
    return list(dict.fromkeys(found))


def _unordered(dataset: tf.data.Dataset, graph: Any) -> list[str]:
    if dataset.options().deterministic is False:
        return ["The dataset's options have deterministic=False: the order of its elements depends on timing, in every run; leave it out."]
    unordered = (node for node, _ in _all_nodes(graph) if "deterministic" in node.attr and node.attr["deterministic"].s == b"false")
    ops = {_transformation(node.op) for node in unordered}
    return [f"{op} with deterministic=False: the order of elements depends on timing, in every run; leave it out." for op in sorted(ops)]


def _hidden_state(graph: Any) -> list[str]:
    found = []
    drawing = sorted({f.op for f in stateful_random_ops_of_def(graph)})
    if drawing:
        found.append(
            f"A mapped function draws random numbers from hidden state ({', '.join(drawing)}): a resumed run would draw others; use "
            "tf.random.stateless_* with seeds from the data, such as those of tf.data.Dataset.random(seed=...) zipped to it."
        )
    if any(node.op.startswith("Rng") or re.match("Stateful(?!PartitionedCall)", node.op) for node, _ in _all_nodes(graph)):
        found.append(
            "A mapped function draws from a tf.random.Generator, which runs ahead of the training: a resumed run would draw other numbers; "
            "use tf.random.stateless_* with seeds from the data, such as those of tf.data.Dataset.random(seed=...) zipped to it."
        )
    return found


def _unsaveable(dataset: tf.data.Dataset, graph: Any) -> str | None:
    try:
        _serialized(dataset, _FAIL)
    except (tf.errors.OpError, ValueError) as error:
        refused = _first_line(error)
    else:
        return None
    ops = {node.op for node, _ in _all_nodes(graph)}
    if "GeneratorDataset" in ops:
        return "it reads from a Python generator (from_generator), taken to give the same again in every pass"
    python = sorted({name for op, name in PYTHON_OPERATIONS.items() if op in ops})
    if python:
        return f"it calls Python ({', '.join(python)})"
    if "DummySeedGenerator" in ops:
        return "it shuffles within a mapped function (interleave, flat_map)"
    named = re.search(r"(\w+) is stateful", refused)
    return f"{named.group(1)} keeps state outside of it" if named else refused


def _batch_size(graph: Any) -> int | None:
    # The nodes of a graph are in the order of its edges: what is last is nearest to the end of the pipeline.
    by_name = {node.name: node for node in graph.node}
    batching = [node for node in graph.node if node.op in _BATCHING]
    return _constant(batching[-1].input[1], by_name) if batching else None


def _replay(graph: Any) -> Replay:
    redrawing = [node for node in graph.node if _redraws(node)]
    consumers: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            consumers.setdefault(_producer(name), []).append((node, index))
    first_pull = any_order = False
    to_visit, visited = [node.name for node in redrawing], set()
    while to_visit:
        name = to_visit.pop()
        if name in visited:
            continue
        visited.add(name)
        for node, index in consumers.get(name, []):
            if node.op.startswith("Shuffle") and "Repeat" not in node.op and index == 0:
                first_pull = True  # it makes its input's iterator when it fills its buffer
            elif node.op == "DirectedInterleaveDataset":
                any_order = True  # the first batch need not pull from every input
            elif not (node.op == "ZipDataset" or node.op.startswith("_") or (node.op in _EAGER and index == 0)):
                return Replay.WHOLE
            to_visit.append(node.name)
    if first_pull:
        return Replay.WHOLE if any_order else Replay.FIRST_BATCH
    return Replay.ITERATORS if redrawing else Replay.NOTHING


def _redraws(node: Any) -> bool:
    """Whether each new iterator of this dataset draws another seed."""
    if node.op.startswith("Shuffle"):
        return "reshuffle_each_iteration" not in node.attr or node.attr["reshuffle_each_iteration"].b
    return node.op == "RandomDatasetV2"


def _has_generator(node: Any) -> bool:
    return node.op.startswith("Shuffle") or node.op in ("RandomDataset", "RandomDatasetV2")


def _constant(name: str, beside: dict[str, Any]) -> Any:
    node = beside.get(_producer(name))
    return tf.make_ndarray(node.attr["value"].tensor).item() if node is not None and node.op == "Const" else None


def _producer(name: str) -> str:
    return name.lstrip("^").split(":")[0]


def _inputs_by_name(node: Any) -> dict[str, str]:
    names = _input_names(node.op)
    return dict(zip(names, node.input, strict=True)) if len(names) == len(node.input) else {}


@functools.cache
def _input_names(op_type: str) -> tuple[str, ...]:
    """Names of an op's inputs; empty if some inputs are lists, because positions then do not tell the names."""
    definition = _private_api.op_definition(op_type)
    if definition is None or not op_type.endswith(("Dataset", "DatasetV2", "DatasetV3")):
        return ()
    if any(argument.number_attr or argument.type_list_attr for argument in definition.input_arg):
        return ()
    return tuple(argument.name for argument in definition.input_arg)


def _transformation(op_type: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", re.sub(r"^Parallel|Dataset(V\d)?$", "", op_type)).lower()


def _first_line(error: Exception) -> str:
    text = re.sub(r"\{\{function_node [^}]*\}\} ?", "", str(error)).strip()
    return text.splitlines()[0].removesuffix("name:").strip() if text else type(error).__name__
