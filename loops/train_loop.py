"""The training loop: asks its hooks when they want to look, runs compiled calls exactly up to there, and lets them look.

until an epoch or step target is reached, or somebody stops it:
    begin an epoch
    until the epoch has ended:
        n = steps to the nearest look of any hook
        run up to n steps in one call
        if somebody's look is due, or the epoch ended: boundary
boundary: for each phase, for each hook: on_window_end if due, then on_epoch_end if the epoch ended; then save, if somebody asked
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from loops import auto_mode, crash_points, random_ops, resume, runstate
from loops.epoch_logs import EpochLogs
from loops.execution import Execution
from loops.hooks.base import Hook, Phase
from loops.hooks.snapshot import Snapshot
from loops.interrupts import Interrupts, Preempted
from loops.logs import Window, to_floats
from loops.loop_face import LoopFace
from loops.nonfinite import NonFiniteError, NonFiniteStep, OnNonFinite
from loops.program import Program
from loops.run_folder import SaveError
from loops.runstate import Parts, RunState
from loops.trace_watch import TraceWatch

__all__ = ["TrainLoop"]


class TrainLoop(LoopFace):
    """Trains a task on a feed.

    Args:
        task: what a step of learning is.
        feed: where batches come from.
        hooks: `loops.hooks` and `keras.callbacks.Callback` objects, in any order.
        evaluate: name -> feed, evaluated at the end of every epoch; for another cadence use `hooks.Evaluate`.
        steps_per_epoch: steps of an epoch; None makes an epoch a pass over the feed.
        workdir: folder for what the run leaves; adds snapshots, TensorBoard, CSVLogger and best and last weights unless the hooks have
            them.
        resume: "auto" carries on the run that the workdir holds, "never" takes a new folder only, "must" a folder with a run only.
        strategy: how batches are spread over devices; None takes the one that the task's variables were made under.
        compile: "graph" (one TensorFlow graph for a window), "xla" (one XLA program), "eager" (Python, for debugging), or "auto": "graph"
            for short runs and for what XLA is no good at, else what is faster; see `docs/design.md`.
        seed: seed of `Task.seed`.
        clip: bound of the global gradient norm, or a gradient transform `(gradients, variables) -> gradients`, or a list of them.
        on_nonfinite: what to do about a step that makes loss or state non-finite: "raise" `NonFiniteError`, "stop", "skip" the batch,
            "rollback", or "ignore"; or a `loops.OnNonFinite` with a budget.
        config: settings to keep in `config.json` beside those of the loop.

    Raises:
        ValueError, TypeError: for arguments that do not fit, each with a sentence.

    Example:
        >>> import keras, numpy as np, loops
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> loop = TrainLoop(task, loops.ArrayFeed((np.ones([64, 4]), np.ones([64, 1]))))
        >>> history = loop.run(epochs=2)
        >>> loop.progress.step, loop.outcome
        (4, 'finished')
    """

    # Running.

    def run(self, epochs: int | None = None, steps: int | None = None) -> Any:
        """Trains until `epochs` epochs or `steps` steps are complete, counted from the very beginning; whichever comes first.

        With a workdir that holds a run, that run is carried on; a complete one returns its history. Ctrl-C ends the run after the call in
        progress, with `outcome` "interrupted"; a second one ends it at once.

        Returns:
            `loop.history`, with `history` (name -> values by epoch) and `epoch`.

        Raises:
            ValueError: without a target, if an epoch would never end, or if the run in the workdir cannot be carried on.
            NonFiniteError: see `on_nonfinite`.
            Preempted: after SIGTERM, when the state is saved; it ends the process with exit code 75.
            SaveError: at the end, if the last state or a record could not be saved.
        """
        if self._running:
            raise RuntimeError("A hook called loop.run while the loop runs; a hook may call loop.evaluate and loop.stop.")
        self._check_targets(epochs, steps)
        self._running = True
        self.epochs, self.steps, self.outcome = epochs, steps, None
        self._keeper.decisions["stop_reason"] = None
        begun, interrupts = self.clock(), Interrupts(self._grace)
        self._accounts.begin()
        try:
            with interrupts:
                self._prepare()
                self._first_step = self.progress.step
                begun = self.clock() - self.progress.seconds
                while not self._target_reached() and not self.stopping and not interrupts.requested:
                    self._run_epoch(interrupts, begun)
                self._flush()
                done = self._target_reached()
                self.outcome = "stopped" if self.stopping else "interrupted" if interrupts.requested and not done else "finished"
                self._keep_last()
                if self.outcome != "interrupted":
                    self._average_replicas()
                    self.task.finalize()
        except NonFiniteError:
            self.outcome = "failed"
            self._keep_last()
            raise
        except BaseException as error:
            self.outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            raise
        finally:
            self.progress.seconds = self.clock() - begun
            self._running = False
            self._end()
            self._accounts.end()
        if interrupts.preempted and self.outcome == "interrupted":
            raise Preempted
        return self.history

    def _run_epoch(self, interrupts: Interrupts, begun: float) -> None:
        self._epoch_anew = False
        if self.progress.epoch_ended or self.progress.step_in_epoch == 0:
            self.progress.begin_epoch()
            self._logs = EpochLogs()
            self._execution_now.trace.new_epoch()
            self.task.reset_metrics()
            for hook in self.hooks:
                with self._accounts.of("hooks", hook.name):
                    hook.on_epoch_begin(self)
        self._check_trace()
        while not (self.progress.epoch_ended or self._epoch_anew or self.stopping or interrupts.requested or self._target_reached()):
            target = self._next_look()
            pass_ended = self._execution_now.advance(max(1, target - self.progress.step))
            self._watch = self._watch or TraceWatch(self.task)
            self.progress.seconds = self.clock() - begun
            self._count_epoch(pass_ended)
            if self.progress.step >= target or self.progress.epoch_ended or self._execution_now.must_settle or self._is_due_by_time():
                self._boundary()

    def _count_epoch(self, pass_ended: bool) -> None:
        progress, wanted = self.progress, self.steps_per_epoch
        if wanted is not None and progress.step_in_epoch >= wanted:
            progress.end_epoch()
        elif pass_ended and progress.step_in_epoch:
            if wanted is not None:
                print(
                    f"The feed ended after {progress.step_in_epoch} of {wanted} steps of epoch {progress.epoch + 1}; the epoch ends here."
                )
            else:
                progress.steps_per_epoch = progress.step_in_epoch
            progress.end_epoch()

    def _boundary(self) -> None:
        if not self._settle() or self.stopping:
            return
        self._visit()
        if self._end_epoch and not self.progress.epoch_ended:
            self.progress.end_epoch()
            self._visit()
        if self._rollback_asked is not None:
            reason, self._rollback_asked = self._rollback_asked, None
            self._recover(dataclasses.replace(self.on_nonfinite, action="rollback"), reason, drop=False)
        elif self._save_asked or (self._keeper.keeps_good and self.progress.epoch_ended):
            self._keep(on_disk=self._save_asked)
        self._check_trace()

    def _check_trace(self) -> None:
        """Retraces, or warns, if something changed that the traced step cannot see."""
        if self._watch is None or self.mode == "eager":
            return
        for sentence in self._watch.changed_constants():
            print(f"Warning: {sentence}", flush=True)
        if names := self._watch.changed_flags():
            self.retrace(f"`trainable` changed for {names}")

    def _trace(self) -> None:
        """Has the step traced, if it is not, and remembers what the trace took for constant."""
        self._execution_now.build()
        self._watch = self._watch or TraceWatch(self.task)

    def _set_flags(self, saved: RunState) -> None:
        """Sets the `trainable` flags of a state that is about to be restored, and retraces if the step was traced with others."""
        runstate.apply_flags(self.task, saved.state["trainable"])
        self._check_trace()

    def _settle(self) -> bool:
        """Reads how the steps since the last look went; False if one was bad, and the state is that from before it."""
        bad = self._execution_now.settle()
        if bad is not None:
            self.progress.epoch_ended = False
            self._react(bad)
        return bad is None

    def _visit(self) -> None:
        """One pass over the hooks."""
        if self.progress.epoch_ended:
            self._average_replicas()
            self._logs.train = self._train_logs()
            if self.on_nonfinite.recovers:
                names = {"skip": "skipped_batches", "rollback": "rollbacks"}
                self._logs.extra[names[self.on_nonfinite.action]] = self._keeper.decisions[self.on_nonfinite.action]
        for hook in self._looks:
            crash_points.reached(crash_points.HOOK)
            with self._accounts.of("hooks", hook.name), self._records_may_fail(hook):
                if self._looks.due(hook, self.progress, self.clock()):
                    self._look(hook)
                if self.progress.epoch_ended:
                    hook.on_epoch_end(self, self._logs)
        self._execution_now.trace.forget(self._looks.oldest(self.progress.step))

    @contextlib.contextmanager
    def _records_may_fail(self, hook: Hook | None) -> Iterator[None]:
        """A full disk does not end a run that has a workdir: it is said once, and again by an error at the end."""
        try:
            yield
        except OSError as error:
            if self.workdir is None or (hook is not None and hook.phase < Phase.RECORD):
                raise
            name = hook.name if hook is not None else "The snapshot"
            if name not in self._failures:
                self._failures[name] = f"{name} could not be written ({error})."
                print(f"{self._failures[name]} Training goes on.", flush=True)

    def _look(self, hook: Hook) -> None:
        opened = self._looks.take(hook, self.progress.step, self.clock())
        if opened is not None:
            first, seconds = opened
            run = self._execution_now
            window = Window(run.trace, first, self.progress.step, seconds, self._logs_to_date, run.observed, run.batch)
            hook.on_window_end(self, window)

    def _next_look(self) -> int:
        """The nearest step at which a hook wants to look, the epoch ends, or the run does."""
        step = self.progress.step
        targets = [self._looks.next_step(step), self.steps]
        if self.steps_per_epoch is not None:
            targets.append(step + self.steps_per_epoch - self.progress.step_in_epoch)
        return min((t for t in targets if t is not None), default=1 << 62)

    def _is_due_by_time(self) -> bool:
        return self._looks.due_by_time(self.progress, self.clock())

    def _flush(self) -> None:
        """Settles what was run since the last look, and gives hooks that want it their last window."""
        self._settle()
        for hook in self._looks:
            if hook.final_window:
                with self._accounts.of("hooks", hook.name), self._records_may_fail(hook):
                    self._look(hook)

    # Bad steps, and states to go back to.

    def _react(self, bad: NonFiniteStep) -> None:
        policy, message = self.on_nonfinite, bad.describe()
        if policy.action == "raise":
            raise NonFiniteError(message)
        if policy.recovers:
            self._recover(policy, message, drop=True)
            return
        print(message, flush=True)
        self.stop(message)

    def _recover(self, policy: OnNonFinite, message: str, *, drop: bool) -> None:
        """Goes on behind the batches in question, from the present state or the last good one."""
        self._keeper.spend(policy, message)
        if drop:
            self._execution_now.skip_batch()
        if policy.action == "skip":
            print(f"{message} The batch is skipped.", flush=True)
            return
        self._set_flags(self._keeper.good)
        step = self._keeper.roll_back(self._parts())
        # The state is that from before an epoch began: it has to begin, here as after a kill.
        self._epoch_anew, self._read = self.progress.step_in_epoch == 0, None
        if policy.learning_rate_factor != 1.0:
            self.learning_rate.scale(policy.learning_rate_factor)
        print(f"{message} Rolled back to step {step:,}; the batches since then are dropped.", flush=True)
        self._keep(on_disk=self.workdir is not None)

    def _keep(self, *, on_disk: bool) -> None:
        self._save_asked = False
        with self._accounts.of("saving"), self._records_may_fail(None):
            self._keeper.keep(self._parts(), self._feed, on_disk=on_disk)

    def _keep_last(self) -> None:
        with self._accounts.of("saving"), self._records_may_fail(None):
            self._keeper.keep_last(self._parts(), self._feed)

    def _save_between_runs(self) -> None:
        if self._execution is None:
            raise RuntimeError("There is nothing to save before the first run.")
        try:
            self._keeper.open(self.task, self._snapshots, self._made)
            self._keeper.keep(self._parts(), self._feed, on_disk=True)
        finally:
            failure = self._keeper.close()
        if failure is not None:
            raise SaveError(failure)

    def _parts(self) -> Parts:
        if self.graph is None and self.mode != "eager":
            self._trace()  # after a retrace; variables that only the traced step leads to belong to the state
        run = self._execution_now
        return Parts(self.task, self.progress, self._logs, self._looks, run, self.learning_rate, self._keeper.decisions, self.clock())

    def _train_logs(self) -> dict[str, Any]:
        """The logs of the epoch to date, read once at a boundary however many ask."""
        step = self.progress.step
        if self._read is None or self._read[0] != step:
            self._read = step, self.task.results("train", self._execution_now.trace.epoch_logs(), self._execution_now.metrics)
        return self._read[1]

    def _logs_to_date(self) -> dict[str, Any]:
        return to_floats(self._train_logs())

    def _target_reached(self) -> bool:
        done = self.progress.epoch + 1 if self.progress.epoch_ended else self.progress.epoch
        return (self.epochs is not None and done >= self.epochs) or (self.steps is not None and self.progress.step >= self.steps)

    @property
    def _execution_now(self) -> Execution:
        assert self._execution is not None
        return self._execution

    # The ends of a run.

    def _prepare(self) -> None:
        """Everything before the first step. If it fails the first time, the next run finds nothing half done."""
        first = self._execution is None
        try:
            self._begin()
        except BaseException:
            if first:
                self._execution = None
                self._keeper.forget()
            raise

    def _begin(self) -> None:
        self._end_epoch, self._save_asked, self._rollback_asked = False, False, None
        self._failures.clear()
        found = self._keeper.open(self.task, self._snapshots, self._made)
        saved, resume_from = (found[0], found[1:]) if found is not None else (None, None)
        if saved is not None:
            self.mode = saved.state["made"]["mode"]
            self.progress.load_state_dict(saved.state["progress"])
            runstate.apply_flags(self.task, saved.state["trainable"])
        self.task.follow(self.progress)
        for hook in self.hooks:
            hook.on_train_begin(self)
        if self.on_nonfinite.learning_rate_factor != 1.0:
            self.learning_rate.make_scalable()
        if saved is not None:
            self.learning_rate.load_state_dict(saved.state["learning_rates"])
            position = self._keeper.position(saved, self._feed)
            self.progress.pass_index, self.progress.batch = position.pass_index, position.batch
        if self._execution is None:
            guarded, continuing = self.on_nonfinite.action != "ignore", self.steps_per_epoch is not None
            with self._accounts.of("compile"):
                program = self._first_program(guarded)
            self._execution = Execution(program, self._feed, self.progress, guarded=guarded, continuing=continuing, resume=resume_from)
            self._execution.accounts = self._accounts
            if saved is None:
                self._keeper.begin(self._mode, self._config)
            self._examine()
        if saved is not None:
            self._restore(saved)
        if self.graph is not None:  # traced already: what hooks change from here on has to be noticed
            self._watch = self._watch or TraceWatch(self.task)
        self._looks.start(self.progress.step, self.clock())
        if self.steps_per_epoch is not None or self._feed.steps_per_epoch is not None:
            self.progress.steps_per_epoch = self.steps_per_epoch or self._feed.steps_per_epoch
        if self._keeper.keeps_good and saved is None:
            self._execution.build()
            self._keep(on_disk=False)

    def _first_program(self, guarded: bool) -> Program:
        if self.mode is not None:
            program = self._new_program(self.mode)
            if program.mode == "xla" and (sentence := auto_mode.warning(program, self._feed)):
                print(f"Warning: {sentence}", flush=True)
            return program
        lengths = self.steps, None if self.epochs is None else self._steps_of(self.epochs)
        choice = auto_mode.choose(
            self._new_program, self._feed, steps=min((n for n in lengths if n is not None), default=None), guarded=guarded
        )
        self.mode, self._why_mode = choice.program.mode, choice.why
        return choice.program

    def _steps_of(self, epochs: int) -> int | None:
        length = self.steps_per_epoch or self._feed.steps_per_epoch
        return None if length is None else epochs * length

    def _examine(self) -> None:
        """Looks, before training, for what would make a resumed run differ."""
        if self.workdir is None:
            return
        for finding in self._feed.findings():
            print(f"Note on the data: {finding}", flush=True)
        if self.mode != "eager":
            self._execution_now.build()
            if self.graph is not None and (found := random_ops.stateful_random_ops(self.graph)):
                raise ValueError(random_ops.refusal(found))

    def _restore(self, saved: RunState) -> None:
        self._trace()
        self._set_flags(saved)
        self._keeper.restore(self._parts(), saved)
        if self._target_reached() or self.stopping:
            reason = self.stop_reason or f"{self.progress.step:,} steps, {len(self.history.epoch)} epochs"
            print(f"The run is complete ({reason}); there is nothing to do.", flush=True)

    def _end(self) -> None:
        """Every hook gets its `on_train_end`, whatever the others do; the first error of theirs is raised if nothing else was."""
        if self._execution is not None:
            self._execution.rewind()
        errors: list[Exception] = []
        for hook in self._looks:
            try:
                with self._accounts.of("hooks", hook.name), self._records_may_fail(hook):
                    hook.on_train_end(self)
            except Exception as error:  # the others come first
                errors.append(error)
        failing = sys.exc_info()[0] is not None
        try:
            if (failure := self._keeper.close()) is not None:
                self._failures["The snapshot"] = failure
        except Exception as error:
            errors.append(error)
        if self._failures:
            errors.append(SaveError(" ".join(self._failures.values())))
        if (failing or self.outcome == "interrupted") and (where := self._keeper.where()):
            print(where, flush=True)
        if errors and not failing:
            self.outcome = "failed"
            raise errors[0]

    @property
    def _snapshots(self) -> Snapshot | None:
        return next((hook for hook in self.hooks if isinstance(hook, Snapshot)), None)

    @property
    def _grace(self) -> float | None:
        return self._snapshots.grace if self._snapshots is not None else None

    def _made(self) -> dict[str, Any]:
        """What decides the bits of the run, besides the model's variables."""
        settings = {
            "seed": self.seed,
            "steps_per_epoch": self.steps_per_epoch,
            "replicas": self.strategy.num_replicas_in_sync,
            "mode": self.mode,
            "task": type(self.task).__name__,
            "clip": None if self.clip is None else repr(self.clip),
            "on_nonfinite": dataclasses.asdict(self.on_nonfinite),
            "config": self.config,
        }
        return resume.description(settings, self._feed.describe(), resume.optimizers_of(self.task.optimizers))

    def _config(self, made: dict[str, Any]) -> dict[str, Any]:
        """What `config.json` says."""
        loop = {name: value for name, value in made.items() if name not in ("config", "versions")}
        why = {"why_mode": self._why_mode} if self._why_mode else {}
        return {"loop": {"compile": self.compile, **why, **loop}, "config": self.config}

    def _check_targets(self, epochs: int | None, steps: int | None) -> None:
        for name, value in (("epochs", epochs), ("steps", steps)):
            if value is not None and (isinstance(value, bool) or int(value) != value or value < 0):
                raise ValueError(f"`{name}` must be a whole number, 0 or more; got {value!r}.")
        if epochs is None and steps is None:
            raise ValueError("Say how far to train: run(epochs=...) or run(steps=...).")
        self._check_end(steps)
