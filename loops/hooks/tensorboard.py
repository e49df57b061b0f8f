"""Decides what TensorBoard shows of a run; `loops/summaries/` writes it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loops import _private_api, triggers
from loops.engine.progress import Progress
from loops.engine.rows import Window
from loops.engine.timing import Pace
from loops.hooks._scalars import numbers
from loops.hooks.base import Hook, Loop, Phase
from loops.summaries import hparams, model_views, projector
from loops.summaries.profiler_range import ProfiledRange
from loops.summaries.run_writers import RunWriters
from loops.summaries.user_summaries import UserSummaries

__all__ = ["TensorBoard"]

_SECONDS_BETWEEN_LOOKS = 2.0
_ROOT = ""  # the run of the directory itself


class TensorBoard(Hook):
    """Writes event files for TensorBoard, with the tags and runs of `keras.callbacks.TensorBoard`.

    | tag | run | step axis | written |
    |---|---|---|---|
    | `epoch_<name>` | `train` | epoch | at each epoch, also `epoch_learning_rate`, `epoch_steps_per_second` |
    | `epoch_<name>` | `validation`, or the evaluation's name | epoch | at each epoch with an evaluation |
    | `evaluation_<name>_vs_iterations` | as above | training step | at each evaluation |
    | `batch_<name>` | `train` | training step | every `update_freq` steps |
    | `batch_<metric>`, `batch_learning_rate`, `batch_steps_per_second` | `train` | training step | with these, but only at looks |
    | `<weight>/histogram`, `<weight>/gradient_histogram`, `<weight>/image` | `train` | epoch | every `histogram_freq` epochs |
    | `epoch_weight_norm`, `weight_norm/<weight>`, the same with `gradient` | `train` | epoch | every `histogram_freq` epochs |
    | `keras`, and the graph of the compiled program | `train` | | once |
    | the config of the loop: hyper-parameters for the HParams dashboard, and `config` as text | `.` | | once |

    Epochs are counted from 0, as Keras does. Training steps are counted from 1 over the whole run, also when `run` is called again. The
    values of single steps are those that the task returned for them (Keras writes means of the epoch to date). The compiled program returns
    them for many steps at a time, so writing every step costs no synchronization with it. The metrics that a Keras model keeps have values
    for single steps only if a hook observes "metrics". Otherwise they are written at each look, that is every two seconds and at the end of
    an epoch, with the value of the epoch to date; so is the learning rate. A step whose value is absent or NaN gets no `batch_` point.

    What layers and steps write by `tf.summary` goes to the same runs: to `train`, by training step, or to the run of the evaluation that is
    made, by the training step at which it is made. The files of these have names of their own, and are not cut when a run is resumed. XLA
    cannot write summaries: compile="auto" takes graph mode for a step that does, and compile="xla" refuses it.

    When a run is resumed, the hook cuts off what was written after the snapshot, because the run writes these points again. It changes only
    its own files of this run.

    Args:
        log_dir: directory above the TensorBoard runs; None: the loop's `workdir`, or "logs" for a loop without one.
        histogram_freq: write histograms and norms of weights and gradients every so many epochs, beginning with the first; 0: never.
            The gradients are those of the last step.
        write_graph: write the model's layers and the graph of the program.
        write_images: write weights as images whenever histograms are written, scaled from their smallest value to their largest.
        write_steps_per_second: write the training speed, without the time of evaluations.
        update_freq: "epoch", "batch" or a number of steps: how often values of single steps are written.
        profile_batch: training step to profile, or a pair (first, last); 0: none.
        embeddings_freq: write `Embedding` layers for the projector every so many epochs, beginning with the first; 0: never.
        embeddings_metadata: labels of the points: the path of a metadata file for all embeddings, or layer name -> path. If there is no
            such file, the path is tried below `log_dir`.

    Example:
        >>> import keras, loops, numpy as np, tempfile
        >>> from loops import hooks, testing
        >>> logdir = tempfile.mkdtemp()
        >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones([64, 3], "float32")
        >>> history = loops.fit(model, x, x[:, :1], epochs=2, verbose=0, hooks=[hooks.TensorBoard(logdir, update_freq="batch")])
        >>> [step for step, value in testing.read_events(logdir)["train"]["batch_loss"]]
        [1, 2, 3, 4]
    """

    phase = Phase.RECORD

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        histogram_freq: int = 0,
        write_graph: bool = True,
        write_images: bool = False,
        write_steps_per_second: bool = False,
        update_freq: str | int = "epoch",
        profile_batch: int | str | tuple[int, int] = 0,
        embeddings_freq: int = 0,
        embeddings_metadata: str | Mapping[str, str] | None = None,
    ):
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        self.histogram_freq = histogram_freq or 0
        self.write_graph = write_graph
        self.write_images = write_images
        self.write_steps_per_second = write_steps_per_second
        self.update_freq = _parse_update_freq(update_freq)
        self.embeddings_freq = embeddings_freq or 0
        self.embeddings_metadata = embeddings_metadata
        self._profiled = ProfiledRange(profile_batch)
        self.final_window = self.update_freq is not None
        if self.histogram_freq:
            self.observes = frozenset({"gradients"})
        looks: list[triggers.Trigger] = [triggers.At(*steps)] if (steps := self._profiled.looks()) else []
        if self.histogram_freq:
            looks.append(_EpochsFromFirst(self.histogram_freq))
        if self.update_freq is not None:
            looks += [triggers.EveryEpochs(1), triggers.EverySeconds(_SECONDS_BETWEEN_LOOKS)]
        self.every = triggers.AnyOf(*looks) if looks else None
        self._runs, self._summaries = RunWriters(), UserSummaries()
        self._evaluated: dict[str, tuple[str, str]] = {}
        self._pace = Pace()
        self._rates_now: tuple[int, dict[str, float]] | None = None
        self._running = self._graph_written = self._config_written = False

    def image(self, name: str, array: npt.ArrayLike, step: int, *, run: str = "train") -> None:
        """Writes images of your own, from any hook that runs in the same loop.

        Args:
            name: tag.
            array: shape [height, width], [height, width, channels] or [n, height, width, channels] with 1, 3 or 4 channels; uint8, or
                floats from 0 to 1.
            step: position on the step axis.
            run: run to write to.
        """
        if self._runs.directory is None:
            raise RuntimeError("TensorBoard.image needs a training loop that has begun: before, it is not known where to write.")
        self._runs[run].image(name, array, step)
        if not self._running:
            self._runs.close()

    def on_train_begin(self, loop: Loop) -> None:
        directory = self.log_dir or (str(loop.workdir) if loop.workdir is not None else "logs")
        # A run in a workdir is recognized when it is started again; a run without one cannot be.
        identity = None if loop.workdir is None else f"{os.path.abspath(loop.workdir)}|{self.name}"
        self._runs.begin(directory, identity, from_step_0=loop.progress.step == 0)
        self._running, self._graph_written, self._config_written = True, False, False
        self._summaries.begin(self._runs.path("train"))
        self._evaluated = {}
        if self.embeddings_freq:
            self._metadata = projector.read_metadata(self.embeddings_metadata, directory)
        self._pace.start(loop.progress.step, loop.clock())
        self._profiled.at(loop.progress.step, self._runs.path("train"))

    def on_epoch_begin(self, loop: Loop) -> None:
        if loop.config and not self._config_written:
            self._config_written = True
            self._runs[_ROOT].hparams(hparams.flat(loop.config))
            self._runs[_ROOT].text("config", hparams.as_text(loop.config), 0)
        self._pace.start(loop.progress.step, loop.clock())

    def on_window_end(self, loop: Loop, window: Window) -> None:
        self._profiled.at(loop.progress.step, self._runs.path("train"))
        if self.update_freq is not None:
            self._write_steps(loop, window, self.update_freq)
        if self._is_due(self.histogram_freq, loop.progress) and loop.progress.epoch_ended:
            self._write_arrays("gradient", loop.progress.epoch, window.observed.get("gradients") or {})

    def on_evaluate_begin(self, loop: Loop, name: str) -> None:
        self._pace.pause(loop.clock())
        if self._running:
            self._summaries.begin(self._runs.path("validation" if name == "val" else name))

    def on_evaluate_end(self, loop: Loop, name: str, logs: Mapping[str, Any]) -> None:
        self._pace.go_on(loop.clock())
        self._summaries.end()
        run = "validation" if name == "val" else name
        short = {key: key.removeprefix(f"{name}_") for key in logs}
        self._evaluated.update((key, (run, short[key])) for key in logs)
        values = {f"evaluation_{short[key]}_vs_iterations": value for key, value in logs.items()}
        self._write_scalars(run, loop.progress.step, values)

    def on_epoch_end(self, loop: Loop, logs: Mapping[str, Any]) -> None:
        epoch = loop.progress.epoch
        runs: dict[str, dict[str, Any]] = {"train": {}}
        for key, value in logs.items():
            otherwise = ("validation", key[4:]) if key.startswith("val_") else ("train", key)
            run, name = self._evaluated.get(key, otherwise)
            runs.setdefault(run, {})[f"epoch_{name}"] = value
        runs["train"].update((f"epoch_{name}", rate) for name, rate in self._rates(loop).items())
        self._rates_now = None
        if self.write_steps_per_second:
            runs["train"]["epoch_steps_per_second"] = self._pace.steps_per_second(loop.progress.step, loop.clock())
        for run, values in runs.items():
            self._write_scalars(run, epoch, values)
        if self.write_graph and not self._graph_written:
            self._write_graphs(loop)
        if self._is_due(self.histogram_freq, loop.progress):
            weights = model_views.named_weights(loop.trained.tracked)
            self._write_arrays("weight", epoch, weights)
            if self.write_images:
                self._write_weight_images(epoch, weights)
        if self._is_due(self.embeddings_freq, loop.progress):
            self._write_embeddings(loop)
        self._evaluated.clear()
        self._summaries.flush()

    def on_train_end(self, loop: Loop) -> None:
        if not self._running:  # another hook failed before `on_train_begin` of this one
            return
        self._running = False
        self._summaries.end_all()
        self._profiled.stop()
        if self.write_graph and not self._graph_written and loop.progress.step > 0:
            self._write_graphs(loop)
        if self._config_written and loop.outcome != "interrupted":  # an interrupted run goes on
            self._runs[_ROOT].ended(loop.outcome)
        self._runs.close()

    def state_dict(self) -> dict[str, Any]:
        evaluated = {key: list(place) for key, place in self._evaluated.items()}
        written = {"graph_written": self._graph_written, "config_written": self._config_written}
        return {**self._runs.state_dict(), **written, "evaluated": evaluated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if lost := self._runs.load_state_dict(state):
            warnings.warn(
                f"TensorBoard: {len(lost)} of the event files that this run had written are missing or cut short, among them {lost[0]}; "
                "what they held is not shown any more. Training goes on.",
                stacklevel=2,
            )
        self._graph_written, self._config_written = state["graph_written"], state["config_written"]
        self._evaluated = {key: (run, name) for key, (run, name) in state["evaluated"].items()}

    def _rates(self, loop: Loop) -> dict[str, float]:
        """The learning rates, read once at the end of an epoch: no other hook acts between the two methods of this one."""
        if self._rates_now is None or self._rates_now[0] != loop.progress.step or not loop.progress.epoch_ended:
            self._rates_now = loop.progress.step, loop.learning_rate.logs()
        return self._rates_now[1]

    @staticmethod
    def _is_due(freq: int, progress: Progress) -> bool:
        return bool(freq) and progress.epoch % freq == 0

    def _write_scalars(self, run: str, step: int, values: Mapping[str, Any]) -> None:
        flat = {tag: [number] for name, value in values.items() for tag, number in numbers(name, value)}
        if flat:
            self._runs[run].scalars([step], flat)

    def _write_steps(self, loop: Loop, window: Window, freq: int) -> None:
        steps = np.arange(window.first_step, window.last_step + 1)
        kept = steps % freq == 0
        now = time.time()
        # Only the time of the whole window is known, so its steps are spread evenly over it.
        times = np.linspace(now - window.seconds, now, len(steps) + 1)[1:]
        trace = window.trace
        values = {f"batch_{name}": _without_nan(column[kept]) for name, column in trace.items()}
        self._runs["train"].scalars(steps[kept], values, times[kept])
        last = {f"batch_{name}": value for name, value in {**window.logs, **self._rates(loop)}.items() if name not in trace}
        if self.write_steps_per_second and window.seconds > 0:
            last["batch_steps_per_second"] = window.steps / window.seconds
        self._write_scalars("train", window.last_step, last)

    def _write_arrays(self, kind: str, epoch: int, arrays: Mapping[str, Any]) -> None:
        writer = self._runs["train"]
        norms: dict[str, float] = {}
        for name, array in arrays.items():
            tag = name.replace(":", "_")
            norms[f"{kind}_norm/{tag}"] = float(np.linalg.norm(np.asarray(array, np.float64)))
            writer.histogram(f"{tag}/histogram" if kind == "weight" else f"{tag}/{kind}_histogram", array, epoch)
        if norms:
            self._write_scalars("train", epoch, {f"epoch_{kind}_norm": float(np.linalg.norm(list(norms.values()))), **norms})

    def _write_weight_images(self, epoch: int, weights: Mapping[str, Any]) -> None:
        for name, array in weights.items():
            picture = model_views.picture(array)
            if picture is not None:
                self._runs["train"].image(f"{name.replace(':', '_')}/image", picture, epoch)

    def _write_graphs(self, loop: Loop) -> None:
        self._graph_written = True
        models = [model for model in loop.task.models if _private_api.is_model(model)]
        for model in models:
            if (layers := model_views.layers_as_json(model)) is not None:
                self._runs["train"].keras_graph("keras" if len(models) == 1 else f"keras_{model.name}", layers)
        if (graph := getattr(loop, "graph", None)) is not None:
            self._runs["train"].graph(graph)

    def _write_embeddings(self, loop: Loop) -> None:
        # Found by name and shape of the variable, because layers may be inside other layers.
        weights = model_views.named_weights(loop.trained.tracked)
        tables = {name: w for name, w in weights.items() if name.endswith("/embeddings") and w.ndim == 2}
        layers = {name: name.split("/")[-2] for name in tables}
        per_layer = self._metadata if isinstance(self._metadata, Mapping) else {}
        for_all = self._metadata if isinstance(self._metadata, str) else None
        if unknown := sorted(set(per_layer) - set(layers.values())):
            known = sorted(set(layers.values()))
            raise ValueError(f"TensorBoard(embeddings_metadata=...) names the layers {unknown}; the embedding layers here are {known}.")
        found = {name: projector.Embedding(table, per_layer.get(layers[name], for_all)) for name, table in tables.items()}
        directory = self._runs.path("train")
        if found:
            self._runs["train"].submit(lambda: projector.write(directory, found))


class _EpochsFromFirst(triggers.Trigger):
    """Due at the end of epochs 0, n, 2n, ..., where Keras writes histograms."""

    def __init__(self, n: int):
        self.n = n

    def due(self, progress: Progress, now: float) -> bool:
        return progress.epoch_ended and progress.epoch % self.n == 0


def _without_nan(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The column with values that are not finite masked; most have none, and masked arrays are slow."""
    finite = np.isfinite(column)
    return column if finite.all() else np.ma.masked_array(column, ~finite)


def _parse_update_freq(update_freq: str | int) -> int | None:
    """The interval between written steps; None if only epochs are written."""
    if update_freq == "epoch":
        return None
    if update_freq == "batch":
        return 1
    if isinstance(update_freq, bool) or not isinstance(update_freq, int) or update_freq < 1:
        raise ValueError(f'TensorBoard(update_freq=...) takes "epoch", "batch" or a number of steps; got {update_freq!r}.')
    return update_freq
