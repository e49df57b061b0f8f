"""The algorithm of training: asks the hooks when they want to look, makes calls exactly up to that step, and calls the hooks.

begin an epoch
before the first step of a run: trace the steps, let the hooks check what they were given
until the epoch has ended:
    n = steps to the nearest look of any hook
    run up to n steps in one call
    if a hook is due, or the epoch ended: boundary
boundary: settle the calls; for each phase, for each hook: on_window_end if due, then on_epoch_end if the epoch ended;
          then roll back or save, if a hook asked for it

It does not know how steps are compiled, or where states are kept.
"""

from __future__ import annotations

from loops import fault_points
from loops.engine.rows import Window
from loops.hooks.base import Hook
from loops.messages import say, warn
from loops.run.bad_steps import BadSteps
from loops.run.epoch_logs import EpochLogs
from loops.run.evaluations import Evaluations
from loops.run.parts import RunParts
from loops.run.saved_states import SavedStates
from loops.run.shared_requests import SharedRequests
from loops.tasks.reductions import to_floats

__all__ = ["Epochs"]

_NEVER = 1 << 62
_COUNTS = {"skip": "skipped_batches", "rollback": "rollbacks"}


class Epochs:
    """Runs the epochs of a loop.

    Args:
        parts: the run.
        saved: its saved states.
        evaluations: evaluates the task.
    """

    def __init__(self, parts: RunParts, saved: SavedStates, evaluations: Evaluations):
        self._parts, self._saved, self._evaluations = parts, saved, evaluations
        self._checked = False
        self._bad_steps, self._shared = BadSteps(parts, saved), SharedRequests(parts)

    def run_until_done(self, begun: float) -> None:
        """Trains until a target is reached or the run is stopped or interrupted; then gives hooks with `final_window` their last window.

        Args:
            begun: when the run began, on the loop's clock, moved back by the time that it took in earlier processes.
        """
        parts, self._checked = self._parts, False
        self._saved.training_begins()
        while not parts.target_reached() and parts.stop_reason is None and not parts.agreement.ends:
            self._run_epoch(begun)
        self._settle()
        self._read_logs_together()
        for hook in parts.hooks:
            if hook.final_window:
                with parts.accounts.of("hooks", hook.name), self._saved.failures.tolerated(hook):
                    self._look(hook)

    def _run_epoch(self, begun: float) -> None:
        parts, progress = self._parts, self._parts.progress
        parts.epoch_begins_again = False
        if progress.epoch_ended or progress.step_in_epoch == 0:
            self._begin_epoch()
        parts.notice_changes()
        self._check_before_first_step()
        while not (
            progress.epoch_ended
            or parts.epoch_begins_again
            or parts.stop_reason is not None
            or parts.agreement.ends
            or parts.target_reached()
        ):
            target, before = self._next_look(), (progress.step, progress.batch)
            parts.agreement.propose(target, parts.agreement.cluster.several and parts.hooks.due_by_time(progress, parts.agreed_now()))
            pass_ended = parts.execution.advance(max(1, target - progress.step))
            if pass_ended and before == (progress.step, 0):
                self._stop_without_data()
                break
            parts.step.has_run()
            progress.seconds = parts.now() - begun
            self._end_epoch_if_complete(pass_ended)
            due = parts.agreement.is_due(progress.step) or progress.epoch_ended or parts.execution.must_settle
            if due or (not parts.agreement.cluster.several and parts.hooks.due_by_time(progress, parts.now())):
                self._boundary()

    def _begin_epoch(self) -> None:
        parts = self._parts
        parts.progress.begin_epoch()
        parts.logs = EpochLogs()
        parts.execution.begin_epoch()
        parts.task.reset_metrics()
        parts.feeds.begin_epoch()
        for hook in parts.loop.hooks:
            with parts.accounts.of("hooks", hook.name), parts.feeds.acting(hook, "on_epoch_begin"):
                hook.on_epoch_begin(parts.loop)
        self._shared.share()

    def _check_before_first_step(self) -> None:
        """Finds what would fail at the end of the first epoch. The training step is traced first: it makes the variables."""
        if self._checked:
            return
        self._checked, parts = True, self._parts
        if parts.step.mode != "eager" and any(hook.evaluation_feed is not None for hook in parts.hooks):
            with parts.accounts.of("compile"):
                if parts.execution.program.mode == "graph":  # XLA's was traced when its program was made
                    parts.step.trace_ahead()
                self._evaluations.trace()
        for hook in parts.hooks:
            hook.before_first_step(parts.loop)

    def _next_look(self) -> int:
        """The nearest step at which a hook wants to look, the epoch ends, or the run ends."""
        parts, step = self._parts, self._parts.progress.step
        targets = [parts.hooks.next_step(step), parts.loop.steps]
        if parts.steps_per_epoch is not None:
            targets.append(step + parts.steps_per_epoch - parts.progress.step_in_epoch)
        return min((t for t in targets if t is not None), default=_NEVER)

    def _end_epoch_if_complete(self, pass_ended: bool) -> None:
        progress, wanted = self._parts.progress, self._parts.steps_per_epoch
        if wanted is not None and progress.step_in_epoch >= wanted:
            progress.end_epoch()
        elif pass_ended and progress.step_in_epoch:
            if wanted is not None:
                say(f"The feed ended after {progress.step_in_epoch} of {wanted} steps of epoch {progress.epoch + 1}; the epoch ends here.")
            else:
                progress.steps_per_epoch = progress.step_in_epoch
            progress.end_epoch()

    def _stop_without_data(self) -> None:
        """Ends the run, because a whole pass over the feed gave no batch; another one would not either."""
        epoch, epochs = self._parts.progress.epoch + 1, self._parts.loop.epochs
        warn(
            f"Warning: the data has ended: there is no batch for epoch {epoch}{f' of {epochs}' if epochs else ''}, so training ends here. "
            "Data for several epochs can be read again (a function that returns a generator, a tf.data.Dataset made from one, a "
            "PyDataset), or lasts for all of them."
        )
        self._parts.stop("the data has ended")

    def _boundary(self) -> None:
        parts, requests = self._parts, self._parts.requests
        if not self._settle() or parts.stop_reason is not None:
            return
        self._visit_hooks()
        if requests.end_epoch and not parts.progress.epoch_ended:
            parts.progress.end_epoch()
            self._visit_hooks()
        if requests.rollback is not None:
            reason, requests.rollback = requests.rollback, None
            self._bad_steps.roll_back(reason)
            return
        parts.notice_changes()  # before anything is saved: a state holds the variables of the step that goes on from it
        if requests.save or (self._saved.keeps_good and parts.progress.epoch_ended):
            self._saved.keep(parts, on_disk=requests.save)

    def _settle(self) -> bool:
        """Settles the calls since the last look. Returns False after a bad step; the state is then that from before this step."""
        bad = self._parts.execution.settle()
        if bad is not None:
            self._parts.progress.epoch_ended = False
            self._bad_steps.react(bad)
        return bad is None

    def _visit_hooks(self) -> None:
        """Passes once over the hooks, in the order of their phases."""
        parts = self._parts
        self._read_logs_together()
        if parts.progress.epoch_ended:
            parts.step.average_replicas()
            parts.logs.train = parts.step.logs_to_date()
            if parts.on_nonfinite.recovers:
                action = parts.on_nonfinite.action
                parts.logs.extra[_COUNTS[action]] = parts.decisions[action]
        for hook in parts.hooks:
            fault_points.reached(fault_points.HOOK)
            with parts.accounts.of("hooks", hook.name), self._saved.failures.tolerated(hook):
                if parts.hooks.due(hook, parts.progress, parts.agreed_now()):
                    self._look(hook)
                if parts.progress.epoch_ended:
                    with parts.feeds.acting(hook, "on_epoch_end"):
                        hook.on_epoch_end(parts.loop, parts.logs)
        self._shared.share()
        parts.execution.trace.forget(parts.hooks.seen_by_all(parts.progress.step))

    def _read_logs_together(self) -> None:
        """Reads the metrics of all workers, who have to do so at the same place, whichever hooks they have."""
        if self._parts.agreement.cluster.several:
            self._parts.step.logs_to_date()

    def _look(self, hook: Hook) -> None:
        parts, run = self._parts, self._parts.execution
        opened = parts.hooks.open_window(hook, parts.progress.step, parts.agreed_now())
        if opened is not None:
            first, seconds = opened
            window = Window(run.trace, first, parts.progress.step, seconds, self._logs_to_date, run.observed, run.batch)
            with parts.feeds.acting(hook, "on_window_end"):
                hook.on_window_end(parts.loop, window)

    def _logs_to_date(self) -> dict[str, object]:
        return to_floats(self._parts.step.logs_to_date())
