"""What the workers of a run agree on before every call, by one collective: how many steps it does, and whether somebody wants to do else.

    steps       the least that a worker can do: blocks may end at different places, and the chief has hooks that others have not
    look        the nearest step at which a hook of some worker wants to look, or that one wants to look after this call, by the time
    time        that of the chief's clock, so that hooks which count seconds look at the same step everywhere
    interrupted, preempted, settle      if one worker says so, all do it

With one worker nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable

from loops.cluster.cluster import Cluster

__all__ = ["Agreement"]

_NEVER = 1 << 62


class Agreement:
    """The last agreement of the workers.

    Args:
        cluster: the workers.
        clock: seconds.
        requests: returns whether this process was asked to end (Ctrl-C, SIGTERM), and whether by SIGTERM.

    Attributes:
        cluster: the workers.
        interrupted, preempted: whether a worker was asked to end; and whether by SIGTERM.
        settle: whether a worker wants to settle its calls before another one.
    """

    def __init__(self, cluster: Cluster, clock: Callable[[], float], requests: Callable[[], tuple[bool, bool]]):
        self.cluster, self._clock, self._requests = cluster, clock, requests
        self.interrupted = self.preempted = self.settle = False
        self._now = 0.0
        self._look, self._by_time = _NEVER, False

    def refresh(self) -> None:
        """Agrees without a call to come."""
        self.before_call(1, settle=False)

    def now(self) -> float:
        """Seconds on the clock that all workers go by."""
        return self._now if self.cluster.several else self._clock()

    @property
    def ends_by_system(self) -> bool:
        """Whether SIGTERM is why the run is to end."""
        return self.preempted if self.cluster.several else self._requests()[1]

    @property
    def ends(self) -> bool:
        """Whether the run is to end before the next call."""
        return self.interrupted if self.cluster.several else self._requests()[0]

    def propose(self, look: int, by_time: bool) -> None:
        """What the hooks of this worker want, for the next agreement.

        Args:
            look: the next step at which one looks.
            by_time: whether one that counts seconds is due.
        """
        self._look, self._by_time = look, by_time

    def is_due(self, step: int) -> bool:
        """Whether hooks look after the call that ended at `step`."""
        return step >= self._look or self._by_time

    def before_call(self, steps: int, *, settle: bool) -> int:
        """Agrees on the next call; all workers call it at the same place.

        Args:
            steps: how many steps this worker can do; 0 at the end of a pass over its data.
            settle: whether this worker wants to settle first.

        Returns:
            The number of steps that all do; 0 if something else has to be done first.

        Raises:
            ValueError: on all workers, if the data of only some has ended.
        """
        if not self.cluster.several:
            return steps
        interrupted, preempted = self._requests()
        table = self.cluster.table([steps, self._clock(), self._look, self._by_time, interrupted, preempted, settle])
        least, most = int(table[:, 0].min()), int(table[:, 0].max())
        self._now = float(table[0, 1])
        self._look = int(table[:, 2].min())
        self._by_time, self.interrupted, self.preempted, self.settle = (bool(column.any()) for column in table[:, 3:].T)
        if least == 0 and most:
            ended = ", ".join(str(worker) for worker, n in enumerate(table[:, 0]) if not n)
            raise self.cluster.agreed(
                ValueError(
                    f"The data of worker {ended} has ended, and other workers have more batches. All workers have to get as many batches: "
                    "shard the data evenly, or give all of them the same data."
                )
            )
        return 0 if self.interrupted or self.settle else least
