"""What a study hands to the programs in `scripts/`, so that they need to know no study by name.

A study is a module `research.studies.NAME` with a function `build(config, *, data_dir, seed, strategy)` that returns a `Study`, or a
`Comparison` of several. `research.runner` trains them; what studies of inputs and targets share is in `research.supervised`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import tensorflow as tf
    from matplotlib.figure import Figure

    import loops

__all__ = ["PLOTS", "Comparison", "InputError", "Run", "Runs", "Study", "build", "from_config", "in_scope"]

COMPARISON = "comparison"  # the TensorBoard run of what a comparison shows as a whole
PLOTS = "plots"


class InputError(ValueError):
    """Something that the user gave cannot be used. The message is one sentence, to be shown as it stands."""


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment that is ready to run.

    Attributes:
        task: what is trained; under a strategy it was made in its scope.
        model: the model whose best weights are kept and evaluated.
        train: batches to train on.
        evaluate: named feeds that are evaluated after every epoch; "val" gives `val_loss` and so on.
        test: the feed that nothing is decided by, or None.
        title: a few words, for the head of a picture.
        description: a sentence or two on data and model, printed before training.
        monitor: name in the logs by which the best epoch is chosen; None takes the last epoch.
        mode: "min" or "max": which of its values is best.
        hooks: hooks that belong to the experiment; `research.runner` adds early stopping on `monitor`, the keepers of best and last
            weights, and the progress bar.
        after: called when training has ended and the model has the weights of the best epoch: draws pictures, computes what the study is
            about, and returns lines to print. Called again when a finished run is started again.
        epochs: epochs to train, None: those of the config.
        steps_per_epoch: steps of an epoch, None: a pass over `train`.
        clip: as in `loops.TrainLoop`.
        preprocessing: what becomes of inputs as they are stored before the model gets them, of arrays or tensors; exported with the model.
            None: nothing.
        examples: a few inputs as they are stored, arrays `[n, ...]` in the structure that `preprocessing` takes: what an exported model
            takes, and is checked on. None: those of `test`, as the `inverse` of `preprocessing` gives them.
    """

    task: loops.Task
    model: keras.Model
    train: loops.Feed
    evaluate: Mapping[str, loops.Feed]
    test: loops.Feed | None
    title: str
    description: str
    monitor: str | None = "val_loss"
    mode: str = "min"
    hooks: Sequence[Any] = ()
    after: Callable[[Run], Sequence[str]] | None = None
    epochs: int | None = None
    steps_per_epoch: int | None = None
    clip: Any = None
    preprocessing: Callable[[Any], Any] | None = None
    examples: Any = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several studies that are trained one after the other, and what they show together.

    Each is made when the ones before it have been trained, from the same seed, and so the same whether those were trained just now or in a
    process that was killed since.

    Attributes:
        parts: name -> function that makes the study, given the runs of the parts before it. The name is that of its folder in the workdir.
        conclude: given all runs, returns lines to print: a table, say; see `research.report.metrics_table`.
        description: a sentence or two, printed before training.
    """

    parts: Mapping[str, Callable[[Mapping[str, Run]], Study]]
    conclude: Callable[[Runs], Sequence[str]]
    description: str

    def __post_init__(self) -> None:
        for name in self.parts:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in (PLOTS, COMPARISON):
                raise ValueError(f"A part of a comparison cannot be named {name!r}; it names a folder beside plots.")

    def make(self, name: str, before: Mapping[str, Run], *, seed: int) -> Study:
        """The study of one part, from a fixed seed.

        Args:
            name: which part.
            before: the runs of the parts before it.
            seed: see `build`.
        """
        _begin(seed)
        return self.parts[name](before)


@dataclasses.dataclass(frozen=True)
class Run:
    """A study that has been trained. Its model has the weights of the best epoch.

    Attributes:
        study: what was trained.
        loop: the loop that trained it.
        test: metrics on the test set, empty if the study has none.
        best: position in `history.epoch` of the epoch whose weights the model has; None: they are those of the last.
        saved: whether everything that the run leaves could be written.
    """

    study: Study
    loop: loops.TrainLoop
    test: Mapping[str, Any]
    best: int | None = None
    saved: bool = True

    @property
    def history(self) -> Any:
        """`history.history` maps names to values by epoch, `history.epoch` holds the 0-based indices of the epochs."""
        return self.loop.history

    @property
    def workdir(self) -> pathlib.Path | None:
        """The run's folder; None without one, and on all but the chief of several worker processes, which write nothing."""
        return self.loop.workdir if self.loop.is_chief else None

    @property
    def logs(self) -> dict[str, Any]:
        """What was logged in the epoch whose weights the model has."""
        history = self.history
        if not history.epoch:
            return {}
        epoch = history.epoch[-1 if self.best is None else self.best]
        at = {name: history.epochs_of(name) for name in history.history}
        return {name: values[at[name].index(epoch)] for name, values in history.history.items() if epoch in at[name]}

    def picture(self, name: str, figure: Figure) -> None:
        """Writes `plots/NAME.png`, and the same to the run `train` of TensorBoard, at the step where training stands.

        Does nothing without a workdir.

        Args:
            name: name of the file without its ending, and TensorBoard's tag.
            figure: what a function of `research.pictures.plots` or `research.pictures.figures` drew.
        """
        if self.workdir is None:
            return
        from loops import hooks
        from research.pictures import figures

        figures.save(figure, self.workdir / PLOTS / f"{name}.png")
        for hook in self.loop.hooks:
            if isinstance(hook, hooks.TensorBoard):
                # When the run is started again the hook takes its files back to the last snapshot, so what is drawn again is not doubled.
                hook.image(name, figures.pixels(figure), self.loop.progress.step)


class Runs(dict[str, Run]):
    """The runs of a comparison by the names of its parts, and a place for pictures that show several of them.

    Args:
        workdir: folder of the comparison, or None.
        writes: whether this process writes pictures there; of several worker processes the chief does.
    """

    def __init__(self, workdir: pathlib.Path | None = None, *, writes: bool = True):
        super().__init__()
        self.workdir, self._writes = workdir, writes
        self._pictures: dict[str, Any] = {}

    def picture(self, name: str, figure: Figure) -> None:
        """Writes `plots/NAME.png` of the comparison, and the same to its run `comparison` of TensorBoard. Does nothing without a workdir.

        Args:
            name: name of the file without its ending, and TensorBoard's tag.
            figure: what a function of `research.pictures.plots` or `research.pictures.figures` drew.
        """
        if self.workdir is None or not self._writes:
            return
        from loops.summaries import event_files
        from loops.summaries.writer import SummaryWriter
        from research.pictures import figures

        figures.save(figure, self.workdir / PLOTS / f"{name}.png")
        self._pictures[name] = figures.pixels(figure)
        # All of them are written again, so that a comparison that concludes twice holds each once.
        folder = self.workdir / COMPARISON
        mark = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
        if folder.is_dir():
            event_files.cut_back(folder, {}, mark)
        with SummaryWriter(folder, mark=mark) as writer:
            for tag, image in self._pictures.items():
                writer.image(tag, image, 0)


def build(
    config: Any,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    strategy: tf.distribute.Strategy | None = None,
) -> Study | Comparison:
    """Builds the study that a config names, from a fixed seed.

    Args:
        config: an `ml_collections.ConfigDict` with a field `study`, the name of a module in `research/studies`; what its other
            fields mean is said in `research/configs`.
        data_dir: where data lies that is not bundled; see `research.data.datasets.load`.
        seed: seed of Python, NumPy, Keras and TensorFlow, set before anything is made; weights and order of the data depend on it.
        strategy: distribution strategy in whose scope model and optimizer are made; None for one device.

    Raises:
        InputError: if there is no such study, or something in the config cannot be used.
    """
    name = f"research.studies.{config.study}"
    if not str(config.study).isidentifier() or importlib.util.find_spec(name) is None:
        raise InputError(f"config.study is {config.study!r}, but there is no module {name}.")
    module = importlib.import_module(name)
    if not hasattr(module, "build"):
        raise InputError(f"config.study is {config.study!r}, but {name} has no function `build`.")
    _begin(seed)
    return module.build(config, data_dir=data_dir, seed=seed, strategy=strategy)


def in_scope(strategy: tf.distribute.Strategy | None) -> contextlib.AbstractContextManager[Any]:
    """The strategy's scope, or a context that does nothing without one."""
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


@contextlib.contextmanager
def from_config() -> Iterator[None]:
    """In its block models, tasks and feeds are made from what the user wrote: what Keras or a feed refuses becomes an `InputError`.

    Example:
        >>> import loops
        >>> with from_config():
        ...     loops.ArrayFeed([[1.0]], batch_size=0)
        Traceback (most recent call last):
        research.study.InputError: The config cannot be built: ...
    """
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"The config cannot be built: {str(error).splitlines()[0]}") from error


def _begin(seed: int) -> None:
    """The same seeds, and the same names of layers, whatever this process has made before."""
    import keras

    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
