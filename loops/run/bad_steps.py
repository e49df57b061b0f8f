"""Recovery of a run: after a step that made loss or state non-finite, or when a hook asks to go back to the last good state.

`engine/recovery.py` has taken the bad step back before; how a state is kept and restored is in `saved_states.py`.
"""

from __future__ import annotations

import dataclasses

from loops.engine.nonfinite import NonFiniteStep, OnNonFinite
from loops.errors import NonFiniteError
from loops.messages import say
from loops.run.parts import RunParts
from loops.run.saved_states import SavedStates

__all__ = ["BadSteps"]


class BadSteps:
    """Applies `loops.OnNonFinite` to a run.

    Args:
        parts: the run.
        saved: the states that the run can go back to.
    """

    def __init__(self, parts: RunParts, saved: SavedStates):
        self._parts, self._saved = parts, saved

    def react(self, bad: NonFiniteStep) -> None:
        """Applies the policy to a bad step, which was taken back already.

        Raises:
            NonFiniteError: if the policy is "raise", or its budget is used up.
        """
        policy, message = self._parts.on_nonfinite, self._described(bad)
        if policy.action == "raise":
            raise self._error(message)
        if not policy.recovers:
            say(message)
            self._parts.stop(message)
            return
        self._spend(policy, message)
        self._parts.execution.skip_batch()
        if policy.action == "skip":
            say(f"{message} The batch is skipped.")
        else:
            self._go_back(policy, message)

    def _described(self, bad: NonFiniteStep) -> str:
        """The step in a sentence; of several workers, that of the first one in whose part of the batch something was not finite."""
        cluster = self._parts.agreement.cluster
        if not cluster.several:
            return bad.describe()
        sentences: list[str] = cluster.gather_json(bad.describe() if bad.non_finite_parts() else "")
        found = [f"{sentence} (The part of the batch is that of worker {i}.)" for i, sentence in enumerate(sentences) if sentence]
        return found[0] if found else bad.describe()

    def _error(self, message: str) -> Exception:
        return self._parts.agreement.cluster.agreed(NonFiniteError(message))

    def roll_back(self, reason: str) -> None:
        """Goes back to the last good state because a hook asked for it.

        Raises:
            NonFiniteError: if the budget of rollbacks is used up.
        """
        policy = dataclasses.replace(self._parts.on_nonfinite, action="rollback")
        self._spend(policy, reason)
        self._go_back(policy, reason)

    def _go_back(self, policy: OnNonFinite, message: str) -> None:
        parts, saved = self._parts, self._saved
        parts.task.load_state_dict(saved.good.state["task"])
        parts.step.set_flags(saved.good.state["trainable"])
        step = saved.roll_back(parts)
        # If the state was saved before an epoch began, the epoch begins again, with its `on_epoch_begin`, as it does after a kill.
        parts.epoch_begins_again = parts.progress.step_in_epoch == 0
        parts.step.forget_logs()
        if policy.learning_rate_factor != 1.0:
            parts.rates.scale(policy.learning_rate_factor)
        say(f"{message} Rolled back to step {step:,}; the batches since then are dropped.")
        saved.keep(parts, on_disk=saved.workdir is not None)

    def _spend(self, policy: OnNonFinite, message: str) -> None:
        """Counts a recovery, and raises `NonFiniteError` if the budget is used up."""
        decisions = self._parts.decisions
        if decisions[policy.action] >= policy.budget:
            raise self._error(f"{message} The budget of {policy.budget} for {policy.action!r} is used up.")
        decisions[policy.action] += 1
