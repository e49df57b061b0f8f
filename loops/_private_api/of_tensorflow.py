"""TensorFlow's functions and classes that are not public: graphs and ops, autograph, data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops._private_api.names import AUTOGRAPH, CONTEXT, FORWARD, NEEDED, OP_CALLBACKS, OP_DEFINITIONS, TRACKING, missing, module, resolved

# TensorFlow: graphs and ops.


def op_definition(op_type: str) -> Any:
    """The `OpDef` of an op type such as "MatMul"; None if it is unknown, as that of a function is."""
    return module(OP_DEFINITIONS).get(op_type)


def functions_of(graph: tf.Graph) -> Mapping[str, Any]:
    """The functions that were traced within a graph, by name."""
    return graph._functions


def graph_of_function(function: Any) -> tf.Graph | None:
    """The graph that a function was traced into; None if it has none in this process."""
    return getattr(function, "_cached_graph", None)


def registered_function(name: str) -> Any:
    """The `FunctionDef` of a function that the eager runtime knows, None if it knows none of that name."""
    eager = module(CONTEXT).context()
    return eager.get_function_def(name) if eager.has_function(name) else None


def report_to_cluster(message: str) -> None:
    """Aborts the collectives of all worker processes with a message, unless that has happened already."""
    with contextlib.suppress(tf.errors.OpError):
        module(CONTEXT).context().report_error_to_cluster(tf.errors.ABORTED, message)


def op_module(path: str) -> Any:
    """A module of op functions, such as `NN_OPS`; None if TensorFlow has it no more."""
    return module(path)


def surroundings() -> tuple[Any, ...]:
    """What TensorFlow takes from outside of a function while it traces it: the device, and who is told of every operation."""
    eager = module(CONTEXT).context()
    users = [callback for callback in eager.op_callbacks if not str(getattr(callback, "__module__", "")).startswith("loops.")]
    return str(eager.device_name or ""), *map(id, users)


@contextlib.contextmanager
def op_callback(callback: Callable[..., None]) -> Iterator[None]:
    """Within this context `callback` is called after every op that this thread runs: (type, inputs, attributes, outputs, name, graph).

    The graph is None for an op that ran eagerly.
    """
    callbacks = module(OP_CALLBACKS)
    callbacks.add_op_callback(callback)
    try:
        yield
    finally:
        callbacks.remove_op_callback(callback)


def have_tangents(tensors: Sequence[tf.Tensor]) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` watches one of the tensors."""
    return bool(module(FORWARD).pack_tangents(tensors).tangents)


# Taken outside of any tf.function, where the status is "not decided", so that `tf_convert` converts by default.
_UNDECIDED = None if missing({AUTOGRAPH: NEEDED[AUTOGRAPH]}) else resolved(AUTOGRAPH).control_status_ctx()


def converted_by_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with Python `if` and `while` on tensors turned into graph control flow."""
    return resolved(AUTOGRAPH).tf_convert(function, _UNDECIDED)


def before_autograph(error: BaseException) -> tuple[BaseException | None, list[tuple[str, int, str]]]:
    """The error that converted code raised, in place of which AutoGraph raises another with a traceback in its text; None for other errors.

    Returns:
        The error, and the lines that it passed through in the user's files: (file, line, function), outermost first.
    """
    metadata: Any = getattr(error, "ag_error_metadata", None)
    original = error
    if metadata is None:
        return None, []
    if getattr(error.__context__, "ag_error_metadata", None) is metadata:
        assert error.__context__ is not None
        original = error.__context__
    del original.ag_error_metadata  # type: ignore[attr-defined]  # else it would be replaced again further up
    return original, [(f.filename or "", f.lineno or 1, f.function_name or "<lambda>") for f in reversed(metadata.translated_stack)]


# TensorFlow: data.


def variant_of(dataset: tf.data.Dataset) -> tf.Tensor:
    """The tensor by which ops take a dataset."""
    return dataset._variant_tensor


def inputs_of(dataset: tf.data.Dataset) -> Sequence[tf.data.Dataset]:
    """The datasets that a dataset is made from."""
    return dataset._inputs()


def arrays_in(dataset: tf.data.Dataset) -> list[tf.Tensor]:
    """The arrays that a dataset of arrays holds, as tensors; nothing of other datasets."""
    return [tensor for tensor in getattr(dataset, "_tensors", ()) if isinstance(tensor, tf.Tensor)]


def undistributed(data: Any) -> Any:
    """The dataset that a distributed one was made from; anything else as it is.

    Raises:
        TypeError: if that cannot be had.
    """
    if not isinstance(data, tf.distribute.DistributedDataset):
        return data
    original, function = getattr(data, "_original_dataset", None), getattr(data, "_dataset_fn", None)
    if original is None and function is not None and getattr(data, "_num_replicas_in_sync", None) == 1:
        original = function(tf.distribute.InputContext())
    if original is None:
        raise TypeError(
            f"A {type(data).__name__} holds the batches of each of several replicas. Give the tf.data.Dataset itself, with the batch size "
            "of all replicas together: loops spreads its batches over the replicas."
        )
    return original


def can_be_in_checkpoint(iterator: Any) -> bool:
    """Whether `tf.train.Checkpoint` takes the object."""
    return isinstance(iterator, resolved(TRACKING).Trackable)
