"""The callbacks study: every hook that watches over a run, acting, and what each did, read from the records that they leave.

Config: `research/configs/callbacks.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import http.server
import itertools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import loops
from loops import hooks
from research.studies.classification import make_model
from research.study import Run, Study, from_config
from research.supervised import classifier, load_classes, supervised_study

__all__ = ["BestSoFar", "InWorkdir", "SelfMonitor", "build", "events"]


class SelfMonitor(hooks.RemoteMonitor):
    """A `RemoteMonitor` with a server of its own on this machine, for as long as training lasts.

    Attributes:
        received: what the server was sent, epoch by epoch.
    """

    def __init__(self) -> None:
        super().__init__(send_as_json=True)
        self.received: list[dict[str, Any]] = []
        self._server: http.server.ThreadingHTTPServer | None = None

    def on_train_begin(self, loop: loops.TrainLoop) -> None:
        received = self.received

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def on_train_end(self, loop: loops.TrainLoop) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None


class InWorkdir(hooks.ModelCheckpoint):
    """A `ModelCheckpoint` whose `filepath` is below the run's workdir; without a workdir it saves nothing.

    Args:
        name: path below the workdir.
        **options: as `ModelCheckpoint`.
    """

    def __init__(self, name: str, **options: Any):
        super().__init__(name, **options)
        self._name_below = name

    def on_train_begin(self, loop: loops.TrainLoop) -> None:
        super().on_train_begin(loop)
        if loop.workdir is not None:
            self.filepath = os.fspath(loop.workdir / self._name_below)

    def on_epoch_end(self, loop: loops.TrainLoop, logs: Mapping[str, Any]) -> None:
        if loop.workdir is not None:
            super().on_epoch_end(loop, logs)

    def on_train_end(self, loop: loops.TrainLoop) -> None:
        if loop.workdir is not None:
            super().on_train_end(loop)


class BestSoFar(hooks.Hook):
    """Logs the lowest `val_loss` up to each epoch as "best_val_loss": where it falls is where the best weights were saved."""

    phase = hooks.Phase.DECIDE
    every = None

    def on_epoch_end(self, loop: loops.TrainLoop, logs: Mapping[str, Any]) -> None:
        # What the history holds is part of the run state, so this needs none of its own.
        loop.log("best_val_loss", min([*loop.history.history.get("val_loss", []), logs["val_loss"]]))


def build(
    config: Any, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0, strategy: tf.distribute.Strategy | None = None
) -> Study:
    """Makes the study; for the arguments see `research.study.build`.

    Raises:
        InputError: for a data set without classes, or settings that a hook refuses.
    """
    data = load_classes(config, data_dir)

    def task() -> loops.Task:
        model = make_model(data.train.x.shape[1:], len(data.class_names), hidden=config.hidden)
        for layer in model.layers[:-1]:
            if layer.weights:
                layer.trainable = False
        return classifier(model, config.optimizer)

    def after(run: Run) -> list[str]:
        found = events(run, config.check_at, config.threshold)
        lines = [f"{'step':>6}  {'epoch':>5}  what happened", *(f"{step:>6}  {epoch:>5}  {what}" for step, epoch, what in found)]
        if monitor.received:
            told = [_differs(event, run.history) for event in monitor.received]
            lines.append(f"RemoteMonitor sent {len(told)} epochs; {told.count(False)} of them say what the history says.")
        return lines

    made = supervised_study(
        data,
        task,
        config=config,
        seed=seed,
        strategy=strategy,
        evaluation_batch=256,
        title=f"{config.dataset}, all hooks at work",
        description=f"{data.description} All layers but the last begin frozen.",
        after=after,
        preprocessing=data.scaling,
    )
    frozen = [layer for layer in made.model.layers if not layer.trainable]
    full_rate, last = config.optimizer.learning_rate, config.warm_up

    def warm_up(epoch: int, rate: float) -> float:
        return full_rate * (epoch + 1) / last if epoch < last else rate

    monitor = SelfMonitor()
    with from_config():
        acting = (
            hooks.LearningRateScheduler(warm_up),
            hooks.ReduceLROnPlateau(
                patience=config.plateau_patience,
                factor=config.plateau_factor,
                min_delta=config.min_delta,
                min_lr=config.lowest_rate,
                verbose=1,
            ),
            hooks.Unfreeze(frozen, patience=config.unfreeze_patience, min_delta=config.min_delta),
            hooks.Evaluate(made.evaluate["val"], "check", every=loops.triggers.At(*config.check_at)),
            hooks.Notify(functools.partial(print, flush=True), "val_accuracy", threshold=config.threshold),
            InWorkdir(
                "checkpoints/past_threshold.weights.h5",
                monitor="val_accuracy",
                initial_value_threshold=config.threshold,
                save_best_only=True,
                save_weights_only=True,
            ),
            hooks.TensorBoard(update_freq=10, histogram_freq=10),
            BestSoFar(),
            monitor,
        )

    return dataclasses.replace(made, hooks=acting)


def events(run: Run, check_at: Sequence[int], threshold: float) -> list[tuple[int, int, str]]:
    """What happened, read from the history: completed steps, 1-based epoch, and a few words.

    Args:
        run: a run of this study.
        check_at: steps at which it was validated besides.
        threshold: the `val_accuracy` that was waited for.
    """
    logs, of_epoch = run.history.history, run.loop.progress.steps_per_epoch or 1
    found = []
    for i, (before, after) in enumerate(itertools.pairwise(logs["learning_rate"]), 1):
        if before != after:
            found.append((i * of_epoch, i, f"learning rate {before:.4g} -> {after:.4g}"))
    for i, (before, after) in enumerate(itertools.pairwise(logs["unfrozen_layers"]), 1):
        if before != after:
            found.append((i * of_epoch, i, f"{after - before} layers set free"))
    reached = next((i for i, value in enumerate(logs["val_accuracy"], 1) if value >= threshold), None)
    if reached is not None:
        found.append(
            (reached * of_epoch, reached, f"val_accuracy {logs['val_accuracy'][reached - 1]:.4f}: told, and weights kept from here on")
        )
    for step, value in zip(sorted(check_at), logs.get("check_loss", []), strict=False):
        found.append((step, -(-step // of_epoch), f"validated at this step: check_loss {value:.4f}"))
    best = int(np.argmin(logs["val_loss"])) + 1
    found.append((best * of_epoch, best, f"best val_loss, {logs['val_loss'][best - 1]:.4f}"))
    if run.loop.stop_reason:
        found.append((run.loop.progress.step, len(run.history.epoch), run.loop.stop_reason))
    return sorted(found)


def _differs(event: Mapping[str, Any], history: Any) -> bool:
    # A metric that came later in the run has fewer values than there are epochs.
    whole = {name: values for name, values in history.history.items() if len(values) == len(history.epoch)}
    return any(event[name] != values[event["epoch"]] for name, values in whole.items())
