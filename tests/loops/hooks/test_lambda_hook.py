"""LambdaHook calls each function with what the method of that name gets, at the time of that method."""

from __future__ import annotations

import inspect

import pytest

from loops.hooks import Evaluate, Hook, LambdaHook, Phase
from loops.triggers import EverySteps
from tests.loops.hooks.fake_loop import FakeLoop


def test_every_method_of_a_hook_can_be_given():
    methods = {name for name in vars(Hook) if name.startswith("on_") and inspect.isfunction(getattr(Hook, name))}
    assert methods == {name for name in inspect.signature(LambdaHook).parameters if name.startswith("on_")}


def test_functions_are_called_in_the_order_of_a_run():
    calls = []
    hook = LambdaHook(
        on_train_begin=lambda loop: calls.append("train_begin"),
        on_epoch_begin=lambda loop: calls.append(f"epoch_begin {loop.progress.epoch}"),
        on_window_end=lambda loop, window: calls.append(f"window_end {window.last_step}"),
        on_evaluate_end=lambda loop, name, logs: calls.append(f"evaluate_end {name} {dict(logs)}"),
        on_epoch_end=lambda loop, logs: calls.append(f"epoch_end {dict(logs)}"),
        on_train_end=lambda loop: calls.append(f"train_end {loop.outcome}"),
        every="2 steps",
    )
    FakeLoop([hook, Evaluate(3.0, "test", every="1 epoch")], steps=3).run([{"loss": 1.0}])
    assert calls == [
        "train_begin",
        "epoch_begin 0",
        "window_end 2",
        "evaluate_end test {'test_loss': 3.0}",
        "epoch_end {'loss': 1.0, 'test_loss': 3.0}",
        "train_end finished",
    ]


def test_cadence_phase_and_observations_are_those_given():
    hook = LambdaHook(on_window_end=print, every="5 steps", phase=Phase.SAVE, observes=["gradients"], final_window=True)
    assert isinstance(hook.every, EverySteps) and hook.every.n == 5
    assert (hook.phase, hook.observes, hook.final_window) == (Phase.SAVE, {"gradients"}, True)
    assert Hook.observes == frozenset()


def test_without_a_window_function_it_costs_no_look():
    assert LambdaHook(on_epoch_end=print).every is None


def test_a_name_that_is_no_method_is_refused():
    with pytest.raises(TypeError, match="on_batch_end"):
        LambdaHook(on_batch_end=print)


def test_the_state_of_functions_is_given_and_taken_by_functions():
    given = []
    hook = LambdaHook(state_dict=lambda: {"n": 3}, load_state_dict=given.append)
    assert hook.state_dict() == {"n": 3}
    hook.load_state_dict({"n": 4})
    assert given == [{"n": 4}] and LambdaHook().state_dict() == {}
    with pytest.raises(ValueError, match="both `state_dict` and `load_state_dict`, or neither"):
        LambdaHook(state_dict=dict)
