"""Steps that make the loss or the state non-finite: what a run may do about them, and how one is described.

It neither finds nor takes back such a step: `execution.py` and `recovery.py` do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from loops.choices import NonFiniteAction, check_choice

__all__ = ["NonFiniteStep", "OnNonFinite"]


@dataclasses.dataclass(frozen=True)
class OnNonFinite:
    """What a run does about a step that makes the loss or the state non-finite. Unless ignored, it is taken back first, bit for bit.

    * "raise": raises `NonFiniteError`.
    * "stop": ends the run.
    * "skip": drops the batch and goes on with the next one.
    * "rollback": goes back to the last good state (the last snapshot, or the end of the epoch before) and drops all batches from there to
      the bad one, as was done for PaLM (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1).
    * "ignore": does not check whether steps are finite.

    Args:
        action: one of these.
        budget: how many batches may be skipped, or rollbacks made, in a run; one more raises `NonFiniteError`.
        learning_rate_factor: a rollback multiplies every learning rate by it.

    Raises:
        ValueError: for an action that does not exist, a negative budget, or a factor that is not positive.

    Example:
        >>> OnNonFinite.parse("skip")
        OnNonFinite(action='skip', budget=10, learning_rate_factor=1.0)
    """

    action: NonFiniteAction
    budget: int = 10
    learning_rate_factor: float = 1.0

    def __post_init__(self) -> None:
        check_choice(self.action, NonFiniteAction, "on_nonfinite")
        if isinstance(self.budget, bool) or int(self.budget) != self.budget or self.budget < 0:
            raise ValueError(f"The budget of OnNonFinite is a whole number, 0 or more; got {self.budget!r}.")
        if not self.learning_rate_factor > 0:
            raise ValueError(f"`learning_rate_factor` must be greater than 0; got {self.learning_rate_factor!r}.")

    @classmethod
    def parse(cls, value: Any) -> OnNonFinite:
        """The policy that a string names, or `value` itself."""
        return value if isinstance(value, OnNonFinite) else cls(value)

    @property
    def recovers(self) -> bool:
        """Whether training goes on after a bad step."""
        return self.action in ("skip", "rollback")


@dataclasses.dataclass(frozen=True)
class NonFiniteStep:
    """A step that made the loss or the state non-finite, and was taken back.

    Attributes:
        step: its 1-based number.
        batch: the batch of the step, as arrays.
        loss_finite: whether its loss was finite; if so, a gradient or a variable was not.
    """

    step: int
    batch: Any
    loss_finite: bool

    def describe(self) -> str:
        """The step in a sentence or two."""
        found = self.non_finite_parts()
        cause = f"not finite are {', '.join(found)}" if found else "every number in the batch is finite"
        what = "a gradient or a variable" if self.loss_finite else "the loss"
        return f"At step {self.step} {what} became non-finite; {cause}. The state is that from before this step."

    def non_finite_parts(self) -> list[str]:
        """What in the batch is not finite, a few words for each of its parts."""
        found = []
        for i, leaf in enumerate(tf.nest.flatten(self.batch, expand_composites=True)):
            if leaf is not None and np.asarray(leaf).dtype.kind == "f" and (count := int(np.sum(~np.isfinite(leaf)))):
                found.append(f"{count} of {np.size(leaf)} values in part {i} of the batch (shape {np.shape(leaf)})")
        return found
