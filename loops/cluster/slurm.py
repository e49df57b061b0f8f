"""The tasks of a Slurm step, from the variables that `srun` gives to each of them.

TensorFlow's `SlurmClusterResolver` reads them too, but sorts the nodes as text (node10 before node9), so that tasks take themselves for
others, and shares out the GPUs of a node, which Slurm does itself (`--gpus-per-task`) and which fails where there are none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

__all__ = ["is_step", "tasks_of_step"]

_NEEDED = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
# Below the ports that Linux gives to outgoing connections. Jobs that share a node begin at different ones.
_FIRST_PORT, _PORTS, _PORTS_OF_A_JOB = 12_000, 20_000, 64


def is_step(variables: Mapping[str, str]) -> bool:
    """Whether `srun` started this process."""
    return all(name in variables for name in _NEEDED)


def tasks_of_step(variables: Mapping[str, str]) -> tuple[list[str], int]:
    """The addresses of all tasks of the step, and which of them this process is.

    Raises:
        ValueError: if the variables cannot be read, or tasks are not laid out block by block.

    Example:
        >>> tasks_of_step({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_NODELIST": "n[9-10]",
        ...                "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_JOB_ID": "5"})
        (['n9:12320', 'n9:12321', 'n10:12320'], 2)
    """
    hosts = list(_hosts(variables["SLURM_STEP_NODELIST"]))
    counts = list(_counts(variables["SLURM_STEP_TASKS_PER_NODE"]))
    tasks, rank = int(variables["SLURM_STEP_NUM_TASKS"]), int(variables["SLURM_PROCID"])
    if len(hosts) != len(counts) or sum(counts) != tasks:
        raise ValueError(
            f"Slurm's variables do not fit each other: SLURM_STEP_NODELIST={variables['SLURM_STEP_NODELIST']}, SLURM_STEP_TASKS_PER_NODE="
            f"{variables['SLURM_STEP_TASKS_PER_NODE']}, SLURM_STEP_NUM_TASKS={tasks}."
        )
    first = _FIRST_PORT + int(variables.get("SLURM_JOB_ID", "0")) * _PORTS_OF_A_JOB % _PORTS
    nodes = [node for node, count in enumerate(counts) for _ in range(count)]
    if int(variables.get("SLURM_NODEID", nodes[rank])) != nodes[rank]:
        raise ValueError(
            f"Slurm runs task {rank} on node {variables['SLURM_NODEID']} of the step, but tasks are expected node by node, which is node "
            f"{nodes[rank]}: start them by srun --distribution=block."
        )
    return [f"{host}:{first + i}" for host, count in zip(hosts, counts, strict=True) for i in range(count)], rank


def _hosts(text: str) -> Iterator[str]:
    """The hosts of a list such as "a,rack[1-2]n[08-10,12]", in its order."""
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        pieces = re.split(r"\[([^\]]*)\]", name)  # at odd places what stood in brackets
        choices = [list(_numbers(piece)) if i % 2 else [piece] for i, piece in enumerate(pieces)]
        yield from map("".join, itertools.product(*choices))


def _numbers(text: str) -> Iterator[str]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from (str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1))


def _counts(text: str) -> Iterator[int]:
    """The numbers of a list such as "2(x3),1"."""
    for part in text.split(","):
        count, _, times = part.partition("(x")
        yield from itertools.repeat(int(count), int(times.rstrip(")") or 1))
