"""Who the processes of a run are: read from `TF_CONFIG`, a cluster resolver or Slurm's variables, and checked before anything is started.

It opens no connection, and starts nothing of TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from loops.cluster import slurm

__all__ = ["Members", "found"]

_EXAMPLE = """TF_CONFIG='{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'"""


@dataclasses.dataclass(frozen=True)
class Members:
    """The processes of a run, and which of them this one is.

    Attributes:
        jobs: addresses ("host:port") of the tasks of each job; "chief", if there is one, comes before "worker".
        job: the job of this process.
        index: its number within the job.
        resolver: what tells all this to TensorFlow; None where TensorFlow reads `TF_CONFIG` itself.
    """

    jobs: Mapping[str, Sequence[str]]
    job: str
    index: int
    resolver: tf.distribute.cluster_resolver.ClusterResolver | None = None

    @property
    def addresses(self) -> list[str]:
        """All addresses; the place in this list is the number of the worker, 0 is the chief."""
        return [address for addresses in self.jobs.values() for address in addresses]

    @property
    def number(self) -> int:
        """The number of this worker among all."""
        return self.index + (len(self.jobs["chief"]) if self.job == "worker" and "chief" in self.jobs else 0)

    @property
    def leader(self) -> str:
        """TensorFlow's name of the chief."""
        return f"/job:{next(iter(self.jobs))}/replica:0/task:0"

    def named(self, number: int) -> str:
        """A worker as messages call it."""
        return f"worker {number} at {self.addresses[number]}"


def found(resolver: tf.distribute.cluster_resolver.ClusterResolver | None = None) -> Members:
    """The members of the run that this process belongs to.

    Args:
        resolver: what knows them. None: `TF_CONFIG`, or the variables of a Slurm step of several tasks where there is no `TF_CONFIG`.

    Raises:
        ValueError: if nothing says who they are, or what says so makes no sense.
    """
    if resolver is not None:
        return _of_resolver(resolver)
    if os.environ.get("TF_CONFIG", "").strip():
        return _of_tf_config(os.environ["TF_CONFIG"])
    if slurm.is_step(os.environ):
        return _of_slurm()
    raise ValueError(
        "Nothing says which processes train together: TF_CONFIG is not set. Give it to each of them, with an index of its own, such as "
        f"{_EXAMPLE}; on one machine `python scripts/launch.py --workers=2 PROGRAM ...` does that."
    )


def _of_resolver(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> Members:
    # Slurm's resolver learns its own task from the first call of `cluster_spec`.
    jobs = resolver.cluster_spec().as_dict()
    return _checked(f"The {type(resolver).__name__}", jobs, resolver.task_type, resolver.task_id, resolver)


def _of_tf_config(text: str) -> Members:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG is not JSON ({error}): {text!r}. It should look like {_EXAMPLE}.") from error
    if not (isinstance(config, dict) and isinstance(config.get("cluster"), dict) and isinstance(config.get("task"), dict)):
        raise ValueError(f"TF_CONFIG should be an object with a 'cluster' and a 'task', but is {text!r}. It should look like {_EXAMPLE}.")
    return _checked("TF_CONFIG", config["cluster"], config["task"].get("type"), config["task"].get("index"))


def _of_slurm() -> Members:
    addresses, rank = slurm.tasks_of_step(os.environ)
    # This counts GPUs without starting TensorFlow's runtime.
    gpus = len(tf.config.get_visible_devices("GPU"))
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": addresses}), task_type="worker", task_id=rank, num_accelerators={"GPU": gpus}, rpc_layer="grpc"
    )
    return _checked("Slurm's environment", {"worker": addresses}, "worker", rank, resolver)


def _checked(source: str, cluster: Mapping[str, Any], job: Any, index: Any, resolver: Any = None) -> Members:
    jobs = {name: _addresses(source, name, cluster[name]) for name in ("chief", "worker") if cluster.get(name)}
    if job == "evaluator" or "evaluator" in cluster:
        raise ValueError(
            f"{source} has an evaluator, which there is none of here: evaluation is shared out among the workers. Leave it out."
        )
    if job == "ps" or "ps" in cluster:
        raise ValueError(f"{source} has parameter servers ('ps'), but all processes of this strategy are workers. Leave them out.")
    if others := sorted(set(cluster) - {"chief", "worker"}):
        raise ValueError(
            f"{source} has tasks of type {', '.join(map(repr, others))}; expected 'worker', and 'chief' for one of them at most."
        )
    if not jobs:
        raise ValueError(f"{source} lists no workers. It should look like {_EXAMPLE}.")
    if len(jobs.get("chief", ())) > 1:
        raise ValueError(f"{source} lists {len(jobs['chief'])} chiefs, but there is one at most: make the others workers.")
    if job not in jobs:
        raise ValueError(f"{source} says that this task is of type {job!r}, but lists only tasks of type {' and '.join(map(repr, jobs))}.")
    number = _integer(index)
    if number is None or not 0 <= number < len(jobs[job]):
        raise ValueError(
            f"{source} gives this task the index {index!r}, but lists {len(jobs[job])} of type {job!r}: 0 to {len(jobs[job]) - 1}."
        )
    members = Members(jobs, job, number, resolver)
    if twice := sorted({address for address in members.addresses if members.addresses.count(address) > 1}):
        raise ValueError(f"{source} lists {', '.join(twice)} more than once; each worker needs an address of its own.")
    return members


def _addresses(source: str, job: str, listed: Any) -> list[str]:
    if isinstance(listed, (dict, str)) or not isinstance(listed, Sequence):
        raise ValueError(f"{source} should have a list of addresses for {job!r}, but has {listed!r}.")
    for address in listed:
        port = re.fullmatch(r"\S+:(\d{1,5})", address) if isinstance(address, str) else None
        if port is None or "://" in address or not 0 < int(port[1]) < 65536:
            raise ValueError(f"{source} lists {address!r} for {job!r}; an address is written 'host:port', without 'http://'.")
    return list(listed)


def _integer(value: Any) -> int | None:
    """An index, which schedulers may write as text."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return int(value) if re.fullmatch(r"\d+", str(value)) else None
