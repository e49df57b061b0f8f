"""Searches survive kills, are shared by processes, and refuse what they cannot do; with functions in place of training."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys

import pytest
from ml_collections import config_dict

from research.search.space import Choices, Range, Space, parse, take_flags
from research.study import InputError
from tests.scripts.programs import REPOSITORY

pytest.importorskip("optuna")
from research.search import conclusion
from research.search.trials import STORAGE_ERRORS, Search, guesses

CONFIG = config_dict.ConfigDict({"optimizer": {"rate": 0.1, "name": "sgd"}, "units": 8, "deep": True})
SPACE = Space([Range("optimizer.rate", 1e-3, 1.0, log=True), Choices("units", (4, 8, 16)), Range("depth", 1, 5)])
WIDE = config_dict.ConfigDict({**CONFIG.to_dict(), "depth": 2})


class Killed(BaseException):
    pass


def value_of(config):
    return (config.optimizer.rate - 0.03) ** 2 + 0.01 * abs(config.units - 8) + config.depth / 100


def work(search, trials, config=WIDE, after=()):
    """Does trials; in the trial of that number a kill comes at an epoch, once."""
    while True:
        with search.next(trials) as trial:
            if trial is None:
                return
            point = copy.deepcopy(config)
            search.space.apply(trial, point)
            value, given_up = value_of(point), False
            for epoch in range(1, 6):
                if (trial.number, epoch) in after:
                    after.remove((trial.number, epoch))
                    raise Killed
                given_up = given_up or trial.report(value + 1 / epoch, epoch)
                if given_up:
                    break
            if given_up:
                trial.pruned(steps=epoch)
            else:
                trial.completed([value], steps=epoch)


def results(search):
    return [(t.number, t.state.name, t.values, t.params, t.intermediate_values) for t in search.finished()]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_search_that_was_killed_tries_the_same_points(tmp_path, sampler):
    def search(name):
        return Search(tmp_path / name, SPACE, {}, directions=["minimize"], sampler=sampler, pruner="median")

    work(undisturbed := search("a"), 14)
    kills = [(0, 1), (3, 5), (7, 2), (8, 1), (12, 3)]
    for _ in range(len(kills)):
        with contextlib.suppress(Killed):
            work(search("b"), 14, after=kills)
    work(again := search("b"), 14)
    assert not kills
    assert results(again) == results(undisturbed)
    states = [state for _, state, *_ in results(again)]
    assert len(states) == 14 and {"COMPLETE", "PRUNED"} <= set(states)
    work(again, 16)
    assert len(results(again)) == 16


def test_points_do_not_depend_on_where_a_kill_came_among_the_suggestions(tmp_path):
    searches = [Search(tmp_path / name, SPACE, {}, directions=["minimize"], sampler="tpe") for name in "ab"]
    for search in searches:
        work(search, 12)
    with searches[0].next(13) as trial:
        SPACE.parameters[0].suggest(trial)
    found = []
    for search in searches:
        with search.next(13) as trial:
            assert trial.number == 12
            SPACE.apply(trial, config := copy.deepcopy(WIDE))
            found.append((trial.params, config.to_dict()))
    assert found[0] == found[1]


@pytest.mark.parametrize("workdirs", [("s", "s"), ("a/s", "b/s")], ids=["one workdir", "one storage"])
def test_two_processes_share_the_trials(tmp_path, workdirs):
    code = (
        "import sys, pathlib; from research.search.space import *; from research.search.trials import Search\n"
        "s = Search(pathlib.Path(sys.argv[1]), Space([Range('x', 0.0, 1.0)]), {}, directions=['minimize'], several=True,\n"
        "           storage=sys.argv[2] or None)\n"
        "while True:\n"
        "    with s.next(20) as t:\n"
        "        if t is None: break\n"
        "        print(t.number); t.completed([t.suggest_float('x', 0.0, 1.0)], steps=1)\n"
    )
    bare = "import sys, types; sys.modules['loops'] = m = types.ModuleType('loops'); m.__path__ = ['loops']\n"  # without TensorFlow
    storage = f"sqlite:///{tmp_path / 'shared.db'}" if workdirs[0] != workdirs[1] else ""
    commands = [[sys.executable, "-c", bare + code, str(tmp_path / workdir), storage] for workdir in workdirs]
    workers = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for command in commands]
    done = [[int(line) for line in worker.communicate()[0].split()] for worker in workers]
    assert sorted(done[0] + done[1]) == list(range(20))


def test_of_two_machines_that_begin_the_last_trial_one_waits_until_more_are_asked_for(tmp_path):
    shared = {"directions": ["minimize"], "storage": f"sqlite:///{tmp_path / 'shared.db'}"}
    here, there = (Search(tmp_path / machine / "s", SPACE, {}, **shared) for machine in "ab")
    add = here.study.add_trial

    def second(trial):
        with there.next(1) as first:
            assert first.number == 0
            first.completed([1.0], steps=1, epochs=1)
        add(trial)

    here.study.add_trial = second
    with here.next(1) as trial:
        assert trial is None
    assert len(here.finished()) == 1 and here.begun() == 1
    with there.next(2) as trial:
        assert trial is None  # it is not there that it was begun
    with here.next(2) as trial:
        assert trial.number == 1


def test_a_lost_storage_fails_no_trial(tmp_path):
    search = Search(tmp_path, SPACE, {}, directions=["minimize"])
    with search.next(1) as trial:
        SPACE.apply(trial, copy.deepcopy(WIDE))
        (tmp_path / "search.db").rename(tmp_path / "elsewhere.db")
        with pytest.raises(STORAGE_ERRORS) as lost:
            trial.report(1.0, 1)
    said = str(search.gone(lost.value))
    assert "cannot be used any more" in said and said.endswith("the same command goes on when it is back.")
    (tmp_path / "elsewhere.db").rename(tmp_path / "search.db")
    with Search(tmp_path, SPACE, {}, directions=["minimize"]).next(1) as again:
        assert again.number == 0 and again.params == trial.params


def test_a_search_without_trials_can_be_taken_back(tmp_path):
    Search(tmp_path, SPACE, {"metrics": ["wrong"]}, directions=["maximize"]).take_back()
    search = Search(tmp_path, SPACE, {"metrics": ["right"]}, directions=["minimize"])
    with search.next(1) as trial:
        trial.failed("no reason")
    search.take_back()
    assert len(Search(tmp_path, SPACE, {"metrics": ["right"]}, directions=["minimize"]).finished()) == 1


def test_the_steps_that_pruning_saved_are_those_of_the_epochs_that_a_trial_did_not_have(tmp_path):
    search = Search(tmp_path, SPACE, {}, directions=["minimize"])
    for end, steps, epochs in (("completed", 100, 10), ("completed", 100, 10), ("pruned", 40, 2)):
        with search.next(3) as trial:
            SPACE.apply(trial, copy.deepcopy(WIDE))
            getattr(trial, end)(*([[1.0]] if end == "completed" else []), steps=steps, epochs=epochs)
    assert "Pruning saved 40% of 400 steps, had pruned trials run for as many epochs as the others." in conclusion.told(search)
    with search.next(4) as trial:
        trial.failed("it is blue")
    pictures = conclusion.draw(search, ["val_loss"], {"values": [0.5]})
    assert [path.stem for path in pictures] == ["history", "slices", "parallel_coordinates"] and all(path.is_file() for path in pictures)
    assert "Failed: it is blue" in conclusion.told(search)


def test_a_grid_tries_each_point_once(tmp_path):
    space = Space([Choices("units", (4, 8)), Range("depth", 1, 3)])
    work(search := Search(tmp_path, space, {}, directions=["minimize"], sampler="grid", pruner="none"), 50)
    points = [(t.params["units"], t.params["depth"]) for t in search.finished()]
    assert sorted(points) == [(u, d) for u in (4, 8) for d in (1, 2, 3)]


def test_another_search_in_the_same_workdir_is_refused(tmp_path):
    Search(tmp_path, SPACE, {"seed": 0}, directions=["minimize"])
    with pytest.raises(InputError, match=r"is another one: seed was 0 and is 1 now\. Give what it was, or a new workdir\."):
        Search(tmp_path, SPACE, {"seed": 1}, directions=["minimize"])
    with pytest.raises(InputError, match="cannot be used"):
        Search(tmp_path / "other", SPACE, {}, directions=["minimize"], storage="sqlite:////nowhere/at/all.db")


def test_flags_are_read_by_the_type_of_the_field():
    rest, given = take_flags(["p", "--space.optimizer.rate=1e-3:1:log", "--trials=3", "--space.units=4:64", "--space.deep=true,False"])
    assert rest == ["p", "--trials=3"]
    assert [parse(name, text, CONFIG) for name, text in given.items()] == [
        Range("optimizer.rate", 1e-3, 1.0, True),
        Range("units", 4, 64),
        Choices("deep", (True, False)),
    ]
    config = copy.deepcopy(CONFIG)
    Space([Choices("optimizer.name", ("adam",))], lambda trial, config: config.update({"units": 3})).apply(
        type("First", (), {"suggest_categorical": lambda self, name, values: values[0]})(), config
    )
    assert (config.optimizer.name, config.units) == ("adam", 3)


def test_a_flag_wins_over_what_the_function_says_of_the_same_field():
    def search_space(trial, config):
        config.units = trial.suggest_categorical("units", (4, 8, 16))
        config.optimizer.rate = trial.suggest_float("optimizer.rate", 1e-3, 1e-2, log=True)

    space = Space([Choices("units", (5, 6)), Range("optimizer.rate", 2.0, 3.0)], search_space)
    space.check(guesses(), CONFIG)
    for trial in guesses(5):
        space.apply(trial, point := copy.deepcopy(CONFIG))
        assert point.units in (5, 6) and 2 <= point.optimizer.rate <= 3
        assert trial.params == {"units": point.units, "optimizer.rate": point.optimizer.rate}


def unknown(trial, config):
    config.unitz = trial.suggest_int("units", 1, 2)


def empty(trial, config):
    config.units = trial.suggest_int("units", 2, 1)


def misspelt(trial, config):
    config.units = trial.sugest_int("units", 1, 2)


def idle(trial, config):
    trial.suggest_int("units", 1, 2)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (unknown, r"fails in line \d+ of \S+test_search\.py: AttributeError: Key .unitz. does not exist"),
        (empty, r"fails in line \d+ of \S+: ValueError: .low <= high. must hold"),
        (misspelt, r"fails in line \d+ of \S+: AttributeError: .*sugest_int"),
        (idle, r"No point of the space differs from the config: what is suggested \(units\) has to be written into it\."),
        (lambda trial, config: None, "suggests nothing"),
        (lambda trial: None, "fails: TypeError: "),
    ],
)
def test_a_function_that_makes_no_space_is_refused_before_anything_is_trained(function, said):
    with pytest.raises(InputError, match=said):
        Space((), function).check(guesses(2), config_dict.ConfigDict(CONFIG).lock())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("optimizer", "1:2", "names a group of fields; name one of them: optimizer.name, optimizer.rate."),
        ("optimizer.speed", "1:2", "names a field that the config does not have; it has name, rate."),
        ("optimizer.rate", "1:0.1", "is empty"),
        ("optimizer.rate", "0:1:log", "has to begin above 0"),
        ("optimizer.rate", "0:1:cubic", "is no range"),
        ("optimizer.name", "a:b", "is no number; give choices A,B,C."),
        ("units", "4,x", "'x' is no int, which config.units is."),
        ("units", "", "is empty"),
    ],
)
def test_bad_ranges_are_refused_with_a_sentence(name, text, said):
    with pytest.raises(InputError) as refused:
        parse(name, text, CONFIG)
    assert said in str(refused.value)
