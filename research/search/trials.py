"""The trials of a search: which is next, and what became of it. Optuna's storage is the engine; ours is that a kill changes nothing.

Each trial is a run in a folder of its own. A process holds the lock of its trial while it lives. Whoever finds a trial that is not finished
and that nobody holds goes on with it, in the middle of its training. Samplers get their seeds from the number of the trial and the name of
the parameter, so they need no state of their own: a search that was killed tries the points that it would have tried.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy.exc

from loops.errors import WorkdirInUse
from loops.files import write_first
from loops.run.workdir_lock import WorkdirLock
from research.search.space import Space
from research.study import InputError

__all__ = ["STORAGE_ERRORS", "Search", "Trial", "guesses"]

#: What Optuna raises when its storage cannot be reached.
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)

_SEARCH, _CLAIMS, TRIALS = "search.json", ".claims", "trials"
_PLACE, _TOKEN, _REASON = "place", "token", "reason"
_ATTEMPTS = 4  # to open a storage whose tables another process makes just now
_DONE = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)


class Trial:
    """One trial that this process holds.

    Args:
        search: its search.
        trial: the trial of Optuna.

    Attributes:
        number: its number, from 0.
        folder: where its run is.
    """

    def __init__(self, search: Search, trial: optuna.trial.Trial):
        self._search, self._trial = search, trial
        self.number = trial.number
        self.folder = search.folder / TRIALS / f"{trial.number:04d}"

    @property
    def params(self) -> dict[str, Any]:
        """The values that were suggested."""
        return self._trial.params

    def __getattr__(self, name: str) -> Any:
        """`suggest_float`, `suggest_int` and `suggest_categorical` of Optuna, each with a seed of its own."""
        if not name.startswith("suggest_"):
            raise AttributeError(f"A trial has number, params and suggest_float, suggest_int, suggest_categorical, but no {name!r}")
        suggest = getattr(self._trial, name)

        def seeded(parameter: str, *arguments: Any, **named: Any) -> Any:
            study = self._trial.study
            study.sampler = self._search.sampler(self.number)
            self._trial.relative_params  # noqa: B018 drawn at the first access, from the seed of the trial
            study.sampler = self._search.sampler(self.number, parameter)
            return suggest(parameter, *arguments, **named)

        return seeded

    def report(self, value: float, step: int) -> bool:
        """Tells the value of a step; returns whether the trial is to be given up. A step that was told before is not told again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trial.report(value, step)
        return self._trial.should_prune()

    def completed(self, values: Sequence[float], **notes: Any) -> None:
        """Ends the trial with what it reached, and notes to keep with it."""
        self._note(notes)
        self._trial.study.tell(self._trial, list(values))

    def pruned(self, **notes: Any) -> None:
        """Ends a trial that was given up."""
        self._note(notes)
        self._trial.study.tell(self._trial, state=optuna.trial.TrialState.PRUNED)

    def failed(self, reason: str) -> None:
        """Ends a trial that cannot be trained."""
        self._note({_REASON: reason})
        self._trial.study.tell(self._trial, state=optuna.trial.TrialState.FAIL)

    def _note(self, notes: Mapping[str, Any]) -> None:
        for name, value in notes.items():
            self._trial.set_user_attr(name, value)


class Search:
    """A search in a workdir.

    Args:
        folder: the workdir of the search.
        space: the points that may be tried.
        settings: what the search is about, JSON-able; one with other settings is refused.
        directions: "minimize" or "maximize", one for each objective.
        sampler, pruner: one of `space.SAMPLERS`, and of `space.PRUNERS`.
        seed: of the samplers.
        storage: URL of a database for searches on several machines, which the last part of `folder` names there; None: a file in the
            workdir.
        several: whether other processes work on this search too.

    Raises:
        InputError: if the storage cannot be used, or holds another search.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        space: Space,
        settings: Mapping[str, Any],
        *,
        directions: Sequence[str],
        sampler: str = "tpe",
        pruner: str = "median",
        seed: int = 0,
        storage: str | None = None,
        several: bool = False,
    ):
        self.folder, self.space, self._seed, self._several = folder, space, seed, several
        self._sampler = sampler
        self._grid = space.grid() if sampler == "grid" else None
        identity = json.dumps({**settings, "space": space.describe(), "directions": list(directions)}, sort_keys=True, default=str)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_first(folder / _SEARCH, json.dumps({"place": uuid.uuid4().hex, "search": json.loads(identity)}, indent=2) + "\n")
            written = json.loads((folder / _SEARCH).read_text(encoding="utf-8"))
            self._place = written["place"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder / _SEARCH} cannot be written or read ({error}); give a new workdir.") from error
        _check_same(written["search"], json.loads(identity), f"The search in {folder}")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url = storage or f"sqlite:///{folder / 'search.db'}"
        name = "search" if storage is None else folder.resolve().name
        try:
            with self._alone():
                self.study = _opened(self.url, name, directions, self.sampler(0), _pruner(pruner))
                known = self.study.user_attrs.get("search")
                self._made_here = known is None
                if known is None:
                    self.study.set_user_attr("search", json.loads(identity))
        except Exception as error:  # Optuna's, SQLAlchemy's and the drivers' own
            raise InputError(f"The storage {self.url!r} cannot be used ({_first_line(error)}).") from error
        if known is not None:
            _check_same(known, json.loads(identity), f"The search {name!r} in {self.url}")

    def sampler(self, number: int, parameter: str = "") -> Any:
        """The sampler for a trial, or for one parameter of it."""
        seed = zlib.crc32(f"{self._seed}/{number}/{parameter}".encode())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of features that Optuna calls experimental
            if self._sampler == "grid":
                return _Grid(self._grid or {}, seed=self._seed)  # the same order of its points for all trials
            if self._sampler == "random":
                return optuna.samplers.RandomSampler(seed=seed)
            if self._sampler == "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed)
            return optuna.samplers.TPESampler(seed=seed, constant_liar=self._several)

    def limit(self, trials: int) -> int:
        """How many trials there will be: of a grid not more than it has points."""
        points = 1
        for values in (self._grid or {}).values():
            points *= len(values)
        return min(trials, points) if self._grid else trials

    @contextlib.contextmanager
    def next(self, trials: int) -> Iterator[Trial | None]:
        """The trial to work on, held while this context lasts; None if there is none left to begin.

        Args:
            trials: how many there shall be.
        """
        with contextlib.ExitStack() as held:
            with self._alone():
                limit = self.limit(trials)
                trial = self._unfinished(held, limit) or self._new(held, limit)
            yield trial

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, in whatever way, by number."""
        return self.study.get_trials(deepcopy=False, states=_DONE)

    def begun(self) -> int:
        """How many trials have begun and not ended, here or on other machines."""
        return len(self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]))

    def take_back(self) -> None:
        """Forgets a search that this process has made and that has no trials: what it was made for was wrong."""
        with self._alone():
            if self._made_here and not self.study.get_trials(deepcopy=False):
                optuna.delete_study(study_name=self.study.study_name, storage=self.url)
                (self.folder / _SEARCH).unlink()

    def gone(self, error: Exception) -> InputError:
        """The sentence for one of `STORAGE_ERRORS`."""
        return InputError(
            f"The storage {self.url!r} cannot be used any more ({_first_line(error)}). The trials that have ended are in it, their runs in "
            f"{self.folder / TRIALS}; the same command goes on when it is back."
        )

    def _unfinished(self, held: contextlib.ExitStack, limit: int) -> Trial | None:
        for frozen in self._running(limit):
            with contextlib.ExitStack() as lock:
                if not self._hold(lock, frozen.number) or frozen.number not in {other.number for other in self._running(limit)}:
                    continue  # somebody works on it, or has just ended it
                held.push(lock.pop_all())
                return self._trial(frozen)
        return None

    def _running(self, limit: int) -> list[optuna.trial.FrozenTrial]:
        running = self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
        return [trial for trial in running if trial.user_attrs.get(_PLACE) == self._place and trial.number < limit]

    def _new(self, held: contextlib.ExitStack, limit: int) -> Trial | None:
        if len(self.study.get_trials(deepcopy=False)) >= limit:
            return None
        # Not `ask`: between it and a note whose trial it is, another machine might take it for one that nobody works on.
        token = uuid.uuid4().hex
        running = optuna.trial.TrialState.RUNNING
        self.study.add_trial(optuna.trial.create_trial(state=running, user_attrs={_PLACE: self._place, _TOKEN: token}))
        frozen = next(trial for trial in self.study.get_trials(deepcopy=False) if trial.user_attrs.get(_TOKEN) == token)
        if frozen.number >= limit or not self._hold(held, frozen.number):
            return None  # another machine began the last one: this one waits until more are asked for
        return self._trial(frozen)

    def _trial(self, frozen: optuna.trial.FrozenTrial) -> Trial:
        self.study.sampler = self.sampler(frozen.number)
        return Trial(self, optuna.trial.Trial(self.study, frozen._trial_id))

    def _hold(self, held: contextlib.ExitStack, number: int) -> bool:
        try:
            held.enter_context(WorkdirLock(self.folder / _CLAIMS / f"{number:04d}", report=_nothing))
        except WorkdirInUse:
            return False
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one process of this workdir is in this context at a time."""
        while True:
            try:
                with WorkdirLock(self.folder / _CLAIMS / "ask", report=_nothing):
                    yield
                    return
            except WorkdirInUse:
                time.sleep(0.05)


def guesses(count: int = 20) -> list[Any]:
    """Trials that suggest values at random and belong to no search, to look at a space."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask() for _ in range(count)]


class _Grid(optuna.samplers.GridSampler):
    """A grid whose end `Search.limit` knows: Optuna's would stop a study that nobody runs."""

    def after_trial(self, *_: Any, **__: Any) -> None:
        pass


def _opened(url: str, name: str, directions: Sequence[str], sampler: Any, pruner: Any) -> optuna.Study:
    for attempt in range(_ATTEMPTS):
        try:
            return optuna.create_study(
                study_name=name,
                storage=optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}} if "sqlite" in url else None),
                directions=list(directions),
                sampler=sampler,
                pruner=pruner,
                load_if_exists=True,
            )
        except STORAGE_ERRORS:  # two machines that make the tables at the same time
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError("the last attempt returns or raises")


def _first_line(error: Exception) -> str:
    return str(error.__cause__ or error).strip().splitlines()[0]


def _pruner(name: str) -> Any:
    kinds: dict[str, Callable[[], Any]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
        "hyperband": optuna.pruners.HyperbandPruner,
        "none": optuna.pruners.NopPruner,
    }
    return kinds[name]()


def _check_same(saved: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    for name in dict.fromkeys([*saved, *given]):
        if saved.get(name) != given.get(name):
            raise InputError(
                f"{where} is another one: {name} was {json.dumps(saved.get(name))} and is {json.dumps(given.get(name))} now. "
                "Give what it was, or a new workdir."
            )


def _nothing(sentence: str) -> None:
    pass
