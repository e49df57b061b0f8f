"""What a release of TensorFlow and Keras must have: tables of the names that are not public, and which of them are missing."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

# The releases whose names these are, and that the tests run with.
SUPPORTED = {"TensorFlow": "2.21", "Keras": "3.15"}

# Modules of op functions, of which `loops.xla` replaces some while it traces.
NN_OPS = "tensorflow.python.ops.gen_nn_ops"
STATELESS_RANDOM_OPS = "tensorflow.python.ops.gen_stateless_random_ops"
SLICE_ASSIGN = "_strided_slice_assign"  # the method of a variable behind `variable[i].assign`
STATELESS_RANDOM_OPS_V2 = "tensorflow.python.ops.gen_stateless_random_ops_v2"

CONTEXT = "tensorflow.python.eager.context"
COORDINATION = "tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2"
FORWARD = "tensorflow.python.eager.forwardprop_util"
OP_CALLBACKS = "tensorflow.python.framework.op_callbacks"
OP_DEFINITIONS = "tensorflow.python.framework.op_def_registry"
LOSS = "keras.src.losses.loss"
LOSS_SCALING = ("scale_loss_for_distribution", "unscale_loss_for_distribution")
LOSS_REDUCTION = "reduce_values"
COMPILE_TOOLS = "keras.src.trainers.compile_utils"
VARIABLES = "tensorflow.python.ops.resource_variable_ops"
# It keeps collectives in order by variables of its own, whose values mean nothing.
COLLECTIVES = "tensorflow.python.distribute.cross_device_utils"
RANDOM_SEEDS = "tensorflow.python.framework.random_seed"
WRAPPERS = "tensorflow.python.trackable.data_structures"
AUTOGRAPH = "tensorflow.__internal__.autograph"
TRACKING = "tensorflow.__internal__.tracking"
ADAPTERS = "keras.src.trainers.data_adapters"
ADAPTER_TOOLS = "keras.src.trainers.data_adapters.data_adapter_utils"
SAVING = "keras.src.saving.saving_lib"
GLOBAL_STATE = "keras.src.backend.common.global_state"

# Module or class -> its names, or the attributes of its objects.
NEEDED: dict[str, tuple[str, ...]] = {
    CONTEXT: ("context",),
    FORWARD: ("pack_tangents",),
    OP_CALLBACKS: ("add_op_callback", "remove_op_callback"),
    OP_DEFINITIONS: ("get",),
    AUTOGRAPH: ("control_status_ctx", "tf_convert"),
    TRACKING: ("Trackable",),
    "tensorflow.Graph": ("_functions",),
    "tensorflow.data.Dataset": ("_variant_tensor", "_inputs"),
    LOSS: (*LOSS_SCALING, LOSS_REDUCTION),
    COMPILE_TOOLS: ("get_loss",),
    ADAPTERS: ("get_data_adapter",),
    ADAPTER_TOOLS: ("class_weight_to_sample_weights", "is_scipy_sparse"),
    "keras.layers.Layer": ("_flatten_layers", "_call_has_training_arg"),
    "keras.Model": ("_compute_loss", "_flatten_metrics_in_order", "_loss_tracker", "_symbolic_build"),
    "keras.optimizers.Optimizer": (
        "_accumulated_gradients",
        "_apply_weight_decay",
        "_backend_apply_gradients",
        "_all_reduce_sum_gradients",
        "_backend_update_step",
        "_clip_gradients",
        "_get_variable_index",
        "_iterations",
        "_learning_rate",
        "_track_variable",
        "_trainable_variables",
        "_trainable_variables_indices",
        "_untrack_variable",
        "_var_key",
        "_variables",
    ),
    "keras.optimizers.Adam": ("_momentums", "_velocities"),
}

# Not their arguments, which the program that resumes gives them again, nor what belongs to one call or one process.
ATTRIBUTES_OF_CALLBACKS: dict[type, tuple[str, ...]] = {
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
# measured; distributed data sets are refused; `Variable.value` is read; weights are written while training waits; XLA compiles slower ops;
# less of a callback is remembered; a wrong name of a loss or a metric shows at the first batch, a callback whose direction cannot be told
# after the first epoch; several processes are refused.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "keras.Model": ("_jit_compile", "_initial_epoch", "_compile_loss", "_compile_metrics"),
    "keras.metrics.Accuracy": ("_direction",),
    "keras.callbacks.Callback.on_epoch_end": ("_is_default",),
    "tensorflow.python.eager.polymorphic_function.atomic_function.AtomicFunction": ("_cached_graph",),
    "tensorflow.python.data.ops.from_tensor_slices_op._TensorSliceDataset": ("_tensors",),
    "tensorflow.python.distribute.input_lib.DistributedDataset": ("_original_dataset",),
    "tensorflow.python.distribute.input_lib.DistributedDatasetsFromFunction": ("_dataset_fn", "_num_replicas_in_sync"),
    "keras.Variable": ("_value",),
    f"{CONTEXT}.Context": ("_context_handle", "configure_coordination_service", "coordination_service"),
    COORDINATION: ("CoordinatedJob",),
    SAVING: ("get_attr_skipset",),
    GLOBAL_STATE: ("set_global_attribute", "get_global_attribute"),
    TRACKING: ("AutoTrackable",),
    VARIABLES: ("BaseResourceVariable", "variable_accessed", "_UnreadVariable"),
    RANDOM_SEEDS: ("get_seed",),
    WRAPPERS: ("_DictWrapper", "_TupleWrapper"),
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
    **{f"keras.callbacks.{kind.__name__}": names for kind, names in ATTRIBUTES_OF_CALLBACKS.items()},
    "keras.callbacks.EarlyStopping": (*ATTRIBUTES_OF_CALLBACKS[keras.callbacks.EarlyStopping], "_set_monitor_op"),
}


def missing(names: Mapping[str, Sequence[str]] = NEEDED) -> list[str]:
    """Which of `names` the installed TensorFlow and Keras do not have.

    Example:
        >>> missing(), missing({"tensorflow.Graph": ("_functions", "_made_up")})
        ([], ['tensorflow.Graph._made_up'])
    """
    return [f"{home}.{name}" for home, wanted in names.items() for name in wanted if not _has(resolved(home), name)]


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
def module(path: str) -> Any:
    """The module, or what has the place of one in the public package; None if there is none."""
    try:
        return importlib.import_module(path)
    except ImportError:
        return None


def resolved(path: str) -> Any:
    """The module or object of a dotted path, None if there is none."""
    found = module(path)
    if found is None and "." in path:
        home, _, name = path.rpartition(".")
        found = getattr(resolved(home), name, None)
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
