"""Every name of TensorFlow and Keras that `loops` uses though it is not public: one function for each, and what a release must have.

A release may rename these without notice. The functions are the only place to change then, and `import loops` fails with a sentence that
says what the installed release lacks. Where the code works without a name (slower, or without a convenience), the name is optional.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

# The releases whose names these are, and that the tests run with.
SUPPORTED = {"TensorFlow": "2.21", "Keras": "3.15"}

# Modules of op functions, of which `loops.xla` replaces some while it traces.
NN_OPS = "tensorflow.python.ops.gen_nn_ops"
STATELESS_RANDOM_OPS = "tensorflow.python.ops.gen_stateless_random_ops"
STATELESS_RANDOM_OPS_V2 = "tensorflow.python.ops.gen_stateless_random_ops_v2"
SLICE_ASSIGN = "_strided_slice_assign"  # the method of a variable behind `variable[i].assign`

_CONTEXT = "tensorflow.python.eager.context"
_FORWARD = "tensorflow.python.eager.forwardprop_util"
_OP_DEFINITIONS = "tensorflow.python.framework.op_def_registry"
_AUTOGRAPH = "tensorflow.__internal__.autograph"
_TRACKING = "tensorflow.__internal__.tracking"
_ADAPTERS = "keras.src.trainers.data_adapters"
_ADAPTER_TOOLS = "keras.src.trainers.data_adapters.data_adapter_utils"
_SAVING = "keras.src.saving.saving_lib"
_GLOBAL_STATE = "keras.src.backend.common.global_state"

# Module or class -> its names, or the attributes of its objects.
NEEDED: dict[str, tuple[str, ...]] = {
    _CONTEXT: ("context",),
    _FORWARD: ("pack_tangents",),
    _OP_DEFINITIONS: ("get",),
    _AUTOGRAPH: ("control_status_ctx", "tf_convert"),
    _TRACKING: ("Trackable",),
    "tensorflow.Graph": ("_functions",),
    "tensorflow.data.Dataset": ("_variant_tensor", "_inputs"),
    _ADAPTERS: ("get_data_adapter",),
    _ADAPTER_TOOLS: ("class_weight_to_sample_weights", "is_scipy_sparse"),
    "keras.layers.Layer": ("_flatten_layers", "_trainable_variables", "_call_has_training_arg"),
    "keras.Model": ("_compute_loss", "_loss_tracker", "_symbolic_build"),
    "keras.optimizers.Optimizer": ("_backend_update_step", "_get_variable_index", "_learning_rate", "_trainable_variables"),
    "keras.optimizers.Adam": ("_momentums", "_velocities"),
}

# Not their arguments, which the program that resumes gives them again, nor what belongs to one call or one process.
_ATTRIBUTES_OF_CALLBACKS: dict[type, tuple[str, ...]] = {
    keras.callbacks.BackupAndRestore: ("_current_epoch", "_last_batch_seen", "_batches_seen_since_last_saving"),
    keras.callbacks.EarlyStopping: ("best", "best_epoch", "wait", "stopped_epoch"),
    keras.callbacks.History: ("epoch", "history"),
    keras.callbacks.ModelCheckpoint: ("best", "_current_epoch", "_last_batch_seen", "_batches_seen_since_last_saving"),
    keras.callbacks.ReduceLROnPlateau: ("best", "wait", "cooldown_counter"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
}

# What the code does without: the model's jit_compile is not seen; BackupAndRestore's epoch is not taken over; the direction of a metric
# has to be given; Keras callbacks are called at every step; functions are searched by their definitions; arrays inside a dataset are not
# measured; `Variable.value` is read; weights are written while training waits; XLA compiles slower ops; less of a callback is remembered.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "keras.Model": ("_jit_compile", "_initial_epoch"),
    "keras.metrics.Accuracy": ("_direction",),
    "keras.callbacks.Callback.on_epoch_end": ("_is_default",),
    "tensorflow.python.eager.polymorphic_function.atomic_function.AtomicFunction": ("_cached_graph",),
    "tensorflow.python.data.ops.from_tensor_slices_op._TensorSliceDataset": ("_tensors",),
    "keras.Variable": ("_value",),
    _SAVING: ("get_attr_skipset",),
    _GLOBAL_STATE: ("set_global_attribute",),
    NN_OPS: ("conv2d", "conv2d_backprop_input", "max_pool"),
    STATELESS_RANDOM_OPS: ("stateless_multinomial",),
    STATELESS_RANDOM_OPS_V2: (
        "stateless_random_get_key_counter",
        "stateless_random_uniform_v2",
        "stateless_random_normal_v2",
        "stateless_truncated_normal_v2",
        "stateless_random_uniform_full_int_v2",
        "stateless_random_uniform_int_v2",
    ),
    **{f"keras.callbacks.{kind.__name__}": names for kind, names in _ATTRIBUTES_OF_CALLBACKS.items()},
}


# What is there.


def missing(names: Mapping[str, Sequence[str]] = NEEDED) -> list[str]:
    """Which of `names` the installed TensorFlow and Keras do not have.

    Example:
        >>> missing(), missing({"tensorflow.Graph": ("_functions", "_made_up")})
        ([], ['tensorflow.Graph._made_up'])
    """
    return [f"{home}.{name}" for home, wanted in names.items() for name in wanted if not _has(_resolved(home), name)]


def unsupported() -> str | None:
    """A sentence if the installed TensorFlow and Keras lack a needed name: which, and what releases have it. Else None."""
    absent = missing()
    if not absent:
        return None
    supported = " and ".join(f"{package} {version}" for package, version in SUPPORTED.items())
    return (
        f"loops does not work with TensorFlow {tf.__version__} and Keras {keras.__version__}, which lack {', '.join(absent)}; "
        f"it supports {supported}."
    )


@functools.cache
def _module(path: str) -> Any:
    """The module, or what has the place of one in the public package; None if there is none."""
    try:
        return importlib.import_module(path)
    except ImportError:
        return None


def _resolved(path: str) -> Any:
    """The module or object of a dotted path, None if there is none."""
    found = _module(path)
    if found is None and "." in path:
        home, _, name = path.rpartition(".")
        found = getattr(_resolved(home), name, None)
    return found


def _has(owner: Any, name: str) -> bool:
    if hasattr(owner, name):
        return True
    # Attributes that methods give to an object. No object is made to see them: that would start TensorFlow, and count Keras's names on.
    return isinstance(owner, type) and any(name in _names_in(method) for kind in owner.__mro__ for method in vars(kind).values())


def _names_in(method: Any) -> set[str]:
    code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
    names, to_visit = set(), [code] if code is not None else []
    while to_visit:
        code = to_visit.pop()
        names.update(code.co_names)
        to_visit.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return names


# TensorFlow: graphs and ops.


def op_definition(op_type: str) -> Any:
    """The `OpDef` of an op type such as "MatMul"; None if it is unknown, as that of a function is."""
    return _module(_OP_DEFINITIONS).get(op_type)


def functions_of(graph: tf.Graph) -> Mapping[str, Any]:
    """The functions that were traced within a graph, by name."""
    return graph._functions


def graph_of_function(function: Any) -> tf.Graph | None:
    """The graph that a function was traced into; None if it has none in this process."""
    return getattr(function, "_cached_graph", None)


def registered_function(name: str) -> Any:
    """The `FunctionDef` of a function that the eager runtime knows, None if it knows none of that name."""
    eager = _module(_CONTEXT).context()
    return eager.get_function_def(name) if eager.has_function(name) else None


def op_module(path: str) -> Any:
    """A module of op functions, such as `NN_OPS`; None if TensorFlow has it no more."""
    return _module(path)


def have_tangents(tensors: Sequence[tf.Tensor]) -> bool:
    """Whether a `tf.autodiff.ForwardAccumulator` watches one of the tensors."""
    return bool(_module(_FORWARD).pack_tangents(tensors).tangents)


# Taken outside of any tf.function, where the status is "not decided", so that `tf_convert` converts by default.
_UNDECIDED = None if missing({_AUTOGRAPH: NEEDED[_AUTOGRAPH]}) else _resolved(_AUTOGRAPH).control_status_ctx()


def converted_by_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with Python `if` and `while` on tensors turned into graph control flow."""
    return _resolved(_AUTOGRAPH).tf_convert(function, _UNDECIDED)


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


def can_be_in_checkpoint(iterator: Any) -> bool:
    """Whether `tf.train.Checkpoint` takes the object."""
    return isinstance(iterator, _resolved(_TRACKING).Trackable)


def data_adapter(**arguments: Any) -> Any:
    """Keras's adapter for whatever `model.fit` takes as data; the arguments are those of `fit`."""
    return _module(_ADAPTERS).get_data_adapter(**arguments)


def sample_weights_of_classes(y: Any, class_weight: Mapping[int, float]) -> Any:
    """The weight of each example by its class, computed as Keras does."""
    return _module(_ADAPTER_TOOLS).class_weight_to_sample_weights(y, class_weight)


def is_scipy_sparse(value: Any) -> bool:
    """Whether the value is a sparse matrix of SciPy, which need not be installed."""
    return bool(_module(_ADAPTER_TOOLS).is_scipy_sparse(value))


# Keras: layers, models and metrics.


def layers_within(layer: keras.layers.Layer, *, include_self: bool = True) -> list[keras.layers.Layer]:
    """A layer or model and the layers inside it, at any depth."""
    return list(layer._flatten_layers(include_self=include_self))


def own_trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables that the layer itself, not one inside it, made as trainable ones; also while it is frozen."""
    return layer._trainable_variables


def takes_training(model: keras.Model) -> bool:
    """Whether the model's `call` has an argument `training`."""
    return bool(model._call_has_training_arg)


def loss_in_step(model: keras.Model, **arguments: Any) -> tf.Tensor:
    """The compiled loss, computed by the model's `compute_loss`, whatever arguments an override takes."""
    return model._compute_loss(**arguments)


def loss_tracker(model: keras.Model) -> Any:
    """The metric that averages the loss of a compiled model; None if it has none."""
    return getattr(model, "_loss_tracker", None)


def build_by_shapes(model: keras.Model, batch: Any) -> None:
    """Builds a compiled model with its metrics and optimizer for batches like `batch`, which may be made of type specs."""
    model._symbolic_build(data_batch=batch)


def jit_compile_setting(model: keras.Model) -> Any:
    """What `compile(jit_compile=...)` was given: True, False, "auto", or None if that is not known."""
    return getattr(model, "_jit_compile", None)


def epoch_to_begin_with(model: keras.Model) -> int | None:
    """The epoch that `keras.callbacks.BackupAndRestore` wants to begin with; None or 0 if it wants none."""
    return getattr(model, "_initial_epoch", None)


def direction_of_metric(metric: keras.metrics.Metric) -> str | None:
    """Whether a metric should go "up" or "down"; None if it does not say."""
    return getattr(metric, "_direction", None)


def does_nothing(method: Callable[..., Any]) -> bool:
    """Whether a method of a callback is the empty one of its base class."""
    return bool(getattr(method, "_is_default", False))


def remembering_attributes(callback: keras.callbacks.Callback) -> list[str]:
    """Which attributes decide how one of Keras's own callbacks goes on, those that it has."""
    names = [name for kind, names in _ATTRIBUTES_OF_CALLBACKS.items() if isinstance(callback, kind) for name in names]
    return [name for name in names if hasattr(callback, name)]


def tensorflow_variable(variable: Any) -> Any:
    """The TensorFlow variable in a Keras variable, whatever scope is entered; None if it has none."""
    return getattr(variable, "_value", None)


def remember_what_is_not_saved(kinds: Iterable[str]) -> None:
    """Tells Keras's writer of weights, in this thread, which attributes of these kinds of objects are none that it saves.

    To find that out the writer makes an object of each kind, every time. It has a cache for the answer, but writes it under another name
    than it reads it.

    Raises:
        Exception: whatever comes up if Keras does this in another way now.
    """
    for kind in kinds:
        _module(_GLOBAL_STATE).set_global_attribute(f"saving_attr_skiplist_{kind}", _module(_SAVING).get_attr_skipset(kind))


# Keras: optimizers.


def variables_to_update(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables that an optimizer was built for."""
    return optimizer._trainable_variables


def learning_rate_setting(optimizer: keras.optimizers.Optimizer) -> Any:
    """What the learning rate comes from: a variable, a schedule or a callable. The public attribute gives the current value instead."""
    return optimizer._learning_rate


def place_of(variable: keras.Variable, optimizer: keras.optimizers.Optimizer) -> int:
    """The index of a variable in the lists of the optimizer's slots."""
    return optimizer._get_variable_index(variable)


def adam_slots(optimizer: keras.optimizers.Adam, index: int) -> tuple[keras.Variable, keras.Variable]:
    """First and second moment of the variable with that index."""
    return optimizer._momentums[index], optimizer._velocities[index]


def update_step_of(optimizer: keras.optimizers.Optimizer) -> Callable[[Sequence[Any], Sequence[Any], Any], None]:
    """What the optimizer calls to update variables: (gradients, variables, learning rate)."""
    return optimizer._backend_update_step


@contextlib.contextmanager
def update_step_replaced(
    optimizer: keras.optimizers.Optimizer, step: Callable[[Sequence[Any], Sequence[Any], Any], None]
) -> Iterator[None]:
    """Within this context the optimizer calls `step` in place of `update_step_of(optimizer)`."""
    vars(optimizer)["_backend_update_step"] = step  # not by setattr: Keras would track it
    try:
        yield
    finally:
        del vars(optimizer)["_backend_update_step"]
