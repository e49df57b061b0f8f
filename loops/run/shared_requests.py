"""What hooks of one worker process asked for is done by all: hooks that write act on the chief only, and a callback may go by a clock.

What they have changed on their own worker only (the learning rate, the data, the model) is found here, before the next step mixes it.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from loops import json_values
from loops.run.parts import RunParts
from loops.run.same_values import SameValues

__all__ = ["SharedRequests"]

_ADVICE = (
    "Hooks of the phases RECORD and SAVE act on the chief only, and what differs between processes (a clock, a file, a random number) must "
    "not decide anything: give a hook that changes the training `phase = hooks.Phase.DECIDE`, and let it do the same on all workers."
)


class SharedRequests:
    """Shares requests between the workers of a run.

    Args:
        parts: the run.
    """

    def __init__(self, parts: RunParts):
        self._parts, self._same_values = parts, SameValues(parts.agreement.cluster)

    def share(self) -> None:
        """Makes the requests of a boundary, the decision to stop and the logs the same on all workers; the chief's logs count.

        One collective, more only if there is something to share.

        Raises:
            MismatchError: on all workers, if the learning rates, the feed, the step or, at the end of an epoch, the weights differ.
        """
        parts, cluster, requests = self._parts, self._parts.agreement.cluster, self._parts.requests
        if not cluster.several:
            return
        settings = self._settings()
        mine = [parts.stop_reason is not None, requests.end_epoch, requests.save, requests.rollback is not None]
        table = cluster.table([*mine, _number(settings), _number(self._logged())])
        stops, requests.end_epoch, requests.save, goes_back = (bool(column.any()) for column in table[:, :4].T)
        if (table[:, 4] != table[0, 4]).any():
            cluster.check_same(settings, _ADVICE)
        if (table[:, 5] != table[0, 5]).any():
            self._take_logs(cluster.gather_json([self._logged(), parts.loop.history.state_dict()])[0])
        if stops or goes_back:
            reasons = cluster.gather_json([parts.stop_reason, requests.rollback])
            parts.decisions["stop_reason"] = next((stop for stop, _ in reasons if stop is not None), None)
            requests.rollback = next((back for _, back in reasons if back is not None), None)
        if parts.progress.epoch_ended:
            self._same_values.check(parts.task.tracked.weights(), _ADVICE)

    def _settings(self) -> dict[str, Any]:
        """What hooks may have changed and has to be the same everywhere."""
        parts = self._parts
        return {
            "learning_rate": dict(parts.rates.items()),
            "feeds_assigned": parts.feeds.assignments,
            "retraces": parts.step.retraces,
        }

    def _logged(self) -> dict[str, Any]:
        logs = self._parts.logs
        return {"extra": {name: json_values.encode(value) for name, value in logs.extra.items()}, "removed": sorted(logs.removed)}

    def _take_logs(self, of_chief: list[dict[str, Any]]) -> None:
        logs, (logged, history) = self._parts.logs, of_chief
        if not self._parts.agreement.cluster.is_chief:
            self._parts.loop.history.load_state_dict(history)
        logs.extra = {name: json_values.decode(value) for name, value in logged["extra"].items()}
        logs.removed = set(logged["removed"])


def _number(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode())
