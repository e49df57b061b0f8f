"""TensorFlow's strategy between processes, set up so that a worker that is gone ends the others, and nobody waits without a word."""

from __future__ import annotations

import os

import tensorflow as tf

from loops import _private_api
from loops.cluster.gathering import gather
from loops.cluster.members import Members, found
from loops.user_errors.tracebacks import shortened

__all__ = ["multi_worker_strategy"]

_SHORTEST_TIMEOUT = 1.0
_NO_PROXY = "no_grpc_proxy"  # where gRPC looks, and else at "no_proxy"; in small letters only
_CONNECTING = 30.0  # seconds for TensorFlow's runtimes to connect, once all processes are there


@shortened
def multi_worker_strategy(
    *,
    timeout: float = 60.0,
    join_timeout: float = 600.0,
    communication_options: tf.distribute.experimental.CommunicationOptions | None = None,
    resolver: tf.distribute.cluster_resolver.ClusterResolver | None = None,
) -> tf.distribute.MultiWorkerMirroredStrategy:
    """A `tf.distribute.MultiWorkerMirroredStrategy` whose workers wait for each other aloud, and do not outlive each other.

    Each process calls it before it uses TensorFlow for anything else. It returns when all of them have called it. From then on a worker
    that is not heard of for `timeout` seconds is taken for lost: what the others compute together fails with a `tf.errors.UnavailableError`
    within that time, mostly at once, and no process waits at its end.

    Args:
        timeout: seconds of silence after which a worker is lost. Values of a few seconds take a machine that is busy for one that is gone.
        join_timeout: seconds that the workers wait for each other at the start.
        communication_options: how collectives are done, as for `tf.distribute.MultiWorkerMirroredStrategy`.
        resolver: what knows the addresses of all workers, and which of them this process is, such as
            `tf.distribute.cluster_resolver.SlurmClusterResolver()`. None: the environment variable `TF_CONFIG`; where there is none, the
            variables of Slurm in a process that `srun` started.

    Returns:
        The strategy, connected.

    Raises:
        ValueError: if nothing says who the workers are, if that makes no sense, or if it differs between them.
        RuntimeError: if TensorFlow has started in this process.
        OSError: if the port of this worker is taken.
        TimeoutError: if not all workers come within `join_timeout`.

    Example:
        In each of two processes, the second with index 1:

        >>> os.environ["TF_CONFIG"] = '''{"cluster": {"worker": ["localhost:12345", "localhost:12346"]},
        ...                               "task": {"type": "worker", "index": 0}}'''  # doctest: +SKIP
        >>> strategy = loops.multi_worker_strategy()  # doctest: +SKIP
        >>> with strategy.scope():  # doctest: +SKIP
        ...     model = keras.Sequential([keras.layers.Dense(1)])
    """
    if timeout < _SHORTEST_TIMEOUT:
        raise ValueError(
            f"timeout should be {_SHORTEST_TIMEOUT:g} second or more, but is {timeout:g}: workers send a sign of life twice in it."
        )
    if join_timeout <= 0:
        raise ValueError(f"join_timeout should be a positive number of seconds, but is {join_timeout:g}.")
    if lacking := _private_api.lacks_coordination():
        raise RuntimeError(f"TensorFlow {tf.__version__} lacks {', '.join(lacking)}, by which lost workers are noticed.")
    if _private_api.has_started():
        raise RuntimeError(
            "TensorFlow has started in this process already, and can be joined with others only before: call multi_worker_strategy() once, "
            "before anything makes a tensor, a variable or a model, or lists logical devices."
        )
    members = found(resolver)
    gather(members, join_timeout)
    _avoid_proxies(members)
    _private_api.configure_coordination(
        members.leader,
        {job: len(addresses) for job, addresses in members.jobs.items()},
        join=max(timeout, _CONNECTING),
        heartbeat=timeout,
        leave=timeout,
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(members.resolver, communication_options)
    except tf.errors.OpError as error:
        said = error.message.partition("\n")[0]
        raise TimeoutError(
            f"All workers had come, but TensorFlow could not connect them; start all of them again. It says: {said}"
        ) from error


def _avoid_proxies(members: Members) -> None:
    """gRPC, by which the workers are connected, would ask the proxy that the environment names for web pages to reach them."""
    if any(os.environ.get(name) for name in ("grpc_proxy", "https_proxy", "http_proxy")):
        known = os.environ.get(_NO_PROXY) or os.environ.get("no_proxy") or ""
        hosts = dict.fromkeys(address.rpartition(":")[0] for address in members.addresses)
        os.environ[_NO_PROXY] = ",".join([*filter(None, [known]), *hosts])
