"""Tables come from their original files as they were published: columns, missing values, units."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import tarfile

import keras
import numpy as np
import pytest

from research.data import datasets, files, tables
from research.study import InputError

HOUSES = np.array(
    [  # longitude, latitude, age, rooms, bedrooms, population, households, income, value
        [-122.23, 37.88, 41, 880, 129, 322, 126, 8.3252, 452600],
        [-122.22, 37.86, 21, 7099, 1106, 2401, 1138, 8.3014, 358500],
        *([-118.0 - i / 100, 34.0, 10 + i, 1000 + i, 200, 800, 100 + i, 2.0 + i, 100000 + i] for i in range(38)),
    ]
)
PATIENTS = """63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0
67.0,1.0,4.0,160.0,286.0,0.0,2.0,108.0,1.0,1.5,2.0,3.0,3.0,2
38.0,1.0,3.0,138.0,175.0,0.0,0.0,173.0,0.0,0.0,1.0,?,7.0,0
58.0,1.0,2.0,125.0,220.0,0.0,0.0,144.0,0.0,0.4,2.0,0.0,?,4
"""
HEADER = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,target"
IN_WORDS = f"""{HEADER}
63,1,1,145,233,1,2,150,0,2.3,3,0,fixed,0
67,1,4,160,286,0,2,108,1,1.5,2,3,normal,1
38,1,3,138,175,0,0,173,0,0,1,,reversible,0
58,1,2,125,220,0,0,144,0,0.4,2,0,,1
"""


def statlib(houses: np.ndarray = HOUSES) -> bytes:
    return "".join(",".join(f"{v:f}" for v in row) + "\n" for row in houses).encode()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def housing(tmp_path, monkeypatch):
    """A data_dir with a small `cal_housing.data`, its checksum in place of the published one."""
    folder = tmp_path / "california_housing"
    folder.mkdir()
    (folder / "cal_housing.data").write_bytes(statlib())
    monkeypatch.setitem(tables._HOUSING, "cal_housing.data", md5(statlib()))
    return tmp_path


@pytest.fixture
def heart(tmp_path, monkeypatch):
    folder = tmp_path / "heart_disease"
    folder.mkdir()
    (folder / "processed.cleveland.data").write_text(PATIENTS)
    monkeypatch.setattr(tables, "_CLEVELAND_MD5", md5(PATIENTS.encode()))
    return tmp_path


def test_houses_have_the_features_and_the_unit_that_scikit_learn_gives_them(housing):
    x, y = tables.california_housing(housing)
    first = dict(zip(tables.HOUSING_FEATURES, x[0], strict=True))
    # The first row of sklearn.datasets.fetch_california_housing().
    expected = {
        "MedInc": 8.3252,
        "HouseAge": 41,
        "AveRooms": 6.98412698,
        "AveBedrms": 1.02380952,
        "Population": 322,
        "AveOccup": 2.55555556,
        "Latitude": 37.88,
        "Longitude": -122.23,
    }
    assert first == pytest.approx(expected) and y[0] == pytest.approx(4.526)


def test_houses_are_split_into_parts_that_cover_everything_once(housing):
    data = datasets.load("california_housing", data_dir=housing)
    x, y = tables.california_housing(housing)
    parts = data.train, data.val, data.test
    assert [len(part.x) for part in parts] == [28, 6, 6]
    assert np.array_equal(np.sort(np.concatenate([part.y for part in parts])), np.sort(y.astype(np.float32)))
    where = {value: i for i, value in enumerate(y.astype(np.float32))}
    for part in parts:
        assert part.x.dtype == part.y.dtype == np.float32
        assert np.array_equal(part.x, x[[where[value] for value in part.y]].astype(np.float32))
    assert not data.class_names and data.feature_names == tables.HOUSING_FEATURES


def test_missing_bedrooms_become_the_median_of_the_training_part(tmp_path, monkeypatch):
    rows = [",".join(f"{v}" for v in row) + ",INLAND" for row in HOUSES]
    rows[2:12] = [",".join("" if i == 4 else f"{v}" for i, v in enumerate(row)) + ",INLAND" for row in HOUSES[2:12]]
    names = "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,median_income,median_house_value"
    content = "\n".join([names + ",ocean_proximity", *rows]).encode()
    (tmp_path / "california_housing").mkdir()
    (tmp_path / "california_housing" / "housing.csv").write_bytes(content)
    monkeypatch.setitem(tables._HOUSING, "housing.csv", md5(content))
    x, y = tables.california_housing(tmp_path)
    assert np.isnan(x).sum() == 10 and np.isnan(x[2:12, 3]).all()

    data = datasets.load("california_housing", data_dir=tmp_path)
    given = {value for i, value in enumerate(y.astype(np.float32)) if not 2 <= i < 12}
    known = np.array([value in given for value in data.train.y])
    filled = {x[3] for part in (data.train, data.val, data.test) for x, y in zip(*part, strict=True) if y not in given}
    assert 0 < known.sum() < len(known) and filled == {np.float32(np.median(data.train.x[known, 3].astype(np.float64)))}
    assert "10 missing values" in data.description


def test_without_files_houses_are_downloaded_as_the_archive_that_scikit_learn_uses(tmp_path, monkeypatch):
    from sklearn.datasets import _california_housing as theirs

    archive = tmp_path / "cal_housing.tgz"
    with tarfile.open(archive, "w:gz") as file:
        info = tarfile.TarInfo("CaliforniaHousing/cal_housing.data")
        info.size = len(statlib())
        file.addfile(info, io.BytesIO(statlib()))
    asked = []
    monkeypatch.setattr(keras.utils, "get_file", lambda name, origin, file_hash: asked.append((origin, file_hash)) or str(archive))
    x, y = tables.california_housing(None)
    assert asked == [(theirs.ARCHIVE.url, theirs.ARCHIVE.checksum)]
    assert np.array_equal(x[:, 5], HOUSES[:, 5] / HOUSES[:, 6]) and np.array_equal(y, HOUSES[:, 8] / 100_000)


@pytest.mark.parametrize("name", ["california_housing", "heart_disease"])
def test_offline_one_sentence_says_which_files_belong_where(name, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise Exception("URL fetch failure on https://example.org: None -- no route to host")

    monkeypatch.delenv("TAPELOOPS_DATA", raising=False)
    monkeypatch.setattr(keras.utils, "get_file", offline)
    load = tables.heart_disease if name == "heart_disease" else lambda root: tables.california_housing(files.data_folder(root))
    with pytest.raises(InputError, match=rf"could not be downloaded .*put .*\.data or .*\.csv in a folder {name}/ below --data_dir"):
        load(None)
    with pytest.raises(InputError, match=str(tmp_path / name)):
        load(tmp_path)


def test_a_damaged_file_is_named(housing):
    path = housing / "california_housing" / "cal_housing.data"
    path.write_bytes(path.read_bytes().replace(b"452600", b"452601"))
    with pytest.raises(InputError, match="cal_housing.data is damaged"):
        datasets.load("california_housing", data_dir=housing)


def test_patients_are_read_with_what_is_missing(heart):
    table = tables.heart_disease(heart)
    assert list(table.columns) == HEADER.split(",")[:-1]
    assert table.target.tolist() == [0, 1, 0, 1]  # 1 to 4 are all disease
    assert table.columns["thal"].tolist() == ["fixed", "normal", "reversible", ""]
    assert table.columns["age"].tolist() == [63, 67, 38, 58] and table.columns["oldpeak"].dtype == np.float32
    assert np.isnan(table.columns["ca"]).tolist() == [False, False, True, False]
    assert "2 values missing" in table.description


def test_both_forms_of_the_heart_data_give_the_same_table(heart, tmp_path):
    original = tables.heart_disease(heart)
    (heart / "heart_disease" / "heart.csv").write_text(IN_WORDS)
    (heart / "heart_disease" / "processed.cleveland.data").unlink()
    in_words = tables.heart_disease(heart)
    for name, column in original.columns.items():
        np.testing.assert_array_equal(column, in_words.columns[name])
    assert np.array_equal(original.target, in_words.target)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (IN_WORDS.replace("thalach", "heart rate"), "has the header"),
        (IN_WORDS.replace("67,1,4", "67,1"), "line 3 has 13 values; expected 14"),
        (IN_WORDS.replace("160", "high"), "could not convert string to float: 'high'"),
        (HEADER, "no patients"),
    ],
)
def test_a_heart_csv_that_cannot_be_used_is_named(content, said, tmp_path):
    (tmp_path / "heart_disease").mkdir()
    (tmp_path / "heart_disease" / "heart.csv").write_text(content)
    with pytest.raises(InputError, match=f"heart.csv.*{said}"):
        tables.heart_disease(tmp_path)


def test_columns_cannot_be_changed_by_accident(heart):
    with pytest.raises(ValueError, match="read-only"):
        tables.heart_disease(heart).columns["age"][0] = 1


_DATA = os.environ.get("TAPELOOPS_DATA")


@pytest.mark.skipif(
    not _DATA or not (pathlib.Path(_DATA) / "california_housing" / "cal_housing.data").exists(), reason="needs the data in $TAPELOOPS_DATA"
)
def test_the_official_houses_have_the_published_statistics():
    """Mean and standard deviation as in the description that scikit-learn ships, and the target's mean of 2.0686."""
    x, y = tables.california_housing(files.data_folder(None))
    assert x.shape == (20640, 8) and y.mean() == pytest.approx(2.068558, abs=1e-6)
    assert x.mean(axis=0) == pytest.approx([3.870671, 28.639486, 5.429000, 1.096675, 1425.476744, 3.070655, 35.631861, -119.569704])
