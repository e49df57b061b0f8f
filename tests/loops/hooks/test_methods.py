"""A hook whose methods nobody would call as they expect is refused when the loop is made."""

from __future__ import annotations

import keras
import pytest

import loops
from loops import hooks
from tests.loops import tiny


def loop_with(hook):
    return loops.TrainLoop(tiny.Classifier(), loops.NoFeed(2), [hook])


def hook_with(base=hooks.Hook, **methods):
    return type("Mine", (base,), methods)()


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            {"on_epoch_end": lambda self, epoch, logs: None},
            r"Mine has on_epoch_end\(self, epoch, logs\), .*is on_epoch_end\(self, loop, logs\)",
        ),
        ({"on_epoch_end": lambda self, epoch, logs=None: None}, r"a hook's is on_epoch_end\(self, loop, logs\): write that, or derive"),
        ({"on_epoch_begin": lambda self, epoch, logs=None: None}, r"a hook's is on_epoch_begin\(self, loop\)"),
        ({"on_train_begin": lambda self, logs=None: None}, r"a hook's is on_train_begin\(self, loop\)"),
        ({"on_train_end": lambda self: None}, r"Mine has on_train_end\(self\), but a hook's is on_train_end\(self, loop\)"),
        ({"on_train_batch_end": lambda self, batch, logs=None: None}, r"never called on a hook: write on_window_end.*every = '1 step'"),
        ({"on_batch_begin": lambda self, batch, logs=None: None}, r"never called on a hook: write on_window_end"),
        (
            {"on_test_end": lambda self, logs=None: None},
            r"write on_evaluate_end\(self, loop, name, logs\), or derive .*keras.callbacks.Callback",
        ),
    ],
)
def test_methods_of_a_keras_callback_are_refused_in_a_hook(methods, said):
    with pytest.raises(TypeError, match=said):
        loop_with(hook_with(**methods))


def test_it_is_refused_in_fit_and_where_a_hook_is_attached():
    hook = hook_with(on_epoch_end=lambda self, epoch, logs=None: None)
    model = keras.Sequential([keras.Input([tiny.N_FEATURES]), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    for name in ("callbacks", "hooks"):
        with pytest.raises(TypeError, match="derive the class from keras.callbacks.Callback"):
            loops.fit(model, *tiny.data(8), verbose=0, **{name: [hook]})
    with pytest.raises(TypeError, match="derive the class from keras.callbacks.Callback"):
        loop_with(hooks.TerminateOnNaN()).attach(hook)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (hooks.EarlyStopping, r"the class EarlyStopping, not a hook: write EarlyStopping\("),
        (keras.callbacks.EarlyStopping, r"the class EarlyStopping, not a callback: write"),
        (
            type("Plain", (), {"on_epoch_end": lambda self, epoch, logs: None})(),
            "It has on_epoch_end, so derive its class from one of these",
        ),
        (type("Both", (hooks.Hook, keras.callbacks.Callback), {})(), "which get other arguments: derive it from one of them"),
    ],
)
def test_what_is_no_hook_is_refused(item, said):
    with pytest.raises(TypeError, match=said):
        loop_with(item)


def test_a_name_that_is_almost_that_of_a_method_is_pointed_out(capsys):
    loop_with(hook_with(on_windows_end=lambda self, loop, window: None))
    assert (
        "Mine.on_windows_end is no method of a hook, so the loop does not call it. Did you mean 'on_window_end'?" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("base", "methods"),
    [
        (hooks.Hook, {"on_epoch_end": lambda self, the_loop, the_logs: None, "on_window_end": lambda self, *args: None}),
        (hooks.Hook, {"on_epoch_end": lambda self, loop, logs, extra=1: None, "on_data": lambda self: None}),
        (hooks.EarlyStopping, {"on_value": lambda self, loop, value: None}),
    ],
)
def test_hooks_that_can_be_called_are_taken(base, methods, capsys):
    loop_with(hook_with(base, **methods))
    assert "Warning" not in capsys.readouterr().out


def test_our_own_hooks_and_functions_are_taken():
    loop_with(hooks.LambdaHook(on_epoch_end=lambda a, b: None, on_train_begin=print))
