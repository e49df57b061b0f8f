"""The worker processes of a run, and what they tell each other between calls of the compiled program.

Everything goes through TensorFlow's collectives, the ones that carry the gradients, so nothing else has to be reachable: no shared file
system, no further port. All workers have to call the same methods in the same order; a worker that waits here for one that is gone is freed
by TensorFlow's coordination service, with an error. A run of one process has a cluster of one worker, for which all of this costs nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from loops import _private_api
from loops.errors import MismatchError, WorkerFailed, WorkerLost
from loops.messages import alert, leave_to_chief

__all__ = ["Cluster"]

_WORD = 4  # bytes of an int32, the smallest type that every collective takes
# What TensorFlow says in errors of collectives that were aborted.
_SIGNS = ("Collective ops is aborted", "heartbeat", "Connection reset by peer", "failed to connect to all addresses")
# What it raises where another process does not answer. Other errors, those of a step among them, name devices ("task:0") as well.
_NO_ANSWER = (tf.errors.UnavailableError, tf.errors.AbortedError)
_DIFFERENT = ("expected type", "expected group", "Shape mismatch in the collective", "Device conflict")
_FAILED, _END = "[tapeloops] ", " [end]"
_MOST_WORDS = 1 << 22
_LEAST_WORDS = 1 << 8
_ATTRIBUTE = "_tapeloops_cluster"
_ADVICE = "Start all of them with the same command, code, data and versions."


class Cluster:
    """The workers of a distribution strategy.

    Args:
        strategy: any; only a `tf.distribute.MultiWorkerMirroredStrategy` has several workers.

    Attributes:
        count: number of workers.
        index: which of them this process is; the chief is 0.
        local_replicas: how many replicas this process has.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        replicas = int(strategy.num_replicas_in_sync)
        self._strategy = strategy
        self.local_replicas = len(strategy.extended.worker_devices) if replicas > 1 else 1  # the default strategy names no devices
        self.count = replicas // self.local_replicas
        self.index = _index(strategy) if self.count > 1 else 0
        if self.index:
            leave_to_chief()
        self._sums: dict[tf.DType, Any] = {}
        self._left = False
        self._alone: str | None = None
        self._agreed: BaseException | None = None

    @classmethod
    def of(cls, strategy: tf.distribute.Strategy) -> Cluster:
        """The cluster of a strategy, one object for each; an attribute of it, so that it ends with it."""
        if (found := vars(strategy).get(_ATTRIBUTE)) is None:
            found = vars(strategy)[_ATTRIBUTE] = cls(strategy)
        return found

    def __repr__(self) -> str:
        return f"Cluster(worker {self.index} of {self.count})"

    @property
    def several(self) -> bool:
        """Whether there is more than one worker."""
        return self.count > 1

    @property
    def is_chief(self) -> bool:
        """Whether this is the one worker that writes files and speaks."""
        return self.index == 0

    @property
    def whole(self) -> bool:
        """Whether the workers can exchange anything: none is known to be gone or to have failed."""
        return not self._left

    def table(self, values: Sequence[float]) -> np.ndarray:
        """What every worker gave, float64 `[workers, values]`. All give the same number of values. One collective."""
        mine = np.asarray(values, np.float64)
        if not self.several:
            return mine[None]
        slots = np.zeros([self.count, len(mine)])
        slots[self.index] = mine
        return self._sum(tf.constant(slots.reshape(-1))).numpy().reshape(self.count, -1)

    def all(self, fact: bool) -> bool:
        """Whether `fact` is true on every worker."""
        return fact if not self.several else bool(self.table([float(fact)]).all())

    def any(self, *facts: bool) -> list[bool]:
        """Which of the facts are true on some worker."""
        return list(facts) if not self.several else [bool(column.any()) for column in self.table([float(fact) for fact in facts]).T]

    def mean(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The mean over the workers of arrays whose shapes are the same on all, in float64. One collective."""
        if not self.several or not values:
            return [np.asarray(value, np.float64) for value in values]
        flat = np.concatenate([np.asarray(value, np.float64).reshape(-1) for value in values])
        mean = self._sum(tf.constant(flat)).numpy() / self.count
        ends = np.cumsum([np.size(value) for value in values])[:-1]
        return [part.reshape(np.shape(value)) for part, value in zip(np.split(mean, ends), values, strict=True)]

    def gather(self, content: bytes) -> list[bytes]:
        """What every worker gave, on every worker."""
        if not self.several:
            return [content]
        sizes = self.table([len(content)])[:, 0].astype(np.int64)
        words = [-(-int(size) // _WORD) for size in sizes]
        begin = sum(words[: self.index])
        mine = np.frombuffer(content.ljust(words[self.index] * _WORD, b"\0"), np.int32)
        parts, total, at = [], sum(words), 0
        while at < total:
            n = min(_MOST_WORDS, total - at)
            buffer = np.zeros([_rounded(n)], np.int32)
            first, last = max(begin, at), min(begin + len(mine), at + n)
            if first < last:
                buffer[first - at : last - at] = mine[first - begin : last - begin]
            parts.append(self._sum(tf.constant(buffer)).numpy()[:n])
            at += n
        joined = np.concatenate(parts).tobytes() if parts else b""
        begins = np.cumsum([0, *words]) * _WORD
        return [joined[begins[i] : begins[i] + int(sizes[i])] for i in range(self.count)]

    def from_chief(self, content: bytes | None) -> bytes:
        """What the chief gave. The others give None."""
        if not self.several:
            return content or b""
        return self.gather(content if self.is_chief and content is not None else b"")[0]

    def gather_json(self, value: Any) -> list[Any]:
        """What every worker gave, JSON-able, on every worker."""
        return [json.loads(text) for text in self.gather(json.dumps(value, default=str).encode())]

    def together(self, act: Callable[[], Any], *, on: str) -> Any:
        """Runs `act` on the chief and returns what it returned there; elsewhere None. If it fails, all workers fail.

        Args:
            act: may raise.
            on: what it is about, for the error of the others.

        Raises:
            Exception: on the chief, what `act` raised.
            WorkerFailed: on the others, with the chief's reason.
        """
        if not self.several:
            return act()
        result, error = None, None
        if self.is_chief:
            try:
                result = act()
            except Exception as failed:
                error = failed
        (reason, *_) = self.gather_json(None if error is None else str(error) or type(error).__name__)
        if error is not None:
            raise self.agreed(error)
        if reason is not None:
            raise self.agreed(WorkerFailed(f"The chief failed ({on}): {reason}"))
        return result

    def check_same(self, settings: Mapping[str, Any], advice: str = _ADVICE) -> None:
        """Checks that all workers have the same settings.

        Args:
            settings: name -> value, JSON-able, nested.
            advice: what to do, for the error.

        Raises:
            MismatchError: on every worker, if not, naming the first difference.
        """
        if not self.several:
            return
        first, *others = self.gather_json(settings)
        for index, other in enumerate(others, 1):
            if (difference := _difference(first, other, "")) is not None:
                name, here, there = difference
                raise self.agreed(
                    MismatchError(
                        f"The workers do not run the same thing: {name} is {_short(here)} on worker 0 and {_short(there)} on worker "
                        f"{index}. {advice}"
                    )
                )

    def _sum(self, values: tf.Tensor) -> tf.Tensor:
        """The sum over workers of a vector; where a worker has several replicas the first one gives it."""
        if self._left:
            raise RuntimeError("This worker has left its cluster after a failure.")
        self.check_together()
        if values.dtype not in self._sums:

            def on_replica(vector: tf.Tensor) -> tf.Tensor:
                context = tf.distribute.get_replica_context()
                replica = int(tf.get_static_value(context.replica_id_in_sync_group) or 0)
                vector = tf.identity(vector) if replica % self.local_replicas == 0 else tf.zeros_like(vector)
                return context.all_reduce(tf.distribute.ReduceOp.SUM, vector)

            def over_workers(vector: tf.Tensor) -> tf.Tensor:
                return self._strategy.experimental_local_results(self._strategy.run(on_replica, args=(vector,)))[0]

            signature = [tf.TensorSpec([None], values.dtype)]
            self._sums[values.dtype] = tf.function(over_workers, input_signature=signature, autograph=False)
        with self.noticing_loss():
            return self._sums[values.dtype](values)

    @contextlib.contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Turns errors of collectives that were aborted, because another worker is gone or has failed, into errors that say so.

        Raises:
            WorkerLost: if a worker is gone.
            WorkerFailed: if a worker has failed, with its reason.
            RuntimeError: if workers have met in collectives of different places.
        """
        try:
            yield
        except tf.errors.OpError as error:
            aborted = isinstance(error, _NO_ANSWER) or any(word in error.message for word in _SIGNS)
            if not self.several or not aborted:
                raise
            self._left = True
            if _FAILED in error.message:
                reason = error.message.partition(_FAILED)[2].partition(_END)[0]
                raise WorkerFailed(f"Another worker has failed, so this one ends too: {reason}") from None
            if any(word in error.message for word in _DIFFERENT):
                raise RuntimeError(
                    "The workers have come to different places of the program, which each waits for the others to come to. All have to "
                    "make the same calls in the same order: of training, evaluation, prediction, results of metrics, new variables. Is one "
                    f"of them made on the chief only? TensorFlow says: {error.message.strip().splitlines()[0]}"
                ) from None
            gone = next((f" ({word.rstrip(':')})" for word in error.message.split() if word.startswith("/job:")), "")
            alert(
                f"Worker {self.index} ends, because another worker of the run is gone{gone}. Start all of them again: the run goes on from "
                "its last snapshot."
            )
            raise WorkerLost(error.message.strip().splitlines()[0]) from None

    @contextlib.contextmanager
    def alone(self, who: str | None) -> Iterator[None]:
        """Within this context code runs that the other workers do not run, so that nothing can be done together.

        Args:
            who: whose code, for errors; None: all workers run it.
        """
        before, self._alone = self._alone, who if self.several else None
        try:
            yield
        finally:
            self._alone = before

    def check_together(self) -> None:
        """Checks that all workers run this: to be called before what ends in collectives, those of Keras's metrics included.

        Raises:
            RuntimeError: within `alone`.
        """
        if self._alone is not None:
            raise RuntimeError(
                f"{self._alone} acts on the chief only, because its phase is RECORD or SAVE, and asks for what all workers have to do "
                "together (evaluate, predict, train): give it `phase = hooks.Phase.EVALUATE` or DECIDE, or `on_all_workers = True`."
            )

    def agreed(self, error: Exception) -> Exception:
        """An error that all workers raise at the same place, so that none has to be told of it; the same error."""
        self._agreed = error
        return error

    def leave(self, error: BaseException) -> None:
        """Tells the other workers that this one has failed, so that they end too. Nothing is exchanged afterwards.

        Args:
            error: what this one has failed with.
        """
        if not self.several or self._left or error is self._agreed:
            return
        self._left = True
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        _private_api.report_to_cluster(f"{_FAILED}worker {self.index}: {reason}{_END}")


def _index(strategy: tf.distribute.Strategy) -> int:
    """The place of this process among the workers, the chief first, as the replicas are numbered."""
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    before = len(jobs.get("chief", ())) if resolver.task_type == "worker" else 0
    return before + int(resolver.task_id)


def _rounded(words: int) -> int:
    """The next power of two, so that few shapes occur."""
    return max(_LEAST_WORDS, 1 << (words - 1).bit_length())


def _difference(here: Any, there: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first place at which two nested JSON values differ."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in [*here, *(key for key in there if key not in here)]:
            found = _difference(here.get(key), there.get(key), f"{name}.{key}" if name else str(key))
            if found is not None:
                return found
        return None
    if isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for place, pair in enumerate(zip(here, there, strict=True)):
            if (found := _difference(*pair, f"{name}[{place}]")) is not None:
                return found
        return None
    return None if here == there else (name, here, there)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."
