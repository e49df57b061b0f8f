"""A turn counts if the machine was as fast before and after it as ever."""

from __future__ import annotations

import itertools

import pytest

from research.benchmarks.machine_speed import MachineSpeed, Turns


class Looks:
    """A machine that has its full speed at some looks, and at all after these."""

    def __init__(self, *full):
        self.left = list(full)

    def is_full(self):
        return self.left.pop(0) if self.left else True


def test_a_slow_machine_is_waited_for_and_a_turn_within_which_it_became_slow_is_taken_again():
    results, looks = iter("abc"), Looks(False, False, True, False, True, True)  # slow, slow, a turn that ends slow, a turn that counts
    turns = Turns(looks, pause=0)
    assert turns.take(lambda: next(results)) == "b"
    assert (turns.repeated, turns.disturbed, looks.left) == (1, 0, [])
    assert turns.take(lambda: next(results)) == "c"


def test_the_look_after_a_turn_is_that_before_the_next():
    looks = Looks(True, True, True, False, True, True)
    turns = Turns(looks)
    assert [turns.take(lambda: 1) for _ in range(3)] == [1, 1, 1] and turns.repeated == 1 and not looks.left


def test_with_no_patience_left_every_turn_counts_and_is_counted():
    turns = Turns(Looks(*[False] * 10), patience=0.0)
    assert [turns.take(lambda: 1), turns.take(lambda: 2)] == [1, 2]
    assert (turns.repeated, turns.disturbed) == (0, 2)


def test_patience_comes_to_an_end():
    turns = Turns(Looks(*[False] * 100_000), patience=0.02, pause=0.001)
    assert turns.take(lambda: 1) == 1 and turns.disturbed == 1


def test_a_contender_that_has_ended_is_not_asked_again():
    turns = Turns(Looks(True, False), pause=0)
    assert turns.take(lambda: None) is None and turns.repeated == 0


def speed_of(*seconds):
    """A machine that takes one second for the fixed computation at first, then these."""
    looks = itertools.chain([1.0] * 20, seconds)
    return MachineSpeed(probe=lambda: next(looks))


def test_one_slow_computation_is_no_slow_machine():
    speed = speed_of(1.4, 1.1, 1.4, 1.4, 1.1)
    assert [speed.is_full() for _ in range(3)] == [True, False, True]


def test_what_is_faster_than_ever_is_the_measure_from_then_on():
    speed = speed_of(0.5, 1.0, 1.0, 0.5)
    assert [speed.is_full() for _ in range(3)] == [True, False, True]


def test_without_a_speed_every_turn_counts():
    assert Turns(None).take(lambda: 3) == 3


def test_the_fixed_computation_takes_time():
    speed = MachineSpeed(tolerance=1e6)
    assert speed.is_full() and speed._fastest > 0


@pytest.mark.parametrize("tolerance, full", [(1.15, False), (1.5, True)])
def test_the_tolerance(tolerance, full):
    looks = itertools.chain([1.0] * 20, itertools.repeat(1.3))
    assert MachineSpeed(tolerance, probe=lambda: next(looks)).is_full() is full
