"""What `scripts/benchmark.py` asks of those who train in it. Knows no library: each process of the benchmark imports its own."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from research.benchmarks.workloads import Workload

__all__ = ["Contender", "Terminal", "Timed"]


@dataclasses.dataclass(frozen=True)
class Timed:
    """Steps that were done, and the seconds that they took."""

    steps: int
    seconds: float

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds


class Contender:
    """One way to train a workload.

    A contender is set up once (that compiles), then asked again and again to train whole epochs. It times itself from the beginning of its
    first epoch to the end of its last, so that what is done once per call (copying the data, opening files) counts for nobody.
    """

    def workload(self, workload: str, batch_size: int, source: str, rows: int | None) -> Workload:
        """The workload of this name."""
        from research.benchmarks.workloads import WORKLOADS

        return WORKLOADS[workload].resized(rows=rows, batch_size=batch_size, source=source)

    def unsuitable(self, workload: Workload) -> str | None:
        """Why the contender does not take part in a workload, None if it does."""
        return None

    def setup(self, workload: Workload, directory: pathlib.Path) -> None:
        """Makes the model and compiles all that will run; `directory` is for files that the run writes."""
        raise NotImplementedError

    def run(self, epochs: int) -> Timed:
        """Trains `epochs` more epochs."""
        raise NotImplementedError

    @property
    def mode(self) -> str | None:
        """How steps are compiled, if the contender decides that by itself; asked after `setup`."""
        return None

    def evaluate(self, x: Any, y: Any) -> None:
        """Evaluates the model on arrays; a contender whose library has no such call does without."""
        raise NotImplementedError

    def predict(self, x: Any) -> None:
        """Predicts for an array; a contender whose library has no such call does without."""
        raise NotImplementedError

    def new_model(self, workload: Workload) -> Any:
        """A compiled Keras model that `fit` has not seen, to measure the time to its first step."""
        raise NotImplementedError

    def fit(self, model: Any, x: Any, y: Any, **arguments: Any) -> None:
        """Fits such a model; the arguments are those of `keras.Model.fit`."""
        raise NotImplementedError


class Terminal(io.TextIOBase):
    """Takes what a progress bar writes, as a terminal would."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)
