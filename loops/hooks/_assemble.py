"""Makes the list of hooks of a loop: adapts Keras callbacks, adds the default hooks of a workdir, and gives every hook a unique name."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from loops import _private_api
from loops.cluster import Cluster
from loops.feeds import Feed
from loops.hooks._left_to_chief import left_to_chief
from loops.hooks._methods import check_hook
from loops.hooks.base import Hook, Phase
from loops.hooks.evaluate import Evaluate
from loops.hooks.history import History
from loops.hooks.keras_callbacks import KerasCallbacks
from loops.hooks.snapshot import Snapshot
from loops.run.saved_states import SavedStates

__all__ = ["acting_and_silent", "assemble", "keep_as_wanted"]


def assemble(
    given: Sequence[Any], cluster: Cluster, *, history: History, evaluations: Mapping[str, Feed], workdir: pathlib.Path | None, model: Any
) -> list[Hook]:
    """All hooks of a loop.

    Args:
        given: hooks and Keras callbacks, as the user listed them. Keras callbacks run together, in their order, as one hook; where hooks
            that decide stand between them, as one before and one behind these, so that a hook sees what the callbacks before it logged.
        cluster: the worker processes; callbacks that write act on the chief only.
        history: the hook that keeps the loop's logs.
        evaluations: name -> feed to evaluate at every epoch's end.
        workdir: folder of the run, or None. With a folder, snapshots, TensorBoard, CSVLogger and best and last weights are added, each
            unless the user gave a hook of that class.
        model: the Keras model whose weights are saved, or None.

    Raises:
        ValueError: if a hook or the name of an evaluation is given twice.
        TypeError: if something is neither a hook nor a Keras callback, or is a hook with methods that nobody would call.
    """
    if isinstance(given, (Hook, keras.callbacks.Callback)):
        given = [given]
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        by_name = "; feeds to evaluate on are given by name, as in evaluate={'val': feed}" if isinstance(given, Mapping) else ""
        raise TypeError(f"`hooks` must be a list of hooks and Keras callbacks; got {type(given).__name__}{by_name}.")
    hooks: list[Hook] = []
    adapters: list[KerasCallbacks] = []
    callbacks: list[keras.callbacks.Callback] = []
    for item in [*given, None]:
        if item is not None:
            check_hook(item)
        if callbacks and (item is None or (isinstance(item, Hook) and item.phase == Phase.DECIDE)):
            adapters.append(KerasCallbacks(callbacks))
            hooks.append(adapters[-1])
            callbacks = []
        if isinstance(item, Hook):
            hooks.append(item)
        elif item is not None:
            callbacks.append(left_to_chief(item, cluster))
    if len({id(hook) for hook in hooks}) < len(hooks):
        raise ValueError("The same hook object is listed twice; make one for each place.")
    hooks = [*(adapter.batches for adapter in adapters), *hooks]
    hooks += [Evaluate(feed, name) for name, feed in evaluations.items()]
    names = Counter(hook.evaluation for hook in hooks if hook.evaluation is not None)
    if doubles := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"Two evaluations are named {doubles[0]!r}; their logs would be the same. Give one of them another name.")
    if workdir is not None:
        hooks += _defaults_of_workdir(hooks, workdir, evaluations, model)
    hooks.append(history)
    _make_names_unique(hooks)
    return hooks


def acting_and_silent(hooks: list[Hook], is_chief: bool) -> tuple[list[Hook], list[Hook]]:
    """The hooks that act in this process, and those that act on the chief only: they write records and files."""
    acting = [hook for hook in hooks if is_chief or not hook.chief_only]
    return acting, [hook for hook in hooks if hook not in acting]


def keep_as_wanted(saved: SavedStates, hooks: Iterable[Hook]) -> None:
    """Tells the saved states of a run which of them the `Snapshot` among its hooks wants to keep."""
    for hook in hooks:
        if isinstance(hook, Snapshot):
            saved.keep_last, saved.keep_best, saved.grace = hook.keep_last, hook.keep_best, hook.grace
            return


def _defaults_of_workdir(given: list[Hook], workdir: pathlib.Path, evaluations: Mapping[str, Feed], model: Any) -> list[Hook]:
    # Loaded only where they are used, with all that writes files.
    from loops.hooks.csv_logger import CSVLogger
    from loops.hooks.model_checkpoint import ModelCheckpoint
    from loops.hooks.tensorboard import TensorBoard

    hooks: list[Hook] = []
    if not any(isinstance(hook, TensorBoard) for hook in given):
        hooks.append(TensorBoard(workdir))
    if not any(isinstance(hook, CSVLogger) for hook in given):
        hooks.append(CSVLogger(workdir / "history.csv"))
    if not any(isinstance(hook, Snapshot) for hook in given):
        hooks.append(Snapshot())
    if _private_api.is_model(model) and not any(isinstance(hook, ModelCheckpoint) for hook in given):
        monitor = f"{next(iter(evaluations))}_loss" if evaluations else "loss"
        folder = workdir / "checkpoints"
        hooks.append(ModelCheckpoint(folder / "best.weights.h5", monitor=monitor, mode="min", save_best_only=True, save_weights_only=True))
        hooks.append(ModelCheckpoint(folder / "last.weights.h5", save_weights_only=True))
    return hooks


def _make_names_unique(hooks: list[Hook]) -> None:
    """Makes the names unique: the second hook of a name becomes "name_2"."""
    seen: Counter[str] = Counter()
    for hook in hooks:
        base = hook.name
        seen[base] += 1
        if seen[base] > 1:
            hook.name = f"{base}_{seen[base]}"
