"""Every hook, taken to a new process at any step, goes on as if nothing had happened: same decisions, same effects, same files."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loops import hooks
from tests.loops.hooks.fake_loop import FakeLoop

STEPS = 3  # of an epoch


class Notes(keras.Sequential):
    """A model whose files of weights hold only its weight, so that hundreds are written in a second."""

    def save_weights(self, filepath, overwrite=True):
        pathlib.Path(filepath).write_text(str(float(self.weights[0].numpy()[0, 0])))


@pytest.fixture(scope="module")
def model():
    made = Notes([keras.Input([1]), keras.layers.Dense(1, name="layer")])
    made.compile(keras.optimizers.SGD(1.0, momentum=0.5), "mse")
    made.optimizer.build(made.trainable_variables)
    return made


def variables_of(model):
    return [*model.variables, *model.optimizer.variables]


def train(model) -> Callable[[int], None]:
    """Stands for the steps of an epoch: weights and slots tell its number."""

    def during(epoch: int) -> None:
        model.set_weights([np.full(w.shape, epoch, "float32") for w in model.weights])
        for slot in model.optimizer.variables[2:]:
            slot.assign(np.full(slot.shape, 10.0 + epoch))

    return during


@dataclasses.dataclass
class Case:
    make: Callable[[pathlib.Path], list[Any]]
    effects: Callable[[FakeLoop, list[Any]], Any] = lambda loop, made: None


def keras_callbacks(*callbacks: Any) -> list[Any]:
    adapter = hooks.KerasCallbacks(callbacks)
    return [adapter.batches, adapter]


def early_stopping(**options: Any) -> Case:
    return Case(
        lambda folder: [hooks.EarlyStopping(**options)],
        lambda loop, made: [made[0].best, made[0].best_epoch, made[0].wait, made[0].stopped_epoch],
    )


def noticing() -> tuple[list[Any], list[Any]]:
    seen: list[Any] = []
    hook = hooks.LambdaHook(
        on_epoch_end=lambda loop, logs: seen.append((loop.progress.epoch, len(seen))),
        state_dict=lambda: {"seen": seen},
        load_state_dict=lambda state: seen.__setitem__(slice(None), [tuple(item) for item in state["seen"]]),
    )
    hook.seen = seen
    return [hook], seen


LOADED = [np.full([1, 1], 40.0, "float32"), np.full([1], 41.0, "float32")]


def failing(message: str) -> None:
    raise OSError("nobody is there")


CASES = {
    "early stopping": early_stopping(patience=2),
    "early stopping, weights and optimizer back": early_stopping(patience=1, restore_best_weights=True, baseline=1.0, min_delta=0.1),
    "early stopping, weights alone back": early_stopping(
        patience=2, restore_best_weights=True, restore_optimizer=False, start_from_epoch=2
    ),
    "early stopping at evaluations": early_stopping(patience=1, at="evaluation", restore_best_weights=True),
    "plateau": Case(
        lambda folder: [hooks.ReduceLROnPlateau(patience=1, factor=0.5, cooldown=2, min_delta=0.1)],
        lambda loop, made: [made[0].best, made[0].wait, made[0].cooldown_counter],
    ),
    "plateau without cooldown": Case(lambda folder: [hooks.ReduceLROnPlateau(patience=2, factor=0.25, min_lr=0.1)]),
    "plateau at evaluations": Case(lambda folder: [hooks.ReduceLROnPlateau(patience=1, factor=0.5, cooldown=1, at="evaluation")]),
    "scheduler": Case(lambda folder: [hooks.LearningRateScheduler(lambda epoch, rate: rate * 0.9 if epoch % 2 else rate)]),
    "best checkpoint": Case(
        lambda folder: [hooks.ModelCheckpoint(folder / "best.weights.h5", save_best_only=True, save_weights_only=True)],
        lambda loop, made: made[0].best,
    ),
    "last checkpoints": Case(lambda folder: [hooks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True, keep_last=2)]),
    "best checkpoints by steps": Case(
        lambda folder: [
            hooks.ModelCheckpoint(
                folder / "{step}.weights.h5", "loss", save_best_only=True, save_weights_only=True, save_freq=2, keep_last=2
            )
        ]
    ),
    "best checkpoint at evaluations": Case(
        lambda folder: [hooks.ModelCheckpoint(folder / "b.weights.h5", save_best_only=True, save_weights_only=True, at="evaluation")]
    ),
    "csv": Case(lambda folder: [hooks.CSVLogger(folder / "log.csv")]),
    "csv with another hook's logs": Case(
        lambda folder: [hooks.CSVLogger(folder / "log.csv", ";"), hooks.ReduceLROnPlateau(patience=1, factor=0.5)]
    ),
    "nan": Case(lambda folder: [hooks.TerminateOnNaN()]),
    "unfreeze": Case(
        lambda folder: [hooks.Unfreeze("layer", "layer", patience=2, min_delta=0.1, learning_rate_factor=0.5)],
        lambda loop, made: [made[0].best, made[0].wait, made[0].stage],
    ),
    "unfreeze at evaluations": Case(
        lambda folder: [hooks.Unfreeze("layer", threshold=0.5, at="evaluation", learning_rate_factor=0.5)], lambda loop, made: made[0].stage
    ),
    "load weights": Case(
        lambda folder: [hooks.LoadWeights(LOADED, patience=1)], lambda loop, made: [made[0].best, made[0].wait, made[0].loaded]
    ),
    "load weights at a threshold": Case(
        lambda folder: [hooks.LoadWeights(LOADED, threshold=0.5, at="evaluation")], lambda loop, made: [made[0].met, made[0].loaded]
    ),
    "notify": Case(
        lambda folder: [hooks.Notify(lambda message: None, "val_loss", threshold=0.5)], lambda loop, made: [made[0].met, made[0].best]
    ),
    "notify of stagnation": Case(
        lambda folder: [hooks.Notify(failing, "val_loss", patience=2)], lambda loop, made: [made[0].met, made[0].wait, made[0].best]
    ),
    "evaluate": Case(lambda folder: [hooks.Evaluate(1.5, "test", every="2 steps")]),
    "functions": Case(lambda folder: noticing()[0], lambda loop, made: made[0].seen),
    "keras: early stopping and plateau": Case(
        lambda folder: keras_callbacks(
            keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, cooldown=1),
            keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
        ),
        lambda loop, made: [(c.best, c.wait, getattr(c, "best_epoch", None), getattr(c, "stopped_epoch", None)) for c in made[1].callbacks],
    ),
    "keras: best checkpoint": Case(
        lambda folder: keras_callbacks(
            keras.callbacks.ModelCheckpoint(folder / "k.weights.h5", save_best_only=True, save_weights_only=True)
        )
    ),
    "keras: checkpoints by batches": Case(
        lambda folder: keras_callbacks(
            keras.callbacks.ModelCheckpoint(folder / "{epoch}-{batch}.weights.h5", save_weights_only=True, save_freq=2)
        )
    ),
    "keras: history": Case(
        lambda folder: keras_callbacks(keras.callbacks.History()),
        lambda loop, made: [made[1].callbacks[0].epoch, repr(made[1].callbacks[0].history)],
    ),
    "keras: nan": Case(lambda folder: keras_callbacks(keras.callbacks.TerminateOnNaN())),
    "keras: scheduler": Case(lambda folder: keras_callbacks(keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5))),
}


def logs_of(value: float | None) -> dict[str, float]:
    return {"loss": 1.0} if value is None else {"loss": abs(value), "val_loss": value}


def new_loop(case: Case, folder: pathlib.Path, model) -> tuple[FakeLoop, list[Any]]:
    made = case.make(folder)
    return FakeLoop(made, model, steps=STEPS), made


def outcome_of(case: Case, loop: FakeLoop, made: list[Any], model, folder: pathlib.Path) -> dict[str, Any]:
    loop.end("stopped" if loop.stopping else "finished")
    return {
        "step": loop.progress.step,
        "reason": loop.stop_reason,
        "hook": repr(case.effects(loop, made)),
        "history": repr((loop.history.epoch, loop.history.history)),
        "evaluated": len(loop.evaluated),
        "variables": [v.numpy().tolist() for v in variables_of(model)],
        "files": {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()},
    }


def undisturbed(case: Case, values: list[float | None], model, folder: pathlib.Path) -> dict[str, Any]:
    loop, made = new_loop(case, folder, model)
    loop.epochs = len(values)
    loop.begin()
    for value in values:
        loop.epoch(logs_of(value), train(model))
        if loop.stopping:
            break
    return outcome_of(case, loop, made, model, folder)


def killed(case: Case, values: list[float | None], cut: int, future: int, model, folder: pathlib.Path) -> dict[str, Any]:
    """The same, but saved after step `cut`, going on for `future` steps that are lost, and resumed by new hooks."""
    loop, made = new_loop(case, folder, model)
    loop.epochs = len(values)
    loop.begin()
    saved: Any = None
    for end in (cut, min(cut + future, len(values) * STEPS)):
        while loop.progress.step < end and not loop.stopping:
            epoch = loop.progress.step // STEPS
            loop.epoch(logs_of(values[epoch]), train(model), until=min(STEPS, end - epoch * STEPS))
        if saved is None:
            saved = loop.saved(), [v.numpy() for v in variables_of(model)], loop.stop_reason, list(loop.evaluated)
    for hook in made:
        if isinstance(hook, (hooks.ModelCheckpoint, hooks.CSVLogger)):
            hook.on_train_end(loop)  # ends threads and closes files, as the end of a process does
    state, variables, reason, evaluated = saved

    loop, made = new_loop(case, folder, model)
    loop.epochs = len(values)
    for variable, value in zip(variables_of(model), variables, strict=True):
        variable.assign(value)
    loop.resume(state)
    loop.stop_reason, loop.evaluated = reason, evaluated
    while loop.progress.step < len(values) * STEPS and not loop.stopping:
        loop.epoch(logs_of(values[loop.progress.step // STEPS]), train(model))
    return outcome_of(case, loop, made, model, folder)


VALUES = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 0.55, 1.0, 2.0, math.inf, math.nan])), min_size=1, max_size=7)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_hook_goes_on_as_if_nothing_had_happened(case, model):
    @settings(deadline=None, max_examples=10)
    @given(values=VALUES, where=st.floats(0, 1), future=st.integers(0, 5))
    def check(values, where, future):
        initial = [v.numpy() for v in variables_of(model)]
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            cut = 1 + round(where * (len(values) * STEPS - 1))
            try:
                expected = undisturbed(case, values, model, pathlib.Path(a))
                for variable, value in zip(variables_of(model), initial, strict=True):
                    variable.assign(value)
                found = killed(case, values, cut, future, model, pathlib.Path(b))
            finally:
                for variable, value in zip(variables_of(model), initial, strict=True):
                    variable.assign(value)
        assert found == expected

    check()


def test_this_comparison_can_fail(model):
    class Forgetful(hooks.EarlyStopping):
        def load_state_dict(self, state):
            super().load_state_dict({**state, "wait": 0})

    case = Case(lambda folder: [Forgetful(patience=3)])
    with tempfile.TemporaryDirectory() as folder:
        values = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
        expected = undisturbed(case, values, model, pathlib.Path(folder))
        assert killed(case, values, 2 * STEPS + 1, 0, model, pathlib.Path(folder)) != expected


@pytest.mark.parametrize("restore_optimizer", [True, False])
def test_a_finished_run_that_is_called_again_ends_with_the_best_weights_again(model, restore_optimizer):
    def hook():
        return hooks.EarlyStopping(patience=9, restore_best_weights=True, restore_optimizer=restore_optimizer)

    loop = FakeLoop([hook()], model, steps=STEPS)
    loop.begin()
    for value in [2.0, 1.0, 3.0]:
        loop.epoch(logs_of(value), train(model))
    saved, last = loop.saved(), [v.numpy() for v in variables_of(model)]
    loop.end("finished")
    expected = [v.numpy().tolist() for v in variables_of(model)]
    assert expected[0] == [[1.0]]

    for variable, value in zip(variables_of(model), last, strict=True):
        variable.assign(value)
    again = FakeLoop([hook()], model, steps=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.resume(saved)
        again.end("finished")
    assert [v.numpy().tolist() for v in variables_of(model)] == expected


def test_a_missing_metric_is_reported_once_in_all_processes_together(model):
    loop = FakeLoop([hooks.EarlyStopping("val_acuracy")], model)
    loop.begin()
    with pytest.warns(UserWarning, match="waits for the metric 'val_acuracy'"):
        loop.epoch(logs_of(1.0))
    again = FakeLoop([hooks.EarlyStopping("val_acuracy")], model)
    again.resume(loop.saved())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.epoch(logs_of(1.0))
        again.end("finished")


def test_state_replaces_what_a_hook_knew(model):
    """As when a run goes back to an earlier state without a new process."""
    hook = hooks.EarlyStopping(patience=5, restore_best_weights=True)
    loop = FakeLoop([hook], model)
    loop.begin()
    early = hook.state_dict()
    loop.epoch(logs_of(1.0), train(model))
    hook.load_state_dict(early)
    assert hook.state_dict() == early and hook.state_arrays() == {} and hook.best_weights is None
