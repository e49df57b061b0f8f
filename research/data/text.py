"""Text as characters: a small corpus in three parts, and its cutting into streams that go on from batch to batch.

For models that read one character after the other; `loops.feeds` makes batches of the streams.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import NamedTuple

import numpy as np

from research.data import files
from research.study import InputError

__all__ = ["CORPORA", "Streams", "Text", "load", "streams"]

CORPORA = ("handbook", "tinyshakespeare")

# Of the file as it is published in karpathy/char-rnn.
_MD5 = "6fb458f1232090904fb40fe944165e91"
_SOURCE = files.Source(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclasses.dataclass(frozen=True)
class Text:
    """A corpus as numbers of characters. The arrays are read-only.

    Attributes:
        name: what `load` was asked for.
        train, val, test: uint8 `[N]`, indices into `vocabulary`: the first 90%, the next 5% and the last 5% of the text.
        vocabulary: all characters of the text, in the order of their code points.
        description: one sentence on what it is and how it was split.
    """

    name: str
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    vocabulary: str
    description: str

    def __post_init__(self) -> None:
        for part in (self.train, self.val, self.test):
            part.setflags(write=False)

    def encode(self, text: str) -> np.ndarray:
        """Numbers `[len(text)]`, uint8, of the characters of `text`.

        Raises:
            InputError: for a character that the corpus does not have.
        """
        unknown = sorted(set(text) - set(self.vocabulary))
        if unknown:
            raise InputError(f"The character {unknown[0]!r} does not occur in {self.name}.")
        return np.array([self.vocabulary.index(character) for character in text], np.uint8)

    def decode(self, numbers: np.ndarray) -> str:
        """The text that `numbers` stand for."""
        return "".join(self.vocabulary[number] for number in numbers)


class Streams(NamedTuple):
    """A text in parallel streams, as windows; `count` windows that follow each other make up a batch.

    Row `k * count + s` is window `k` of stream `s`, so stream `s` goes on in the same row of the next batch.

    Attributes:
        x: int32 `[windows * count, length]`, characters read.
        y: int32 `[windows * count, length]`, the character after each; -1 where the stream has ended.
        begins: bool `[windows * count]`, whether the stream begins with this window.
    """

    x: np.ndarray
    y: np.ndarray
    begins: np.ndarray


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Text:
    """Loads a corpus by name.

    Args:
        name: "handbook" (what scikit-learn says on its data sets, 47 kB of technical prose that is installed with it) or
            "tinyshakespeare" (1.1 MB of plays).
        data_dir: folder that holds `tinyshakespeare/input.txt`. Default: the environment variable `TAPELOOPS_DATA`. Without such a file
            it is downloaded once.

    Raises:
        InputError: for an unknown name, a damaged file, or a text that can be neither found nor downloaded.

    Example:
        >>> text = load("handbook")
        >>> text.decode(text.encode("data"))
        'data'
    """
    if name not in CORPORA:
        raise InputError(f"There is no text {name!r}; choose one of {', '.join(CORPORA)}.")
    text, title = _handbook() if name == "handbook" else _tinyshakespeare(data_dir)
    vocabulary = "".join(sorted(set(text)))
    number = {character: i for i, character in enumerate(vocabulary)}
    numbers = np.array([number[character] for character in text], np.uint8)
    train, val, test = np.split(numbers, [len(numbers) * 90 // 100, len(numbers) * 95 // 100])
    description = f"{title}: {len(text):,} characters, {len(vocabulary)} different ones; the first 90% to train on, then 5% and 5%."
    return Text(name, train, val, test, vocabulary, description)


def streams(numbers: np.ndarray, *, count: int, length: int) -> Streams:
    """Cuts a text into `count` streams of equal length, and these into windows of `length` characters.

    Every character but the first is the target of exactly one place; what is left over at the ends is filled up with targets -1.

    Args:
        numbers: characters `[N]`.
        count: streams that are read side by side.
        length: characters of a window: how far back-propagation through time goes.

    Raises:
        InputError: if `count` or `length` is not positive, or the text has fewer than `count + 1` characters.

    Example:
        >>> x, y, begins = streams(np.arange(9), count=2, length=3)
        >>> x.tolist(), y[:2].tolist(), begins.tolist()
        ([[0, 1, 2], [4, 5, 6], [3, 0, 0], [7, 0, 0]], [[1, 2, 3], [5, 6, 7]], [True, True, False, False])
    """
    if count < 1 or length < 1:
        raise InputError(f"Streams need a count and a window length of 1 or more; got {count} and {length}.")
    if len(numbers) <= count:
        raise InputError(f"A text of {len(numbers)} characters cannot be read in {count} streams; choose fewer.")
    targets = len(numbers) - 1
    windows = -(-targets // (count * length))
    # As even as possible: the text fills all streams up to the same place but for one character.
    longest = -(-targets // count)
    x, y = np.zeros([count, windows * length], np.int32), np.full([count, windows * length], -1, np.int32)
    for stream in range(count):
        part = numbers[stream * longest : min((stream + 1) * longest, targets) + 1].astype(np.int32)
        x[stream, : len(part) - 1], y[stream, : len(part) - 1] = part[:-1], part[1:]

    def by_window(rows: np.ndarray) -> np.ndarray:
        return rows.reshape(count, windows, length).swapaxes(0, 1).reshape(windows * count, length)

    return Streams(by_window(x), by_window(y), np.arange(windows * count) < count)


def _handbook() -> tuple[str, str]:
    import sklearn.datasets

    folder = pathlib.Path(sklearn.datasets.__file__).parent / "descr"
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.rst")))
    return "".join(c for c in text if c.isascii()), "What scikit-learn says on its data sets"


def _tinyshakespeare(data_dir: str | os.PathLike[str] | None) -> tuple[str, str]:
    root = files.data_folder(data_dir)
    path = root / "tinyshakespeare" / "input.txt" if root else None
    if path is None or not path.exists():
        path = files.fetch("tinyshakespeare", _SOURCE, wanted=["input.txt"], root=root)
    return files.original(path, _MD5).decode("ascii"), "Tiny Shakespeare"
