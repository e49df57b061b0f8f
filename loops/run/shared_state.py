"""The state of a run of several worker processes: what differs between them is gathered into the chief's snapshot, and comes back from it.

    "model/3"               a value that all workers have alike, or the chief's
    "workers/1/model/3"     that of worker 1: batch statistics, metrics, variables outside of the strategy's scope
    files/feed, files/feed-1    where the chief's and worker 1's pipelines stand

Only the chief reads and writes the folder. Everything else goes through the collectives.
"""

from __future__ import annotations

import hashlib
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loops.cluster import Cluster
from loops.cluster.packing import packed, unpacked
from loops.run.run_state import RunState
from loops.snapshots import content

__all__ = ["SharedStates"]

_OF_WORKERS = "workers"
_DIGEST = 16  # bytes

#: What a worker has for itself: its arrays by name, and the files of its feed.
Part = tuple[dict[str, Any], dict[str, bytes]]


class SharedStates:
    """Sends states between the workers of a run. All of them call the same methods in the same order.

    Args:
        cluster: the workers.
    """

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def gather(self, state: RunState, save_feed: Callable[[pathlib.Path], bool]) -> list[Part]:
        """What every worker has for itself: of variables, the values that are not those of the chief.

        Args:
            state: the state of this process.
            save_feed: writes the position of the feed into a folder.
        """
        names = [f"{group}/{i}" for group, variables in state.state["variables"].items() for i in range(len(variables))]
        digests = [_digest(state.arrays[name]) for name in names]
        of_chief = self._cluster.from_chief(b"".join(digests))
        own = [name for i, name in enumerate(names) if of_chief[i * _DIGEST : (i + 1) * _DIGEST] != digests[i]]
        if self._cluster.is_chief:
            sent = b""  # the chief's own are in its state
        else:
            with tempfile.TemporaryDirectory() as folder:
                directory = pathlib.Path(folder) / "feed"
                save_feed(directory)
                sent = packed({name: state.arrays[name] for name in own}, {}, _files_below(directory))
        return [({}, {}) if not part else unpacked(part)[::2] for part in self._cluster.gather(sent)]

    def merged(self, state: RunState, parts: list[Part]) -> RunState:
        """The chief's state with what the other workers have for themselves."""
        others = {f"{_OF_WORKERS}/{worker}/{name}": array for worker, (arrays, _) in enumerate(parts) for name, array in arrays.items()}
        return RunState(state.step, {**state.arrays, **others}, state.state)

    def save_feeds(self, save_feed: Callable[[pathlib.Path], bool], parts: list[Part]) -> Callable[[pathlib.Path], bool]:
        """A function that writes the positions of all workers' feeds, the chief's into the folder that it is given."""

        def save(directory: pathlib.Path) -> bool:
            for worker, (_, files) in enumerate(parts):
                _write(files, _of_worker(directory, worker))
            return save_feed(directory)

        return save

    def send(self, found: tuple[RunState, pathlib.Path | None] | None) -> tuple[RunState, pathlib.Path | None] | None:
        """The state that the chief found, on every worker with what it had for itself; None if the chief found none.

        Args:
            found: on the chief, the state and the folder with its feed's files; ignored on the others.

        Returns:
            The same for this worker.
        """
        cluster = self._cluster
        if not cluster.several:
            return found
        sent = None
        if cluster.is_chief and found is not None:
            state, directory = found
            files = {
                f"{worker}/{name}": data
                for worker in range(1, cluster.count)
                for name, data in (_files_below(_of_worker(directory, worker)) if directory is not None else {}).items()
            }
            sent = packed(state.arrays, {"step": state.step, "state": state.state, "feed": directory is not None}, files)
        received = cluster.from_chief(sent)
        if not received or cluster.is_chief:
            return found if cluster.is_chief else None
        arrays, described, files = unpacked(received)
        prefix = f"{_OF_WORKERS}/{cluster.index}/"
        arrays.update({name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)})
        feed = None
        if described["feed"]:
            self._folder = tempfile.TemporaryDirectory()  # lives until the feed has read it
            feed = pathlib.Path(self._folder.name) / "feed"
            feed.mkdir()
            mine = f"{cluster.index}/"
            _write({name.removeprefix(mine): data for name, data in files.items() if name.startswith(mine)}, feed)
        return RunState(described["step"], arrays, described["state"]), feed


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(content.array_bytes(np.ascontiguousarray(array)), digest_size=_DIGEST).digest()


def _of_worker(directory: pathlib.Path, worker: int) -> pathlib.Path:
    return directory.with_name(f"{directory.name}-{worker}")


def _files_below(directory: pathlib.Path) -> dict[str, bytes]:
    found = sorted(path for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else []
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def _write(files: Mapping[str, bytes], directory: pathlib.Path) -> None:
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
