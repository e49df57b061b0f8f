"""Public tables: California housing and Cleveland heart disease, from their original files.

Columns as they were published, missing values included; how they are split and rescaled is decided in `research.data.datasets` and by the
studies.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import pathlib
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np

from research.data.files import Source, data_folder, fetch, original
from research.study import InputError

__all__ = ["HOUSING_FEATURES", "Table", "california_housing", "heart_disease"]

HOUSING_FEATURES = ("MedInc", "HouseAge", "AveRooms", "AveBedrms", "Population", "AveOccup", "Latitude", "Longitude")

_HOUSING = {"cal_housing.data": "01d0b31df796a8d4b7a6ce4c37f42dbc", "housing.csv": "d1c47305887e2252bf1ccbd74ff159a6"}
_HOUSING_SOURCE = Source(
    "https://ndownloader.figshare.com/files/5976036", "aaa5c9a6afe2225cc2aed2723682ae403280c4a3695a2ddda4ffb5d8215ea681"
)
_HOUSING_IN_ARCHIVE = "CaliforniaHousing/cal_housing.data"

_CLEVELAND = "processed.cleveland.data"
_CLEVELAND_MD5 = "2d91a8ff69cfd9616aa47b59d6f843db"
_CLEVELAND_SOURCE = Source(
    "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/processed.cleveland.data",
    "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
)
_HEART_COLUMNS = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal")
_THAL = {"3": "normal", "6": "fixed", "7": "reversible"}


@dataclasses.dataclass(frozen=True)
class Table:
    """Named columns of the same length, and what is to be predicted. The arrays are read-only.

    Attributes:
        columns: name -> `[N]`: float32, a missing value being NaN; or str, a missing value being "".
        target: int32 class indices `[N]`.
        class_names: name of each class index.
        description: one sentence on what it is.
    """

    columns: Mapping[str, np.ndarray]
    target: np.ndarray
    class_names: tuple[str, ...]
    description: str

    def __post_init__(self) -> None:
        for array in (*self.columns.values(), self.target):
            array.setflags(write=False)


def california_housing(root: pathlib.Path | None) -> tuple[np.ndarray, np.ndarray]:
    """20,640 block groups of the 1990 census of California.

    Args:
        root: folder that holds `california_housing/` with `cal_housing.data` (StatLib's) or `housing.csv`, in which 207 values are
            missing. None, or a folder without it: the former is downloaded.

    Returns:
        Features float64 `[20640, 8]`, columns `HOUSING_FEATURES`, NaN where a value is missing; and the median house value, float64
        `[20640]`, in $100,000. Rows are in the order of the files.

    Raises:
        InputError: for a damaged file, or data that can be neither found nor downloaded.

    References:
        Pace and Barry, Sparse Spatial Autoregressions, Statistics and Probability Letters 33 (1997).
    """
    table = _housing_table(root)
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = table.T
    features = (income, age, rooms / households, bedrooms / households, population, population / households, latitude, longitude)
    return np.stack(features, axis=1), value / 100_000


def _housing_table(root: pathlib.Path | None) -> np.ndarray:
    folder = root / "california_housing" if root else None
    for name, md5 in _HOUSING.items():
        if folder and (folder / name).exists():
            rows = _rows(original(folder / name, md5))
            return np.asarray([[float(cell or "nan") for cell in row[:9]] for row in rows[name.endswith(".csv") :]])
    archive = fetch("california_housing", _HOUSING_SOURCE, wanted=[" or ".join(_HOUSING)], root=root)
    with tarfile.open(archive) as files:
        content = files.extractfile(_HOUSING_IN_ARCHIVE)
        assert content is not None
        return np.loadtxt(content, delimiter=",")


def heart_disease(data_dir: str | os.PathLike[str] | None = None) -> Table:
    """303 patients of the Cleveland Clinic: 13 attributes, 6 values missing, and whether their coronary arteries are narrowed.

    Args:
        data_dir: folder that holds `heart_disease/` with `processed.cleveland.data` (UCI's) or `heart.csv` (a header, the same columns,
            `thal` in words, `target` 0 or 1, missing values empty). Default: the environment variable `TAPELOOPS_DATA`. Without such a
            folder the former is downloaded once.

    Returns:
        Columns as float32, but for `thal`, which is "normal", "fixed", "reversible" or "" (missing). Rows are in the order of the file.

    Raises:
        InputError: for a damaged file, or data that can be neither found nor downloaded.

    References:
        Janosi, Steinbrunn, Pfisterer and Detrano, Heart Disease, UCI Machine Learning Repository (1989), doi 10.24432/C52P4X.
    """
    root = data_folder(data_dir)
    folder = root / "heart_disease" if root else None
    if folder and (folder / "heart.csv").exists() and not (folder / _CLEVELAND).exists():
        return _heart_table(_heart_rows(folder / "heart.csv"), folder / "heart.csv")
    if folder and (folder / _CLEVELAND).exists():
        path = folder / _CLEVELAND
    else:
        path = fetch("heart_disease", _CLEVELAND_SOURCE, wanted=[f"{_CLEVELAND} or heart.csv"], root=root)
    rows = [["" if cell == "?" else cell for cell in row] for row in _rows(original(path, _CLEVELAND_MD5))]
    return _heart_table([[*row[:12], row[12] and _THAL[str(int(float(row[12])))], str(int(row[13] != "0"))] for row in rows], path)


def _heart_rows(path: pathlib.Path) -> Sequence[Sequence[str]]:
    """The rows of a `heart.csv`, of which there are several versions, so that it has no checksum."""
    header, *rows = _rows(path.read_bytes()) or [[]]
    if tuple(header) != (*_HEART_COLUMNS, "target"):
        raise InputError(f"{path} has the header {','.join(header)!r}; expected {','.join(_HEART_COLUMNS)},target.")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InputError(f"{path}, line {line} has {len(row)} values; expected {len(header)}.")
    return rows


def _heart_table(rows: Sequence[Sequence[str]], path: pathlib.Path) -> Table:
    if not rows:
        raise InputError(f"{path} holds no patients.")
    columns = dict(zip(_HEART_COLUMNS, zip(*(row[:13] for row in rows), strict=True), strict=True))
    thal = np.asarray(columns.pop("thal"))
    try:
        numbers = {name: np.asarray([float(cell or "nan") for cell in cells], np.float32) for name, cells in columns.items()}
        target = np.asarray([int(row[13]) for row in rows], np.int32)
    except ValueError as error:
        raise InputError(f"{path} holds something other than numbers: {error}.") from error
    missing = sum(int(np.isnan(values).sum()) for values in numbers.values()) + int((thal == "").sum())
    return Table(
        {**numbers, "thal": thal},
        target,
        ("healthy", "ill"),
        f"Heart disease, Cleveland Clinic: {len(rows)} patients, 13 attributes, {missing} values missing.",
    )


def _rows(content: bytes) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(content.decode("utf-8"))) if row]
