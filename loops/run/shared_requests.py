"""What hooks of one worker process asked for is done by all: hooks that write act on the chief only, and a callback may go by a clock."""

from __future__ import annotations

from loops.run.parts import RunParts

__all__ = ["share_requests"]


def share_requests(parts: RunParts) -> None:
    """Makes the requests of a boundary, and the decision to stop, the same on all workers. One collective, more only if a run ends."""
    cluster, requests = parts.agreement.cluster, parts.requests
    if not cluster.several:
        return
    mine = [parts.stop_reason is not None, requests.end_epoch, requests.save, requests.rollback is not None]
    stops, requests.end_epoch, requests.save, goes_back = (bool(column.any()) for column in cluster.table(mine).T)
    if stops or goes_back:
        reasons = cluster.gather_json([parts.stop_reason, requests.rollback])
        parts.decisions["stop_reason"] = next((stop for stop, _ in reasons if stop is not None), None)
        requests.rollback = next((back for _, back in reasons if back is not None), None)
