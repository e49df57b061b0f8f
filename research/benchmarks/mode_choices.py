"""What the rule of `compile="auto"` chooses for a model, beside what is measured. `scripts/mode_choices.py` shows it."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import loops
from loops.engine import compile_mode, mode_timing
from loops.engine.program import Program
from loops.engine.step import GlobalStep
from loops.feeds import Position
from research.benchmarks import mode_fit
from research.benchmarks.held_out_models import HELD_OUT
from research.benchmarks.machine_speed import Turns
from research.benchmarks.more_models import FITTED
from research.benchmarks.workloads import WORKLOADS

__all__ = ["GROUPS", "Row", "candidates", "fitted", "measured"]

GROUPS = ("benchmark", "fitted", "held out")
BATCHES = (32, 128, 512)
_LONG = 10**9  # steps: so many that compiling does not count
# Models whose evaluation is measured, too: a third of each group.
_EVALUATED = (
    *("mlp_sgd@32", "mlp_sgd@512", "mlp_adam@128", "selu@32", "conv@32", "conv@512", "wide_deep@32", "wide_deep@512"),
    *("lstm", "transformer", "resnet20", "mlp_2048", "conv1d", "mlp_bfloat16", "layer_norm_mlp", "grouped", "transformer_tiny"),
    *("mlp_1024_deep", "autoencoder", "conv_batch_256", "resnet_wide_batch_128", "gru", "recommender", "conv_average_pooling"),
    *("mlp_swish_nadam", "mlp_thousand_classes", "mlp_residual", "mlp_lion_1024", "linear_regression", "mixer", "gru_64", "conv1d_audio"),
    *("conv_pointwise", "conv_5x5", "conv_deep_narrow", "conv_group_norm", "vision_transformer", "language_model", "attention_pooling"),
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model with its data.

    Attributes:
        name: as in the table.
        group: one of `GROUPS`; the rule was fitted to the first two.
        task, feed: make the task, and some batches in arrays.
        forward: whether the step is that of an evaluation.
    """

    name: str
    group: str
    task: Callable[[], loops.Task]
    feed: Callable[[], loops.ArrayFeed]
    forward: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """What was measured of a model, and what the rule says.

    Attributes:
        name, group: as those of the candidate.
        chosen: the mode that the rule takes for a long run, and why.
        estimated: how many times the steps of a graph XLA does by the rule; None if a step has something that rules XLA out.
        times: the same as measured, the median of the ratios within a round; None if XLA cannot compile the step.
        spread: the quartiles of these ratios.
        microseconds: mode -> a step, in the fastest tenth of the rounds.
        compile_seconds: mode -> tracing, compiling and the first step.
        work: what the rule counts in a step, by the names of `compile_mode.UNITS`; empty if something in it rules XLA out.
    """

    name: str
    group: str
    chosen: str
    reason: str
    estimated: float | None
    times: float | None
    spread: tuple[float, float] | None
    microseconds: dict[str, float]
    compile_seconds: dict[str, float]
    work: dict[str, float]

    @property
    def cost(self) -> float:
        """How much slower the chosen mode is than the faster one: 1.0 if it is the faster."""
        if self.times is None:
            return 1.0
        return max(1.0, self.times if self.chosen == "graph" else 1 / self.times)


def candidates() -> Iterator[Candidate]:
    """Training steps of all models, then evaluations of some."""
    of_training = list(_of_training())
    yield from of_training
    for one in of_training:
        if one.name in _EVALUATED:
            yield dataclasses.replace(one, name=f"{one.name}, evaluated", forward=True)


def _of_training() -> Iterator[Candidate]:
    """The workloads of the benchmark in three batch sizes, and the models of `more_models.py` and `held_out_models.py`."""
    for name, workload in WORKLOADS.items():
        if name in FITTED:
            continue
        for size in BATCHES:
            sized = workload.resized(rows=40 * size, batch_size=size)
            yield Candidate(f"{name}@{size}", GROUPS[0], functools.partial(_task_of, sized), functools.partial(_feed_of, sized))
    for group, cases in zip(GROUPS[1:], (FITTED, HELD_OUT), strict=True):
        for name, case in cases.items():
            yield Candidate(name, group, case.task, case.feed)


def _task_of(workload: Any) -> loops.Task:
    return loops.KerasTask(workload.model())


def _feed_of(workload: Any) -> loops.ArrayFeed:
    return loops.ArrayFeed(workload.data(), workload.batch_size, shuffle=True)


def measured(candidate: Candidate, turns: Turns | None = None) -> Row:
    """What the rule chooses for a candidate, and both modes timed in turns, in this process.

    Args:
        candidate: the model.
        turns: decides whether what was timed counts; None times nothing, and only asks the rule.
    """
    keras.utils.clear_session()
    task, feed = candidate.task(), candidate.feed()

    def program(mode: str) -> Program:
        method = "eval_step" if candidate.forward else "train_step"
        return Program(GlobalStep(task, method, tf.distribute.get_strategy(), fuse=mode == "graph" and not candidate.forward), mode)

    why = compile_mode.choose(program, feed, steps=_LONG, saved=False, guarded=False, forward=candidate.forward).why
    costs, work = why.get("estimated_microseconds_per_step"), why.get("work", {})
    estimated = None if costs is None else round(costs["graph"] / costs["xla"], 2)
    if turns is None:
        return Row(candidate.name, candidate.group, why["mode"], why["reason"], estimated, None, None, {}, {}, work)
    block = next(iter((feed if candidate.forward else feed.held()).blocks(Position())))  # as runs and evaluations read them
    programs = {mode: functools.partial(program, mode) for mode in ("graph", "xla")}
    found = turns.take(lambda: mode_timing.measure(programs, block, feed.element_spec, guarded=False))
    assert found is not None
    fastest = {mode: sorted(times.seconds)[len(times.seconds) // 10] for mode, times in found.of.items()}
    times = spread = None
    if found.refused is None:
        ratios = [g / x for g, x in zip(found.of["graph"].seconds, found.of["xla"].seconds, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        times, spread = round(quartiles[1], 2), (round(quartiles[0], 2), round(quartiles[2], 2))
    return Row(
        candidate.name,
        candidate.group,
        why["mode"],
        why["reason"],
        estimated,
        times,
        spread,
        {mode: round(1e6 * seconds, 1) for mode, seconds in fastest.items()},
        {mode: round(times.compile_seconds, 1) for mode, times in found.of.items()},
        work,
    )


def fitted(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """The rule's constants as these rows would have them, those that are held out aside."""
    usable = [row for row in rows if row.times is not None and row.work and row.group != GROUPS[2]]
    seconds = np.array([[1e-6 * row.microseconds[mode] for row in usable] for mode in ("graph", "xla")])
    work = [{kind: row.work.get(kind, 0.0) for kind in compile_mode.UNITS} for row in usable]
    found = mode_fit.fit(work, seconds, np.array([row.times for row in usable]), np.array(list(compile_mode.RULE.values())).T)
    return {kind: (float(graph), float(xla)) for kind, graph, xla in zip(compile_mode.UNITS, *found, strict=True)}
