"""Counts the work of a traced step: operations, floating-point work, elements. It reads shapes and runs nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from loops import _private_api
from loops.graphs import walk

__all__ = ["Work", "is_grouped", "work_of"]

# Grappler removes these, folds them where shapes are known, or they cost nothing beside the others.
_FREE = frozenset(
    {"Const", "Placeholder", "Identity", "NoOp", "ReadVariableOp", "Shape", "ShapeN", "VariableShape", "Reshape", "StopGradient"}
)
_FREE_PREFIXES = ("BroadcastGradientArgs", "Bitcast", "ExpandDims", "Squeeze", "IdentityN", "TensorList", "VarHandle")
_PRODUCTS = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum")
_SAME_SIZE = ("Reshape", "Squeeze", "ExpandDims", "Transpose", "Identity", "Cast")
_LOOPS = ("While", "StatelessWhile")
_AVERAGES = ("AvgPool", "AvgPool3D")
_LONG = 96
# Turns of a loop whose number is not in the graph.
_TURNS = 16


@dataclasses.dataclass
class Work:
    """What one step does. An operation in the body of a loop counts as often as the loop turns.

    Attributes:
        operations: operations that compute something.
        compiled: the same, each counted once: what a compiler has to work through.
        products: floating-point operations of matrix products, those of the next two kinds aside.
        batched: the same of products of two stacks of long matrices, with two dimensions of the stack or more, as those of attention.
        bfloat16: the same of all products of bfloat16 numbers.
        convolutions: floating-point operations of convolutions and their gradients, those of the next two kinds aside.
        strided: the same of convolutions with strides.
        grouped: the same of convolutions with groups.
        convolving: how many of the operations are convolutions or gradients of one.
        windows: numbers that average pooling writes, its gradient aside.
        elements: numbers that all other operations write.
    """

    operations: float = 0.0
    compiled: int = 0
    products: float = 0.0
    batched: float = 0.0
    bfloat16: float = 0.0
    convolutions: float = 0.0
    strided: float = 0.0
    grouped: float = 0.0
    convolving: float = 0.0
    windows: float = 0.0
    elements: float = 0.0


def work_of(graph: tf.Graph, batch: int) -> Work:
    """The work of one run of a graph.

    Args:
        graph: a traced step.
        batch: what stands for a first dimension that is not known.

    Example:
        >>> import tensorflow as tf
        >>> product = tf.function(lambda x: tf.matmul(x, tf.ones([3, 4])))
        >>> work = work_of(product.get_concrete_function(tf.TensorSpec([None, 3])).graph, batch=10)
        >>> work.operations, work.products
        (1.0, 240.0)
    """
    work = Work()
    _count(graph, [_private_api.functions_of(graph)], 1.0, _Sizes(batch), work)
    return work


def _count(graph: tf.Graph, libraries: list[Mapping[str, Any]], times: float, sizes: _Sizes, work: Work) -> None:
    for op in graph.get_operations():
        if walk.calls(op.type):
            turns = times * _turns(op) if op.type in _LOOPS else times
            for inner in _bodies(op, libraries):
                _count(inner, [_private_api.functions_of(inner), *libraries], turns, sizes, work)
        elif op.type not in _FREE and not op.type.startswith(_FREE_PREFIXES):
            work.operations += times
            work.compiled += 1
            if op.type in _PRODUCTS:
                kind = "bfloat16" if op.outputs[0].dtype == tf.bfloat16 else "batched" if _is_batched(op) else "products"
                setattr(work, kind, getattr(work, kind) + times * sizes.of_product(op))
            elif _is_convolution(op.type):
                kind = "grouped" if is_grouped(op) else "strided" if max(op.get_attr("strides")) > 1 else "convolutions"
                setattr(work, kind, getattr(work, kind) + times * sizes.of_convolution(op))
                work.convolving += times
            else:
                written = times * sum(map(sizes, op.outputs))
                work.elements += written
                work.windows += written if op.type in _AVERAGES else 0.0


def _is_batched(op: tf.Operation) -> bool:
    shapes = [factor.shape for factor in op.inputs[:2]]
    return all((shape.rank or 2) > 3 for shape in shapes) and max(d or 0 for shape in shapes for d in shape[1:].as_list()) >= _LONG


def _is_convolution(op_type: str) -> bool:
    return op_type.startswith(("Conv2D", "Conv3D", "DepthwiseConv"))


def is_grouped(op: tf.Operation) -> bool:
    """Whether an operation is a two-dimensional convolution, or a gradient of one, in which a filter sees some of the channels only."""
    if not op.type.startswith("Conv2D"):
        return False
    image = op.outputs[0] if op.type == "Conv2DBackpropInput" else op.inputs[0]
    kernel = op.outputs[0] if op.type == "Conv2DBackpropFilter" else op.inputs[1]
    at = -1 if op.get_attr("data_format") == b"NHWC" else 1
    channels, seen = (shape[i] if shape.rank == 4 else None for shape, i in ((image.shape, at), (kernel.shape, 2)))
    return channels is not None and seen is not None and channels != seen


def _bodies(op: tf.Operation, libraries: list[Mapping[str, Any]]) -> Iterator[tf.Graph]:
    names = list(walk.functions_named_by(op.node_def))
    if _is_choice_by_compiler(op):
        names = names[:1]
    for name in names:
        graph = _private_api.graph_of_function(next((library[name] for library in libraries if name in library), None))
        if graph is not None:
            yield graph


def _is_choice_by_compiler(op: tf.Operation) -> bool:
    """Whether an operation does TensorFlow's own kernel first, and else what XLA takes in its place (`loops.xla.replaced_ops`)."""
    if op.type not in ("Case", "StatelessCase"):
        return False
    index = op.inputs[0].op
    return any(source.type == "DeviceIndex" for source in (index, *(value.op for value in index.inputs)))


def _turns(op: tf.Operation) -> float:
    bound = op.inputs[1]  # `tf.while_loop` hands on its counter, then its bound; that of a layer of Keras is the maximum of one number
    most = tf.get_static_value(bound.op.inputs[0] if bound.op.type == "Max" else bound)
    return float(most) if most is not None and most.ndim == 0 and 0 < most < 1 << 30 else _TURNS


class _Sizes:
    """Numbers of elements of tensors; where the first dimension is not known, it is found from the inputs, or is that of a batch."""

    def __init__(self, batch: int):
        self._batch = batch
        self._known: dict[tuple[int, str], float] = {}

    def __call__(self, tensor: Any) -> float:
        if not isinstance(tensor.shape, tf.TensorShape) or tensor.shape.rank is None or tensor.dtype in (tf.resource, tf.variant):
            return 1.0
        if tensor.shape.is_fully_defined():
            return float(tensor.shape.num_elements())
        key = id(tensor.graph), tensor.name
        if key not in self._known:
            self._known[key] = self._found(tensor)
        return self._known[key]

    def _found(self, tensor: Any) -> float:
        op, dims = tensor.op, tensor.shape.as_list()
        inputs = list(op.inputs)
        if op.type in _SAME_SIZE and inputs:
            return self(inputs[0])
        if op.type == "MatMul" and inputs[1].shape.is_fully_defined():
            return self(inputs[0]) * (dims[-1] or 1) / (self(inputs[1]) / (dims[-1] or 1))
        inner = float(math.prod(d or 1 for d in dims[1:]))
        alike = [i for i in inputs if i.shape.rank == len(dims) and i.shape.as_list() == dims]
        return max([inner * (dims[0] or self._batch), *map(self, alike)])

    def of_product(self, op: tf.Operation) -> float:
        """Floating-point operations of a matrix product: two for each element of the one factor and each column of the other."""
        a, b, out = op.inputs[0], op.inputs[1], op.outputs[0]
        if op.type == "Einsum":
            left, right = op.get_attr("equation").decode().partition("->")[0].split(",")
            others = [d or self._batch for label, d in zip(right, b.shape.as_list(), strict=False) if label not in left]
            return 2.0 * self(a) * math.prod(others)
        columns = out.shape[-1] if out.shape.rank else None
        if columns is None:
            columns = self._batch
        return 2.0 * self(a) * float(columns)

    def of_convolution(self, op: tf.Operation) -> float:
        """Floating-point operations of a convolution or of one of its gradients: each sums the same products."""
        if "BackpropInput" in op.type:
            kernel, out = op.inputs[1], op.inputs[2]
        elif "Backprop" in op.type:
            kernel, out = op.outputs[0], op.inputs[2]
        else:
            kernel, out = op.inputs[1], op.outputs[0]
        shape = [d or 1 for d in kernel.shape.as_list()] if kernel.shape.rank else [1]
        taps = math.prod(shape[:-2] if op.type.startswith("Depthwise") else shape[:-1])
        return 2.0 * self(out) * taps
