"""Who takes part in `scripts/benchmark.py`, in which rows. Imports none of them: each runs in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "CONTENDERS",
    "FIRST_STEP",
    "FITS",
    "GRAPH_FITS",
    "INFERENCE",
    "OTHERS",
    "PAIRS",
    "PEERS",
    "PLAN",
    "Entry",
    "Row",
    "contenders_of",
]

_KERAS, _LOOPS, _TORCH = "research.benchmarks.keras_fit:Fit", "research.benchmarks.ours:Ours", "research.benchmarks.torch_peers:Torch"
# Keras describes the network to PyTorch and JAX too; TensorFlow must not be imported beside PyTorch.
_BESIDE_TORCH = {"KERAS_BACKEND": "numpy", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """How the process of a contender makes it.

    Attributes:
        make: "module:Class" of a `Contender`.
        arguments: of the class.
        packages: what has to be installed.
        environment: variables of the process.
    """

    make: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    packages: tuple[str, ...] = ("tensorflow", "keras")
    environment: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"KERAS_BACKEND": "tensorflow"})


def _fit(**arguments: Any) -> Entry:
    return Entry(_KERAS, arguments)


def _keras_jax(steps: int) -> Entry:
    return Entry(_KERAS, {"steps_per_execution": steps}, ("keras", "jax"), {"KERAS_BACKEND": "jax"})


def _torch(make: str, *packages: str, **arguments: Any) -> Entry:
    return Entry(make, arguments, ("torch", *packages), _BESIDE_TORCH)


def _jax(scan: bool) -> Entry:
    return Entry("research.benchmarks.jax_peer:Jax", {"scan": scan}, ("jax", "optax"), {"KERAS_BACKEND": "jax"})


def _by_hand(name: str, **arguments: Any) -> Entry:
    return Entry(f"research.benchmarks.by_hand:{name}", arguments)


def _ours(compile: str, **arguments: Any) -> Entry:
    return Entry(_LOOPS, {"compile": compile, **arguments})


CONTENDERS: Mapping[str, Entry] = {
    "fit": _fit(),
    "fit_50": _fit(steps_per_execution=50, jit_compile=False),
    "fit_200": _fit(steps_per_execution=200, jit_compile=False),
    "fit_xla": _fit(jit_compile=True),
    "fit_50_xla": _fit(steps_per_execution=50, jit_compile=True),
    "fit_callbacks": _fit(callbacks=True),
    "keras_jax": _keras_jax(1),
    "keras_jax_50": _keras_jax(50),
    "torch": _torch(_TORCH),
    "torch_compile": _torch(_TORCH, compiled=True),
    "lightning": _torch("research.benchmarks.torch_peers:Lightning", "lightning"),
    "jax": _jax(scan=True),
    "jax_step": _jax(scan=False),
    "eager": _by_hand("EagerTape"),
    "while": _by_hand("WhileLoop", jit_compile=False),
    "while_xla": _by_hand("WhileLoop", jit_compile=True),
    "loops": _ours("graph"),
    "loops_guarded": _ours("graph", on_nonfinite="raise"),
    "loops_buffer": _ours("graph", buffer=True),
    "loops_buffer_guarded": _ours("graph", buffer=True, on_nonfinite="raise"),
    "loops_hooks": _ours("graph", hooks=True),
    "loops_snapshots": _ours("graph", hooks=True, snapshots=True),
    "loops_xla": _ours("xla"),
    "loops_xla_hooks": _ours("xla", hooks=True),
    "loops_auto": _ours("auto"),
    "loops_auto_hooks": _ours("auto", hooks=True),
    "products": Entry("research.benchmarks.limit:Products", {}, ("keras",), {"KERAS_BACKEND": "numpy"}),
}

GRAPH_FITS = ("fit", "fit_50", "fit_200")
FITS = (*GRAPH_FITS, "fit_xla", "fit_50_xla")
OTHERS = ("keras_jax", "keras_jax_50", "torch", "torch_compile", "lightning", "jax", "jax_step")
PEERS = (*FITS, *OTHERS)
PAIRS = (
    ("loops", "while"),
    ("loops_xla", "while_xla"),
    ("loops_guarded", "loops"),
    ("loops_buffer_guarded", "loops_buffer"),
    ("loops_hooks", "loops"),
    ("loops_xla_hooks", "loops_xla"),
    ("loops_auto_hooks", "loops_auto"),
    ("loops_snapshots", "loops_hooks"),
)
#: Those whose time to the first step is measured, and those that evaluate and predict, each with the best of its settings.
FIRST_STEP = ("fit", "fit_xla", "keras_jax", "loops", "loops_xla", "loops_auto")
INFERENCE = ("fit", "fit_50", "fit_50_xla", "keras_jax_50", "loops", "loops_xla", "loops_auto")


@dataclasses.dataclass(frozen=True)
class Row:
    """A workload in a batch size, from a source; `rows` examples, None for as many as the workload has."""

    workload: str
    batch_size: int = 32
    source: str = "arrays"
    rows: int | None = None

    @property
    def name(self) -> str:
        """As in tables and files: "mlp_sgd@32", "mlp_sgd@32 tf.data"."""
        return f"{self.workload}@{self.batch_size}" + (f" {self.source}" if self.source != "arrays" else "")


_FIVE = ("mlp_sgd", "mlp_adam", "selu_dropout", "conv", "wide_deep")
_FEWER = {"mlp_sgd": 9_600, "mlp_adam": 9_600, "selu": 9_600, "selu_dropout": 9_600}  # examples in batches of 32: epochs of half a second
PLAN: Sequence[Row] = (
    *(Row(name, rows=_FEWER.get(name)) for name in ("mlp_sgd", "mlp_adam", "selu", "selu_dropout", "conv", "wide_deep")),
    *(Row(name) for name in ("lstm", "transformer", "resnet20")),
    *(Row(name, size, rows=12_800 if name == "conv" else None) for size in (128, 512) for name in _FIVE),
    *(Row(name, source="tf.data", rows=_FEWER.get(name)) for name in _FIVE),
)

_ALL = (*FITS, *(name for name in OTHERS if name != "keras_jax"), "loops", "loops_xla", "loops_auto", "loops_auto_hooks")
# Settings that take long, or were never the best of their library in rows of the kind, are left out there.
_LARGER = ("fit_50", "fit_50_xla", "keras_jax_50", "torch", "jax", "jax_step", "loops", "loops_auto")
_PIPELINES = ("fit", "fit_50", "fit_50_xla", "keras_jax_50", "torch", "loops", "loops_xla", "loops_auto", "loops_auto_hooks")
_ONLY_WITH_CONVOLUTIONS = ("fit_xla", "jax_step")
_WITHOUT_LIGHTNING = ("selu", "selu_dropout")
_CONVOLUTIONS = ("conv", "resnet20")


def contenders_of(row: Row) -> list[str]:
    """The contenders that run in a row if none are named."""
    names = _PIPELINES if row.source != "arrays" else _ALL if row.batch_size == 32 else _LARGER
    left_out = {"jax"} if row.workload in _CONVOLUTIONS else set(_ONLY_WITH_CONVOLUTIONS)
    left_out |= {"lightning"} if row.workload in _WITHOUT_LIGHTNING else set()
    return [name for name in names if name not in left_out]
