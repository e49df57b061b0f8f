"""Saves where a `tf.data` iterator stands, with what is in its buffers, and puts another iterator of the same pipeline there.

What the state does not always hold: the position of the seed generators of `shuffle`. A transformation that has read its input to the end
lets go of it, and with it of how far the generators of the shuffles below have got; so the state of an iterator that is exhausted, or
whose buffers hold the last batches of the pass, continues this pass and shuffles the next ones wrongly. `generators` tells.
"""

from __future__ import annotations

import mmap
import pathlib
import re

import tensorflow as tf

from loops import _private_api

__all__ = ["generators", "remove", "restore", "saved", "save"]

_REFUSALS = (tf.errors.FailedPreconditionError, tf.errors.UnimplementedError)
# As TensorFlow writes the keys of a part's state: "Iterator::Root::Prefetch::Shuffle@@epoch_num_random_samples@@num_random_samples@@..."
_POSITION_OF_A_GENERATOR = re.compile(rb"Iterator::[ -~]*?[@:]num_random_samples")


def save(iterator: tf.data.Iterator, directory: pathlib.Path, *, name: str = "iterator") -> bool:
    """Writes where an iterator stands; the iterator goes on as if nothing had happened.

    Args:
        iterator: of a `tf.data.Dataset`, on one device.
        directory: folder to write into; made if it is not there.
        name: what the files' names begin with.

    Returns:
        False if TensorFlow cannot save this pipeline's position; no files are left then.

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
    """Puts an iterator where the saved one stood.

    Args:
        iterator: of a dataset that was built as the saved one's.
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
    """Whether `save` wrote a state of this name here."""
    return (directory / f"{name}.index").exists()


def remove(directory: pathlib.Path, *, name: str = "iterator") -> None:
    """Removes the files that `save` wrote."""
    for path in [*directory.glob(f"{name}.index*"), *directory.glob(f"{name}.data-*")]:
        path.unlink()


def generators(directory: pathlib.Path, *, name: str = "iterator") -> int:
    """Of how many of the pipeline's seed generators the saved state holds the position."""
    count = 0
    for path in directory.glob(f"{name}.data-*"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            count += sum(1 for _ in _POSITION_OF_A_GENERATOR.finditer(content))
    return count
