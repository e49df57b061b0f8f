"""Small real data sets as NumPy arrays, split and normalised the same way every time.

For data that fits in memory; `loops.feeds` makes batches of it.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from research.data import tables
from research.data.files import data_folder, original, unavailable
from research.study import InputError

__all__ = ["NORMALIZATIONS", "Dataset", "Scaling", "Split", "load", "names", "normalize"]

NORMALIZATIONS = ("raw", "minmax", "zscore")

# Published with the original releases.
_MD5 = {
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "optdigits": {
        "optdigits.tra": "268ce7771f3f15afbc54402478b1d454",
        "optdigits.tes": "a0339c30a8a5312a1b6f9e5c719dcce5",
    },
}

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_VALIDATION_IMAGES = 5_000
_VALIDATION_DIGITS = 573


class Split(NamedTuple):
    """Inputs and targets of the same length.

    Attributes:
        x: float32 `[N, ...]`.
        y: int32 class indices `[N]`, or float32 targets `[N]` for regression.
    """

    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scaling:
    """A normalisation with its numbers, for inputs that come later: `(x - offset) / scale`, of arrays or tensors.

    Attributes:
        offset, scale: float32 scalar, or one value a column.

    Example:
        >>> Scaling(np.float32(2), np.float32(4))(np.float32(10))
        np.float32(2.0)
    """

    offset: np.ndarray | np.float32 = np.float32(0)
    scale: np.ndarray | np.float32 = np.float32(1)

    def __call__(self, x: Any) -> Any:
        return (x - self.offset) / self.scale

    def inverse(self, x: Any) -> Any:
        """The inputs that were scaled to `x`."""
        return x * self.scale + self.offset


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set in three parts. The arrays are read-only.

    Attributes:
        name: what `load` was asked for.
        train, val, test: the parts.
        class_names: name of each class index; empty for regression.
        description: one sentence on what it is and how it was split.
        feature_names: name of each column of a table; empty for images.
        unit: what one unit of a regression target is; empty if it has no name.
        scaling: how inputs as they are stored became those of the parts.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    description: str
    feature_names: tuple[str, ...] = ()
    unit: str = ""
    scaling: Scaling = Scaling()

    def __post_init__(self) -> None:
        for split in (self.train, self.val, self.test):
            for array in split:
                array.setflags(write=False)


def names() -> tuple[str, ...]:
    """What `load` knows, in alphabetical order."""
    return tuple(sorted(_LOADERS))


def load(name: str, *, normalization: str = "raw", data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        name: "digits", "diabetes", "breast_cancer" or "wine" (they come with scikit-learn), "mnist", "fashion_mnist", "optdigits" or
            "california_housing".
        normalization: see `normalize`.
        data_dir: folder that holds `mnist/` and `fashion_mnist/` with the four original `*-ubyte.gz` files each, `optdigits/` with
            `optdigits.tra` and `.tes`, `california_housing/` with `cal_housing.data`. Default: the environment variable
            `TAPELOOPS_DATA`. Without such a folder the data is downloaded once (but for optdigits).

    Returns:
        The data set. The parts are the same in every call, on every machine.

    Raises:
        InputError: for an unknown name, a damaged or missing file, or data that can be neither found nor downloaded.

    Example:
        >>> digits = load("digits", normalization="minmax")
        >>> digits.train.x.shape, digits.train.x.dtype, float(digits.train.x.max())
        ((1257, 8, 8), dtype('float32'), 1.0)
    """
    if name not in _LOADERS:
        raise InputError(f"There is no data set {name!r}; choose one of {', '.join(names())}.")
    return normalize(_LOADERS[name](data_dir), normalization)


def normalize(dataset: Dataset, how: str) -> Dataset:
    """Rescales the inputs with numbers that come from the training part alone.

    Images are rescaled as a whole: one number for all pixels, as `StandardScaler().fit(x_train.reshape(-1, 1))` does. Tables are
    rescaled column by column.

    Args:
        dataset: what `load` gave.
        how: "raw" (as stored), "minmax" `(x - min) / (max - min)`, or "zscore" `(x - mean) / standard deviation`.

    Returns:
        A new data set, inputs float32.

    Raises:
        InputError: if `how` is none of these.

    Example:
        >>> wine = normalize(load("wine"), "zscore")
        >>> bool(np.allclose(wine.train.x.std(axis=0), 1, atol=1e-5))
        True
    """
    if how not in NORMALIZATIONS:
        raise InputError(f"There is no normalisation {how!r}; choose one of {', '.join(NORMALIZATIONS)}.")
    x = dataset.train.x
    axis = None if x.ndim > 2 else 0
    if how == "raw":
        offset, scale = np.float32(0), np.float32(1)
    elif how == "minmax":
        offset, scale = x.min(axis), x.max(axis) - x.min(axis)
    else:
        offset, scale = x.mean(axis, dtype=np.float64), x.std(axis, dtype=np.float64)
    # A column that never changes carries nothing: it becomes 0, not NaN.
    scaling = Scaling(np.float32(offset), np.where(scale == 0, 1, scale).astype(np.float32))
    before = dataset.scaling
    # What takes stored inputs to the new ones at once, if they were scaled before.
    whole = Scaling(before.offset + before.scale * scaling.offset, before.scale * scaling.scale)

    def rescale(split: Split) -> Split:
        return Split(scaling(split.x.astype(np.float32)), split.y)

    return dataclasses.replace(dataset, train=rescale(dataset.train), val=rescale(dataset.val), test=rescale(dataset.test), scaling=whole)


_Loader = Callable[[str | os.PathLike[str] | None], Dataset]


def _from_sklearn(name: str, title: str) -> _Loader:
    def load_it(_: str | os.PathLike[str] | None) -> Dataset:
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, f"load_{name}")()
        x = np.asarray(bunch.images if "images" in bunch else bunch.data, np.float32)
        classes = tuple(str(c) for c in bunch.get("target_names", ()))
        y = np.asarray(bunch.target, np.int32 if classes else np.float32)
        description = f"{title}: {len(x):,} examples, split 70/15/15 by a fixed permutation, stratified by target."
        features = () if "images" in bunch else tuple(str(f) for f in bunch.feature_names)
        return Dataset(name, *_stratified(x, y), class_names=classes, description=description, feature_names=features)

    return load_it


def _california_housing(data_dir: str | os.PathLike[str] | None) -> Dataset:
    x, y = tables.california_housing(data_folder(data_dir))
    train, val, test = _stratified(x, y)
    middle = np.nanmedian(train.x, axis=0)
    filled = int(np.isnan(x).sum())
    gaps = f" {filled} missing values became the median of their column." if filled else ""

    def complete(split: Split) -> Split:
        return Split(np.where(np.isnan(split.x), middle, split.x).astype(np.float32), split.y.astype(np.float32))

    return Dataset(
        "california_housing",
        *map(complete, (train, val, test)),
        class_names=(),
        description=(
            f"California housing: median house values of {len(x):,} block groups, split 70/15/15 by a fixed permutation, stratified by "
            f"target.{gaps}"
        ),
        feature_names=tables.HOUSING_FEATURES,
        unit="$100,000",
    )


def _stratified(x: np.ndarray, y: np.ndarray) -> tuple[Split, Split, Split]:
    """Train, validation and test part: of every 20 examples that follow each other in order of target, 14, 3 and 3."""
    # RandomState, because NumPy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    place = np.empty(len(y), np.int64)
    place[order] = np.arange(len(y)) % 20
    rows = place >= 6, (place >= 3) & (place < 6), place < 3
    return Split(x[rows[0]], y[rows[0]]), Split(x[rows[1]], y[rows[1]]), Split(x[rows[2]], y[rows[2]])


def _images(name: str, title: str, class_names: tuple[str, ...]) -> _Loader:
    def load_it(data_dir: str | os.PathLike[str] | None) -> Dataset:
        root = data_folder(data_dir)
        folder = root / name if root else None
        x, y, x_test, y_test = _read_folder(name, folder) if folder and folder.is_dir() else _download(name, root)
        n = _VALIDATION_IMAGES
        return Dataset(
            name,
            train=Split(x[n:], y[n:].astype(np.int32)),
            val=Split(x[:n], y[:n].astype(np.int32)),
            test=Split(x_test, y_test.astype(np.int32)),
            class_names=class_names,
            description=f"{title}: 70,000 images of 28x28; the first {n:,} of the 60,000 training images are for validation.",
        )

    return load_it


def _optdigits(data_dir: str | os.PathLike[str] | None) -> Dataset:
    root = data_folder(data_dir)
    if root is None:
        raise InputError(f"optdigits is not downloaded; put {', '.join(_MD5['optdigits'])} in a folder optdigits/ below --data_dir.")
    parts = []
    for file, md5 in _MD5["optdigits"].items():
        table = np.loadtxt(io.BytesIO(original(root / "optdigits" / file, md5)), np.float32, delimiter=",", ndmin=2)
        parts.append(Split(table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int32)))
    writers, n = parts[0], _VALIDATION_DIGITS
    return Dataset(
        "optdigits",
        train=Split(writers.x[n:], writers.y[n:]),
        val=Split(writers.x[:n], writers.y[:n]),
        test=parts[1],
        class_names=tuple("0123456789"),
        description=(
            "Optical digits in 8x8 pixels of 0..16: 3,823 by 30 writers, of which the first 573 are for validation; 1,797 by 13 others "
            "are the test set."
        ),
    )


def _read_folder(name: str, folder: pathlib.Path) -> list[np.ndarray]:
    return [_read_idx(folder / file, md5) for file, md5 in _MD5[name].items()]


def _read_idx(path: pathlib.Path, md5: str) -> np.ndarray:
    """An idx file: two zero bytes, type (8: uint8), number of dimensions, each dimension as big-endian int32, then the values."""
    data = gzip.decompress(original(path, md5))
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", count=dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _download(name: str, root: pathlib.Path | None) -> list[np.ndarray]:
    import keras

    try:
        (x, y), (x_test, y_test) = getattr(keras.datasets, name).load_data()
    except Exception as error:  # Keras wraps whatever went wrong on the way into a bare Exception.
        raise unavailable(name, error, wanted=_MD5[name], root=root) from error
    return [x, y, x_test, y_test]


_LOADERS: dict[str, _Loader] = {
    "california_housing": _california_housing,
    "digits": _from_sklearn("digits", "Handwritten digits in 8x8 pixels of 0..16"),
    "diabetes": _from_sklearn("diabetes", "Diabetes progression after a year, from 10 measurements"),
    "breast_cancer": _from_sklearn("breast_cancer", "Breast tumours, malignant or benign, from 30 measurements"),
    "wine": _from_sklearn("wine", "Wines of three growers, from 13 measurements"),
    "optdigits": _optdigits,
    "mnist": _images("mnist", "MNIST, handwritten digits", tuple("0123456789")),
    "fashion_mnist": _images("fashion_mnist", "Fashion-MNIST, pictures of clothes", _FASHION),
}
