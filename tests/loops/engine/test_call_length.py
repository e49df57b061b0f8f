"""Calls last about half a second; what is paid once after a look makes them longer, not shorter."""

import pytest

from loops.engine.call_length import CallLength


def learn(length, calls, *, per_step, fixed, calls_in_window, most=10**9):
    """Plays calls that cost `fixed` at the beginning of each window and `per_step` for each step; returns the steps of each."""
    steps = []
    for i in range(calls):
        first = i % calls_in_window == 0
        steps.append(min(length.limit(), most))
        length.measured(steps[-1] * per_step + fixed * first, steps[-1], first=first)
    return steps


@pytest.mark.parametrize("fixed", [0.0, 0.1, 3.0])
def test_a_fixed_cost_after_a_look_does_not_shorten_calls(fixed):
    steps = learn(CallLength(), 60, per_step=0.001, fixed=fixed, calls_in_window=10)
    assert all(250 <= n <= 500 for n in steps[20:])
    assert sum(n == 500 for n in steps[20:]) >= 36  # all but the second of each window


def test_a_fixed_cost_of_every_call_lets_them_grow():
    steps = learn(CallLength(), 30, per_step=0.0001, fixed=0.1, calls_in_window=1, most=1000)
    assert steps[-1] == 1000


def test_calls_get_shorter_when_steps_get_slower():
    length = CallLength()
    learn(length, 10, per_step=0.001, fixed=0.0, calls_in_window=10)
    assert learn(length, 10, per_step=0.01, fixed=0.0, calls_in_window=10)[-1] == 50


def test_a_single_slow_call_shortens_the_next_one_only():
    length = CallLength()
    learn(length, 10, per_step=0.001, fixed=0.0, calls_in_window=10)
    length.measured(60.0, 500, first=False)
    assert 100 <= length.limit() < 500
    learn(length, 2, per_step=0.001, fixed=0.0, calls_in_window=10)
    assert length.limit() == 500
