"""`fit`, `evaluate` and `predict` for Keras models, and `profile` for a loop. They only combine the parts; no algorithm is here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from loops import _private_api
from loops.choices import Compile, NonFiniteAction, Resume
from loops.engine.nonfinite import OnNonFinite
from loops.engine.timing import Timing
from loops.feeds import Feed
from loops.feeds.from_keras import feed_for, split
from loops.hooks.evaluate import Evaluate
from loops.hooks.keras_callbacks import KerasCallbacks
from loops.hooks.progress_bar import ProgressBar
from loops.messages import warn
from loops.run.eval_loop import EvalLoop, Predictions, PredictLoop
from loops.tasks.kept_tasks import task_of
from loops.tasks.keras import KerasTask, PredictionTask
from loops.train_loop import TrainLoop
from loops.triggers import At, EveryEpochs
from loops.user_errors.tracebacks import shortened

__all__ = ["evaluate", "fit", "predict", "profile"]


@shortened
def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: int | Literal["auto"] = "auto",
    callbacks: Sequence[Any] | Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int | Sequence[int] = 1,
    *,
    hooks: Sequence[Any] = (),
    workdir: str | os.PathLike[str] | None = None,
    resume: Resume = "auto",
    seed: int = 0,
    compile: Compile = "auto",
    strategy: tf.distribute.Strategy | None = None,
    clip: Any = None,
    on_nonfinite: NonFiniteAction | OnNonFinite = "ignore",
) -> keras.callbacks.History:
    """Trains a compiled model as `model.fit` does, but faster; with `shuffle=False, compile="graph"` the results are the same bits.

    Args:
        model: a compiled `keras.Model`. `run_eagerly` is respected as compile="eager", `jit_compile=True` as "xla"; `steps_per_execution`
            says only how often batch methods of Keras callbacks are called.
        x, y, batch_size, epochs, verbose: as in `keras.Model.fit`.
        validation_split, validation_data, validation_steps, validation_batch_size, validation_freq: as there.
        shuffle, class_weight, sample_weight, initial_epoch, steps_per_epoch: as there.
        callbacks: Keras callbacks and hooks.
        hooks: further hooks.
        workdir, resume, seed, compile, strategy, clip: see `TrainLoop`; `seed` also decides the order of shuffled arrays.
        on_nonfinite: "ignore", as Keras does, or what `TrainLoop` takes.

    Returns:
        A `keras.callbacks.History` with `history` (name -> values by epoch), `epoch` and `params`. It is `model.history` from the beginning
        of training; if `callbacks` holds a `keras.callbacks.History`, it is that one.

    Raises:
        KeyboardInterrupt: after Ctrl-C, when all hooks and files have been closed.
        ValueError, TypeError: for arguments that are not valid.

    Example:
        >>> import keras, numpy as np, loops
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> history = loops.fit(model, np.ones([64, 4]), np.ones([64, 1]), epochs=3, verbose=0)
        >>> history.epoch
        [0, 1, 2]
    """
    with task_of(model, KerasTask) as task:
        task.check_functions("make_train_function", *(["make_test_function"] if validation_data is not None or validation_split else []))
        if x is None:
            raise ValueError("loops.fit was given no data: `x` is None.")
        epochs, steps_per_epoch = _capped(epochs, keras.config.max_epochs(), "epochs"), _capped_steps(steps_per_epoch)
        if validation_split and validation_data is None:
            (x, y, sample_weight), validation_data = split(x, y, sample_weight, validation_split)
        feed = feed_for(
            x, y, sample_weight, batch_size=batch_size, steps=steps_per_epoch, shuffle=shuffle, class_weight=class_weight, seed=seed
        )
        verbosity = 1 if verbose == "auto" else int(verbose)
        given = [*_listed(callbacks), *_listed(hooks)]
        if verbosity and not any(isinstance(item, (ProgressBar, keras.callbacks.ProgbarLogger)) for item in given):
            given.append(ProgressBar(verbose=verbosity))
        if validation_data is not None:
            size, steps = validation_batch_size or batch_size, _capped_steps(validation_steps)
            validation = feed_for(*keras.utils.unpack_x_y_sample_weight(validation_data), batch_size=size, steps=steps, replay=True)
            given.append(Evaluate(validation, "val", every=_validation_trigger(validation_freq), steps=steps))
        loop = TrainLoop(
            task,
            feed,
            given,
            steps_per_epoch=steps_per_epoch,
            workdir=workdir,
            resume=resume,
            strategy=strategy or _strategy(model),
            compile=_mode(model, compile),
            seed=seed,
            clip=clip,
            on_nonfinite=on_nonfinite,
        )
        loop.progress.epoch = initial_epoch
        for hook in loop.hooks:
            if isinstance(hook, KerasCallbacks):
                hook.verbose = verbosity
        own = next((item for item in given if isinstance(item, keras.callbacks.History)), None)
        model.history = loop.history if own is None else own
        loop.run(epochs=epochs)
        if loop.outcome == "interrupted":
            raise KeyboardInterrupt
        return model.history


@shortened
def evaluate(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    verbose: int | str = 0,
    sample_weight: Any = None,
    steps: int | None = None,
    callbacks: Sequence[Any] | Any = None,
    return_dict: bool = True,
    *,
    hooks: Sequence[Any] = (),
    compile: Compile = "auto",
    strategy: tf.distribute.Strategy | None = None,
) -> Any:
    """Loss and metrics of a compiled model, as `model.evaluate(..., return_dict=True)` returns them.

    Args:
        model: a compiled `keras.Model`.
        x, y, batch_size, sample_weight, steps: as in `keras.Model.evaluate`.
        verbose: as there, but nothing is shown by default.
        callbacks: Keras callbacks, and hooks that override `on_evaluate_begin`, `on_evaluate_batch` or `on_evaluate_end`; what these log
            joins the result. `model.stop_evaluating`, or `loop.stop` in a hook, ends the evaluation. Without callbacks that look at each
            batch, the batches run in few calls.
        return_dict: False returns what `model.evaluate` does without it: a list of values, or the only value.
        hooks: further hooks.
        compile, strategy: see `TrainLoop`.

    Returns:
        name -> float.

    Raises:
        ValueError: if there is no data, or the model is not compiled or overrides `make_test_function`.
    """
    from loops.hooks.keras_evaluation import EvaluationWatchers  # `fit` has no need of it

    steps = _capped_steps(steps)
    with task_of(model, KerasTask) as task:
        task.check_functions("make_test_function")
        feed = feed_for(x, y, sample_weight, batch_size=batch_size, steps=steps)
        watchers = EvaluationWatchers(task, _joined(callbacks, hooks), verbose=verbose, steps=steps or feed.steps_per_epoch)
        loop = EvalLoop(task, strategy=strategy or _strategy(model), compile=_mode(model, compile))
        watchers.begin()
        logs = loop.run(feed, steps=steps, on_batch=watchers.on_batch, on_call=watchers.on_call, stopped=watchers.stopped)
        logs = watchers.end(logs)
        return logs if return_dict else _private_api.logs_in_order(model, logs)


@shortened
def predict(
    model: keras.Model,
    x: Any,
    batch_size: int | None = None,
    verbose: int | str = 0,
    steps: int | None = None,
    callbacks: Sequence[Any] | Any = None,
    *,
    hooks: Sequence[Any] = (),
    compile: Compile = "auto",
    strategy: tf.distribute.Strategy | None = None,
) -> Predictions:
    """Predictions of a model, compiled or not, as `model.predict` returns them.

    Args:
        model: a `keras.Model`.
        x, batch_size, steps: as in `keras.Model.predict`.
        verbose: as there, but nothing is shown by default.
        callbacks: Keras callbacks, and hooks that override `on_predict_begin` or `on_predict_end`; `model.stop_predicting`, or `loop.stop`
            in a hook, ends the prediction.
        hooks: further hooks.
        compile, strategy: see `TrainLoop`.

    Returns:
        Arrays `[N, ...]` in the model's output structure; ragged and sparse outputs stay ragged and sparse tensors.

    Raises:
        ValueError: if there is no data, or the model overrides `make_predict_function`.
    """
    from loops.hooks.keras_evaluation import PredictionWatchers

    steps = _capped_steps(steps)
    with task_of(model, PredictionTask) as task:
        task.check_functions("make_predict_function")
        feed: Feed = feed_for(x, None, None, batch_size=batch_size, steps=steps)
        watchers = PredictionWatchers(task, _joined(callbacks, hooks), verbose=verbose, steps=steps or feed.steps_per_epoch)
        loop = PredictLoop(task, strategy=strategy or _strategy(model), compile=_mode(model, compile))
        watchers.begin()
        outputs = loop.run(
            feed, steps=steps, batches=watchers.batches, on_batch=watchers.on_batch, on_call=watchers.on_call, stopped=watchers.stopped
        )
        watchers.end(outputs)
        return outputs


@shortened
def profile(loop: TrainLoop, steps: int = 200, *, after: int = 100, trace_dir: str | os.PathLike[str] | None = None) -> Timing:
    """Trains some steps with a loop and prints where their time went.

    These are ordinary training steps, with all hooks of the loop, and they are not undone. For a run with a workdir, add the hook
    `hooks.Profile` to it.

    Args:
        loop: a loop without a workdir; it may have run before.
        steps: how many steps to time.
        after: how many steps to train before, so that compilation and cold caches are not measured.
        trace_dir: folder for a trace by TensorFlow's profiler, for TensorBoard's profile page; None: no trace.

    Returns:
        The figures of the printed table.

    Raises:
        ValueError: for a loop with a workdir, or numbers of steps that are not positive.

    Example:
        >>> import keras, loops, numpy as np
        >>> model = keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])
        >>> task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
        >>> timing = profile(loops.TrainLoop(task, loops.ArrayFeed((np.ones([64, 4]), np.ones([64, 1])))), steps=50)
        Steps 101 to 150: ... steps/s
        where the time went ...
        ...
        >>> timing.steps
        50
    """
    if loop.workdir is not None:
        raise ValueError("loops.profile trains without saving; for a run with a workdir use the hook hooks.Profile(first, last).")
    if steps < 1 or after < 1:
        raise ValueError(f"loops.profile takes numbers of steps, 1 or more; got steps={steps!r}, after={after!r}.")
    from loops.hooks.profile import Profile  # most programs profile nothing

    begin = loop.progress.step + after
    hook = Profile(begin + 1, begin + steps, trace_dir=trace_dir)
    hook.name = "loops.profile"
    hook.on_train_begin(loop)
    loop.attach(hook)
    try:
        loop.run(steps=begin + steps)
    finally:
        loop.detach(hook)
    if hook.timing is None:
        raise ValueError(f"The run ended ({loop.outcome}) before step {begin}, where the profile was to begin.")
    return hook.timing


def _mode(model: keras.Model, compile: Compile) -> Compile:
    if compile != "auto":
        return compile
    if getattr(model, "run_eagerly", False):
        return "eager"
    return "xla" if _private_api.jit_compile_setting(model) is True else "auto"


def _strategy(model: keras.Model) -> tf.distribute.Strategy | None:
    strategy = model.distribute_strategy
    return strategy if strategy.num_replicas_in_sync > 1 else None


def _validation_trigger(frequency: int | Sequence[int]) -> EveryEpochs | At:
    if isinstance(frequency, int) and not isinstance(frequency, bool):
        return EveryEpochs(frequency)
    if isinstance(frequency, (list, tuple, set)):
        return At(epochs=list(frequency))
    raise ValueError(f"`validation_freq` must be a whole number or a list of epochs (from 1); got {frequency!r}.")


def _capped(wanted: int, most: int | None, what: str) -> int:
    """`wanted`, or the limit that `keras.config` sets for quick tries, which is said."""
    if not most or most >= wanted:
        return wanted
    warn(f"Warning: keras.config limits {what} to {most}.")
    return most


def _capped_steps(steps: int | None) -> int | None:
    capped = _capped(steps or sys.maxsize, keras.config.max_steps_per_epoch(), "the steps of a pass")
    return steps if capped == sys.maxsize else capped


def _joined(callbacks: Any, hooks: Any) -> Any:
    return callbacks if isinstance(callbacks, keras.callbacks.CallbackList) and not hooks else [*_listed(callbacks), *_listed(hooks)]


def _listed(items: Any) -> list[Any]:
    if items is None:
        return []
    if isinstance(items, keras.callbacks.CallbackList):
        return list(items.callbacks)
    return list(items) if isinstance(items, (list, tuple)) else [items]
