"""Runs that are ended by a signal, and go on.

    undisturbed/<case>                              the run, left alone
    killed/<case>/<workers>/<when>/<signal>         it, in a workdir; the workers ("0", "1" or "01") send themselves the signal
    resumed/<case>/<workers>/<when>/<signal>        the same command again, which is not disturbed

A case is `<feed>-<technique>` of the matrix; `when` is a step, or a fraction of a second after training has begun.
"""

from __future__ import annotations

import os
import pathlib
import threading
from typing import Any

import tensorflow as tf

from loops import hooks
from tests.loops.cluster.scenarios import found, loop_of_case, scenario, worker_of


class Signal(hooks.Hook):
    """Sends this process a signal at a step, or after a time."""

    every, phase = "1 step", hooks.Phase.DECIDE

    def __init__(self, number: int, when: float, acts: bool):
        self._number, self._when = number, when if acts else float("inf")

    def before_first_step(self, loop: hooks.Loop) -> None:
        if self._when < 1:
            threading.Timer(self._when, lambda: os.kill(os.getpid(), self._number)).start()

    def on_window_end(self, loop: hooks.Loop, window: Any) -> None:
        if loop.progress.step == self._when:
            os.kill(os.getpid(), self._number)


def _run(strategy: tf.distribute.Strategy, case: str, added: Any, **settings: Any) -> dict[str, Any]:
    loop = loop_of_case(*case.split("-"), strategy, added=[*added, hooks.Snapshot("3 steps")] if settings else added, **settings)
    loop.run(epochs=4)
    return found(loop)


@scenario
def undisturbed(strategy: tf.distribute.Strategy, folder: pathlib.Path, case: str) -> dict[str, Any]:
    return _run(strategy, case, [])


@scenario
def killed(strategy: tf.distribute.Strategy, folder: pathlib.Path, case: str, who: str, when: str, number: str) -> dict[str, Any]:
    added = [Signal(int(number), float(when), str(worker_of(strategy)) in who)]
    return _run(strategy, case, added, workdir=folder / "-".join((case, who, when, number)))


@scenario
def resumed(strategy: tf.distribute.Strategy, folder: pathlib.Path, case: str, who: str, when: str, number: str) -> dict[str, Any]:
    return _run(strategy, case, [], workdir=folder / "-".join((case, who, when, number)))
