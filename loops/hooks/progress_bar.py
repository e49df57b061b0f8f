"""Shows the progress of a run, one line for each epoch. It decides what a line says; `_progress_output.py` writes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import numpy as np

from loops import triggers
from loops.engine.rows import Window
from loops.engine.timing import Pace
from loops.hooks import _progress_output
from loops.hooks._progress_output import Part, duration, number
from loops.hooks.base import Hook, Loop, Phase

__all__ = ["ProgressBar"]

_FIRST_LOOK = 0.5  # seconds
_BURST, _LINES_PER_SECOND = 20, 10.0  # lines of finished epochs in a terminal: at once, and in the long run


class ProgressBar(Hook):
    """Shows one line per epoch: steps done, metrics, steps per second, time left.

    In a terminal the line of the running epoch is rewritten twice a second, never wider than the terminal; parts that do not fit are left
    out, and an ellipsis stands for metrics. In a file or a pipe every epoch gets a plain line, and a long epoch one every 30 seconds. In a
    notebook the output is updated in place. To keep a fast loop fast, the hook looks at most twice a second, and a terminal shows at most
    ten epochs a second, but always the last.

    Args:
        verbose: 0: nothing; 1 or "auto": as above; 2: one plain line per epoch, whatever the stream is.
        stream: where to write; standard output if None.

    Example:
        >>> import io, keras, loops, numpy as np
        >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x, out = np.ones([64, 3], "float32"), io.StringIO()
        >>> history = loops.fit(model, x, x[:, :1], epochs=2, verbose=0, hooks=[ProgressBar(stream=out)])
        >>> print(out.getvalue())
        Epoch 1/2  2 steps in ...s  loss ...
        Epoch 2/2  2 steps in ...s  loss ...
    """

    phase = Phase.RECORD
    final_window = True

    def __init__(self, verbose: int | str = "auto", *, stream: TextIO | None = None):
        if verbose not in (0, 1, 2, "auto"):
            raise ValueError(f'ProgressBar(verbose=...) takes 0, 1, 2 or "auto"; got {verbose!r}.')
        self.verbose, self._stream = verbose, stream
        self.progress_verbosity = 1 if verbose == "auto" else int(verbose)
        self._trigger = triggers.EverySeconds(_FIRST_LOOK)
        self.every = None if verbose == 0 else self._trigger
        self._output = _progress_output.Output()
        self._pace = Pace()
        self._clock: Callable[[], float] | None = None
        self._begin(0.0, 0)

    def _begin(self, now: float, step: int) -> None:
        self._trigger.seconds = _FIRST_LOOK
        self._is_first_look = True
        self._logs: Mapping[str, Any] = {}
        self._evaluated: set[str] = set()
        self._unshown: list[Part] | None = None
        self._allowance, self._allowed_at = float(_BURST), now
        self._epoch_begin, self._speed_begin = now, (now, step)
        self._seconds_per_step: float | None = None  # in the last epoch, evaluations and hooks included
        self._shown_at, self._evaluating_at = now, -math.inf

    def on_train_begin(self, loop: Loop) -> None:
        self._output = _progress_output.output_for(self._stream, self.verbose)
        self._clock = loop.clock
        self._begin(loop.clock(), loop.progress.step)
        self._pace.start(loop.progress.step, loop.clock())

    def on_epoch_begin(self, loop: Loop) -> None:
        now, step = loop.clock(), loop.progress.step
        self._epoch_begin, self._speed_begin = now, (now, step)
        self._pace.start(step, now)
        if not self._output.rewrites:
            # The line of the epoch before has just been written: the interval to the next line begins here.
            self._shown_at = now
            if not self._is_first_look:
                self._trigger.start(now)

    def on_window_end(self, loop: Loop, window: Window) -> None:
        now, step = loop.clock(), loop.progress.step
        if not loop.progress.epoch_ended:
            self._logs = dict(window.logs)
            # The first look may come earlier than the output wants a line, and so may the last, for `final_window`.
            if now - self._shown_at >= 0.9 * self._output.seconds:
                self._shown_at = now
                self._output.show(self._running_parts(loop, now))
        if self._is_first_look:
            # The time up to the first look includes compilation, so the speed is measured from here on.
            self._is_first_look, self._speed_begin = False, (now, step)
            self._pace.start(step, now)
            self._trigger.seconds = self._output.seconds

    def on_evaluate_begin(self, loop: Loop, name: str) -> None:
        now = loop.clock()
        self._pace.pause(now)
        if self._output.rewrites and now - self._evaluating_at >= self._output.seconds:
            self._evaluating_at = now
            self._output.show(self._running_parts(loop, now, f"evaluating {name}"))

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        self._pace.go_on(loop.clock())
        self._evaluated.update(logs)

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        if self.verbose == 0:
            return
        now, progress = loop.clock(), loop.progress
        begin, first = self._speed_begin
        if progress.step > first:
            self._seconds_per_step = (now - begin) / (progress.step - first)
        steps_done = f"{progress.step_in_epoch} steps in {duration(now - self._epoch_begin)}"
        parts = [_epoch(loop), Part(steps_done, 5), *self._metrics(logs)]
        if (speed := self._pace.steps_per_second(progress.step, now)) > 0:
            parts.append(Part(f"{_speed(speed)} steps/s", 6))
        if left := self._run_left(loop, self._seconds_per_step):
            parts.append(Part(f"{duration(left)} left", 7))
        if not self._output.rewrites or self._may_show(now):
            self._output.finish(parts)
            self._unshown = None
        else:
            self._unshown = parts
        self._logs = {}

    def on_train_end(self, loop: Loop) -> None:
        if not loop.progress.epoch_ended and loop.progress.step_in_epoch and self._logs:
            self._output.finish(self._running_parts(loop, loop.clock()))
        elif self._unshown is not None:
            self._output.finish(self._unshown)
        self._output.close()
        if loop.outcome == "stopped" and loop.stop_reason:
            self._output.finish([Part(f"Stopped at step {loop.progress.step}: {loop.stop_reason}", 0)])
        elif loop.outcome == "interrupted":
            self._output.finish([Part(f"Interrupted at step {loop.progress.step}", 0)])
        if self.verbose and (notice := loop.timing.notice()):
            self._output.finish([Part(notice, 0)])

    def state_dict(self) -> dict[str, Any]:
        # The line of an epoch shows the time of all its steps, those before a restart included.
        seconds = self._clock() - self._epoch_begin if self._clock is not None else 0.0
        return {"epoch_seconds": seconds, "evaluated": sorted(self._evaluated)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._clock is not None:
            self._epoch_begin = self._clock() - state["epoch_seconds"]
        self._evaluated = set(state["evaluated"])

    def _running_parts(self, loop: Loop, now: float, doing: str = "") -> list[Part]:
        progress = loop.progress
        done, total = progress.step_in_epoch, progress.steps_per_epoch
        parts = [_epoch(loop)]
        if total:
            parts += [Part("", 5, fraction=done / total), Part(f"{done}/{total}", 0)]
        else:
            parts.append(Part(f"{done} steps", 0))
        parts += self._metrics(self._logs)
        speed = 0.0 if self._is_first_look else self._pace.steps_per_second(progress.step, now)
        if doing:
            parts.append(Part(doing, 2))
        elif speed > 0:
            parts.append(Part(f"{_speed(speed)} steps/s", 6))
            if total:
                parts.append(Part(f"{duration((total - done) / speed)} left", 2))
            run_left = self._run_left(loop, self._seconds_per_step or 1 / speed)
            if run_left and (not total or run_left > 1.5 * (total - done) / speed):
                parts.append(Part(f"run {duration(run_left)}", 7))
        return parts

    def _run_left(self, loop: Loop, seconds_per_step: float | None) -> float | None:
        """Seconds until the run reaches its target; None if that is unknown."""
        if seconds_per_step is None:
            return None
        progress = loop.progress
        steps = [] if loop.steps is None else [loop.steps - progress.step]
        if loop.epochs is not None and progress.steps_per_epoch:
            steps.append((loop.epochs - progress.epoch) * progress.steps_per_epoch - progress.step_in_epoch)
        return seconds_per_step * max(0, min(steps)) if steps else None

    def _metrics(self, logs: Mapping[str, Any]) -> list[Part]:
        parts, seen = [], set()
        for name, value in logs.items():
            evaluated = name in self._evaluated or name.startswith("val_")
            # A narrow terminal keeps the first loss and the first metric, of training and of evaluation; the others are left out first.
            group = (evaluated, name == "loss" or name.endswith("_loss"))
            priority = (1 if group[1] else 2) if group not in seen else 4
            seen.add(group)
            parts.append(Part(f"{name} {_value(value)}", priority, is_metric=True))
        return parts

    def _may_show(self, now: float) -> bool:
        self._allowance = min(_BURST, self._allowance + (now - self._allowed_at) * _LINES_PER_SECOND)
        self._allowed_at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True


def _epoch(loop: Loop) -> Part:
    epoch = loop.progress.epoch + 1
    return Part(f"Epoch {epoch}" if loop.epochs is None else f"Epoch {epoch:>{len(str(loop.epochs))}}/{loop.epochs}", 0)


def _speed(steps_per_second: float) -> str:
    return f"{steps_per_second:.3g}" if steps_per_second < 100 else f"{steps_per_second:,.0f}"


def _value(value: Any) -> str:
    array = np.asarray(value)
    if array.size == 1:
        return number(float(array.reshape(())))
    shown = " ".join(number(v) for v in array.reshape(-1)[:3].tolist())
    return f"[{shown} …]" if array.size > 3 else f"[{shown}]"
