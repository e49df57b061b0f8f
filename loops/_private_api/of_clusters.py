"""TensorFlow's coordination service, which several processes join, is set up through names that are not public."""

from __future__ import annotations

from collections.abc import Mapping

from loops._private_api.names import CONTEXT, COORDINATION, OPTIONAL, missing, module

__all__ = ["configure_coordination", "has_started", "lacks_coordination"]

_MILLISECONDS = 1000


def lacks_coordination() -> list[str]:
    """The names that the installed TensorFlow lacks to set the limits of its coordination service; empty if it has all."""
    return missing({home: OPTIONAL[home] for home in (f"{CONTEXT}.Context", COORDINATION)})


def has_started() -> bool:
    """Whether TensorFlow's runtime has started in this process: it can join no other processes then."""
    return module(CONTEXT).context()._context_handle is not None


def configure_coordination(leader: str, jobs: Mapping[str, int], *, join: float, heartbeat: float, leave: float) -> None:
    """Says how the coordination service shall be set up when the runtime starts. `MultiWorkerMirroredStrategy` keeps what it finds.

    Args:
        leader: the task that hosts the service, such as "/job:worker/replica:0/task:0".
        jobs: how many tasks each job has, by name.
        join: seconds that the runtime waits for all tasks when it starts.
        heartbeat: seconds of silence after which a task is taken for lost.
        leave: seconds that a task which ends in order waits for the others.
    """
    job = module(COORDINATION).CoordinatedJob
    context = module(CONTEXT).context()
    context.configure_coordination_service(
        service_type="standalone",
        service_leader=leader,
        cluster_register_timeout_in_ms=round(join * _MILLISECONDS),
        heartbeat_timeout_in_ms=round(heartbeat * _MILLISECONDS),
        shutdown_barrier_timeout_in_ms=round(leave * _MILLISECONDS),
        coordinated_jobs=[job(name=name, num_tasks=tasks) for name, tasks in jobs.items()],
    )
    # Else the host of the service would register at once, and then wait for the others for an hour.
    context.coordination_service.cluster_register_with_barrier = True
