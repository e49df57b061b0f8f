"""Saves the position of a `tf.data` iterator, with its buffers, and restores it in another iterator of the same pipeline.

The saved state does not always contain the positions of the seed generators of `shuffle`. A transformation that has read its input to the
end releases it, and with it the positions of the generators in the shuffles below. So the state of an iterator that is exhausted, or whose
buffers contain the last batches of the pass, continues this pass correctly and shuffles the next ones wrongly. `generators` counts the
positions in a saved state.
"""

from __future__ import annotations

import mmap
import pathlib
import re

import tensorflow as tf

from loops import _private_api

__all__ = ["generators", "remove", "restore", "saved", "save"]

_REFUSALS = (tf.errors.FailedPreconditionError, tf.errors.UnimplementedError)
# A key in TensorFlow's state of a transformation: "Iterator::Root::Prefetch::Shuffle@@epoch_num_random_samples@@num_random_samples@@..."
_POSITION_OF_A_GENERATOR = re.compile(rb"Iterator::[ -~]*?[@:]num_random_samples")


def save(iterator: tf.data.Iterator, directory: pathlib.Path, *, name: str = "iterator") -> bool:
    """Writes the position of an iterator, which can be used further as before.

    Args:
        iterator: of a `tf.data.Dataset`, on one device.
        directory: folder to write into; created if it does not exist.
        name: the file names begin with it.

    Returns:
        False if TensorFlow cannot save the position in this pipeline; no files are left then.

    Raises:
        tf.errors.OpError: if the files cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> import tensorflow as tf
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> numbers = tf.data.Dataset.range(5)
        >>> iterator = iter(numbers)
        >>> int(next(iterator)), save(iterator, folder)
        (0, True)
        >>> other = iter(numbers)
        >>> restore(other, folder)
        >>> int(next(other))
        1
    """
    if not isinstance(iterator, tf.data.Iterator) or not _private_api.can_be_in_checkpoint(iterator):
        return False
    made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        tf.train.Checkpoint(iterator=iterator).write(str(directory / name))
    except BaseException as error:
        remove(directory, name=name)
        if made:
            directory.rmdir()
        if isinstance(error, _REFUSALS):
            return False
        raise
    return True


def restore(iterator: tf.data.Iterator, directory: pathlib.Path, *, name: str = "iterator") -> None:
    """Moves an iterator to the saved position.

    Args:
        iterator: of a dataset that was built like that of the saved iterator.
        directory: where `save` wrote.
        name: as given to `save`.

    Raises:
        ValueError: if there are no such files, they are damaged, or the pipeline is another one.
    """
    if not saved(directory, name=name):
        raise ValueError(f"There is no saved position of a tf.data iterator named {name!r} in {directory}.")
    try:
        tf.train.Checkpoint(iterator=iterator).read(str(directory / name)).assert_consumed()
    except (tf.errors.OpError, AssertionError, IndexError, RuntimeError, ValueError) as error:
        text = str(error).strip()
        raise ValueError(
            f"The position of the tf.data iterator saved in {directory} does not fit this pipeline, or is damaged; "
            f"build the dataset as in the run that saved it (TensorFlow says: {text.splitlines()[0] if text else type(error).__name__})."
        ) from error


def saved(directory: pathlib.Path, *, name: str = "iterator") -> bool:
    """Whether `save` wrote a position with this name here."""
    return (directory / f"{name}.index").exists()


def remove(directory: pathlib.Path, *, name: str = "iterator") -> None:
    """Removes the files that `save` wrote."""
    for path in [*directory.glob(f"{name}.index*"), *directory.glob(f"{name}.data-*")]:
        path.unlink()


def generators(directory: pathlib.Path, *, name: str = "iterator") -> int:
    """Number of the pipeline's seed generators whose position is in the saved state."""
    count = 0
    for path in directory.glob(f"{name}.data-*"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            count += sum(1 for _ in _POSITION_OF_A_GENERATOR.finditer(content))
    return count
