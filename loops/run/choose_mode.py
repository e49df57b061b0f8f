"""`loops.choose_mode` measures on request which of graph mode and XLA is faster. A run itself goes by a rule, `engine/compile_mode.py`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any, Literal

from loops.engine import mode_timing
from loops.engine.program import Program
from loops.engine.step import GlobalStep
from loops.feeds import Block, DatasetFeed, Feed, Position
from loops.feeds.dataset_inspection import Replay
from loops.messages import say
from loops.tasks.clipping import as_transforms
from loops.user_errors.tracebacks import shortened

__all__ = ["Measured", "choose_mode"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What `choose_mode` measured.

    Attributes:
        mode: the faster one, "graph" or "xla": what to give as `compile=`.
        microseconds_per_step: mode -> the median over the rounds; without "xla" if XLA cannot compile the step.
        seconds_to_compile: mode -> seconds of tracing, compiling and the first step.
        times: how many times the steps of a graph XLA does, the median over the rounds of the ratio within one; None if it cannot.
        reason: why XLA cannot compile the step, else None.
    """

    mode: Literal["graph", "xla"]
    microseconds_per_step: dict[str, float]
    seconds_to_compile: dict[str, float]
    times: float | None
    reason: str | None = None

    def __str__(self) -> str:
        lines = [f"{'mode':<8}{'us a step':>12}{'s to compile':>14}"]
        for mode, microseconds in self.microseconds_per_step.items():
            lines.append(f"{mode:<8}{microseconds:>12,.1f}{self.seconds_to_compile[mode]:>14.1f}")
        if self.reason is not None:
            lines.append(f"{'xla':<8}{self.reason}")
        said = f"; XLA does {self.times:.2f} times the steps of a graph" if self.times is not None else ""
        return "\n".join([*lines, f'The faster one: compile="{self.mode}"{said}.'])


@shortened
def choose_mode(loop: Any) -> Measured:
    """Measures a training step as a graph and under XLA, in turns on one block of the loop's data, and prints the table.

    All variables, optimizers and metrics included, get their values back: the loop trains as if it had not been asked. `compile="auto"`
    does not look at this; give the mode to a new loop, as in `TrainLoop(..., compile=loops.choose_mode(loop).mode)`. A busy machine, or
    another one, may give another answer.

    Args:
        loop: a `TrainLoop` that is not running; it may have run before. Of a `tf.data` pipeline some batches are read.

    Returns:
        What was measured; `mode` is the faster one. XLA compiles for `seconds_to_compile`, so it does not pay for a short run.

    Raises:
        ValueError: under several replicas, where there is no choice, and for data that cannot be read without changing what the loop would
            read: a generator, a pipeline that shuffles anew in each pass, and the like.

    Example:
        >>> import keras, loops, numpy as np
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> measured = choose_mode(loops.TrainLoop(task, loops.ArrayFeed((np.ones([64, 4]), np.ones([64, 1])))))
        mode       us a step  s to compile
        ...
        >>> sorted(measured.microseconds_per_step)
        ['graph', 'xla']
    """
    if loop.strategy.num_replicas_in_sync > 1:
        raise ValueError("loops.choose_mode compares programs of one device; under several replicas a window is a graph in any case.")
    feed, guarded = loop.feed, loop.on_nonfinite.action != "ignore"
    block = _first_block(feed)
    observes = frozenset().union(*(hook.observes for hook in loop.hooks))

    def program(mode: str) -> Callable[[], Program]:
        step = GlobalStep(
            loop.task,
            "train_step",
            loop.strategy,
            seed=loop.seed,
            transforms=as_transforms(loop.clip),
            observes=observes,
            fuse=mode == "graph",
        )
        return lambda: Program(step, mode)

    times = mode_timing.measure({mode: program(mode) for mode in ("graph", "xla")}, block, feed.element_spec, guarded=guarded)
    ratio = None
    if times.refused is None:
        ratio = statistics.median(g / x for g, x in zip(times.of["graph"].seconds, times.of["xla"].seconds, strict=True))
    measured = Measured(
        mode="xla" if ratio is not None and ratio > 1 else "graph",
        microseconds_per_step={mode: round(1e6 * t.median, 1) for mode, t in times.of.items()},
        seconds_to_compile={mode: round(t.compile_seconds, 1) for mode, t in times.of.items()},
        times=ratio,
        reason=times.refused,
    )
    say(str(measured))
    return measured


def _first_block(feed: Feed) -> Block:
    again = feed.seekable and not feed.passes_apart
    if isinstance(feed, DatasetFeed):
        again = not feed.passes_apart and feed.pipeline.replay is Replay.NOTHING
    if not again:
        raise ValueError(
            f"loops.choose_mode would read batches of {feed!r}, which would change those that training gets: give a loop of its own, with "
            "arrays or a tf.data pipeline that does not shuffle, of the same sizes."
        )
    return next(iter((DatasetFeed(feed.dataset) if isinstance(feed, DatasetFeed) else feed.held()).blocks(Position())))
