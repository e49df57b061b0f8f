"""The data sets are the same everywhere, their parts do not overlap, and what cannot be had is said in a sentence."""

from __future__ import annotations

import gzip
import hashlib

import keras
import numpy as np
import pytest
from sklearn import preprocessing

from research.data import datasets
from research.study import InputError


@pytest.fixture
def fake_images(tmp_path, monkeypatch):
    """A data_dir with small files in the original format, and their checksums in place of the published ones."""
    rng = np.random.RandomState(0)
    content, folder = {}, tmp_path / "fashion_mnist"
    folder.mkdir()
    for stem, count in (("train", 5_010), ("t10k", 7)):
        content[f"{stem}-images-idx3-ubyte.gz"] = rng.randint(0, 256, (count, 28, 28), np.uint8)
        content[f"{stem}-labels-idx1-ubyte.gz"] = rng.randint(0, 10, count).astype(np.uint8)
    sums = {}
    for name, array in content.items():
        header = bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, ">i4").tobytes()
        packed = gzip.compress(header + array.tobytes(), compresslevel=1)
        (folder / name).write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()
    order = list(datasets._MD5["fashion_mnist"])
    monkeypatch.setitem(datasets._MD5, "fashion_mnist", {name: sums[name] for name in order})
    return tmp_path, content


@pytest.mark.parametrize("name", ["digits", "diabetes", "breast_cancer", "wine"])
def test_bundled_data_is_split_into_parts_that_cover_everything_once(name):
    import sklearn.datasets

    data = datasets.load(name)
    whole = getattr(sklearn.datasets, f"load_{name}")()
    rows = np.concatenate([split.x.reshape(len(split.x), -1) for split in (data.train, data.val, data.test)])
    expected = np.asarray(whole.data, np.float32)
    assert np.array_equal(np.sort(rows, axis=0), np.sort(expected, axis=0))
    assert len(data.train.x) / len(expected) == pytest.approx(0.7, abs=0.01)
    assert len(data.val.x) == pytest.approx(len(data.test.x), abs=3)
    for split in (data.train, data.val, data.test):
        assert len(split.x) == len(split.y) and split.x.dtype == np.float32


def test_every_class_has_its_share_in_every_part():
    data = datasets.load("digits")
    for split in (data.val, data.test):
        shares = np.bincount(split.y, minlength=10) / len(split.y)
        assert np.abs(shares - np.bincount(data.train.y) / len(data.train.y)).max() < 0.01


def test_the_split_of_the_digits_never_changes():
    digits = datasets.load("digits")
    assert hashlib.md5(digits.test.x.tobytes() + digits.test.y.tobytes()).hexdigest() == "0626c0f7d6ca1d162a3edecd9efdae09"


def test_images_that_are_validated_on_are_the_first_5000_training_images(fake_images):
    data_dir, content = fake_images
    data = datasets.load("fashion_mnist", data_dir=data_dir)
    images, labels = content["train-images-idx3-ubyte.gz"], content["train-labels-idx1-ubyte.gz"]
    assert np.array_equal(data.val.x, images[:5_000]) and np.array_equal(data.val.y, labels[:5_000])
    assert np.array_equal(data.train.x, images[5_000:]) and np.array_equal(data.train.y, labels[5_000:])
    assert np.array_equal(data.test.x, content["t10k-images-idx3-ubyte.gz"])
    assert data.train.x.dtype == np.float32 and data.train.y.dtype == np.int32


def test_the_data_dir_may_come_from_the_environment(fake_images, monkeypatch):
    monkeypatch.setenv("TAPELOOPS_DATA", str(fake_images[0]))
    assert len(datasets.load("fashion_mnist").train.x) == 10


def test_normalisation_is_fitted_on_the_training_part_over_all_pixels(fake_images):
    raw = datasets.load("fashion_mnist", data_dir=fake_images[0])
    scaler = preprocessing.StandardScaler().fit(raw.train.x.reshape(-1, 1))
    by_sklearn = scaler.transform(raw.test.x.reshape(-1, 1)).reshape(raw.test.x.shape)
    np.testing.assert_allclose(datasets.normalize(raw, "zscore").test.x, by_sklearn, atol=1e-6)
    span = raw.train.x.max() - raw.train.x.min()
    np.testing.assert_array_equal(datasets.normalize(raw, "minmax").val.x, (raw.val.x - raw.train.x.min()) / span)
    np.testing.assert_array_equal(datasets.normalize(raw, "raw").val.x, raw.val.x)


def test_tables_are_normalised_column_by_column():
    raw = datasets.load("breast_cancer")
    by_sklearn = preprocessing.StandardScaler().fit(raw.train.x.astype(np.float64)).transform(raw.test.x)
    np.testing.assert_allclose(datasets.normalize(raw, "zscore").test.x, by_sklearn, atol=1e-4)


def test_a_column_that_never_changes_becomes_zero():
    constant = datasets.Split(np.ones((4, 2), np.float32), np.zeros(4, np.int32))
    data = datasets.Dataset("constant", constant, constant, constant, ("a",), "")
    for how in ("minmax", "zscore"):
        assert np.array_equal(datasets.normalize(data, how).val.x, np.zeros((4, 2)))


def test_arrays_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        datasets.load("wine").train.x[0] = 0


def test_a_damaged_file_is_named(fake_images):
    path = fake_images[0] / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte.gz is damaged"):
        datasets.load("fashion_mnist", data_dir=fake_images[0])


def test_a_missing_file_is_named(fake_images):
    (fake_images[0] / "fashion_mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte.gz cannot be read"):
        datasets.load("fashion_mnist", data_dir=fake_images[0])


def test_without_files_keras_is_asked(tmp_path, monkeypatch):
    x, y = np.zeros((5_001, 28, 28), np.uint8), np.arange(5_001, dtype=np.uint8)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: ((x, y), (x[:2], y[:2])))
    data = datasets.load("mnist", data_dir=tmp_path)
    assert len(data.train.x) == 1 and len(data.test.x) == 2


def test_offline_one_sentence_says_which_files_belong_where(tmp_path, monkeypatch):
    def offline():
        raise Exception("URL fetch failure on https://example.org: None -- no route to host")

    monkeypatch.delenv("TAPELOOPS_DATA", raising=False)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", offline)
    with pytest.raises(InputError, match=r"could not be downloaded .*put train-images-idx3-ubyte.gz.*--data_dir"):
        datasets.load("mnist")
    with pytest.raises(InputError, match=str(tmp_path / "mnist")):
        datasets.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(("call", "said"), [({"name": "minst"}, "fashion_mnist"), ({"name": "wine", "normalization": "z"}, "zscore")])
def test_an_unknown_name_is_answered_with_the_known_ones(call, said):
    with pytest.raises(InputError, match=said):
        datasets.load(**call)


def test_a_data_dir_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        datasets.load("mnist", data_dir=tmp_path / "nowhere")


def test_optical_digits_come_in_their_own_training_and_test_set(tmp_path, monkeypatch):
    rng, sums = np.random.RandomState(0), {}
    (tmp_path / "optdigits").mkdir()
    rows = {"optdigits.tra": rng.randint(0, 17, (580, 65)), "optdigits.tes": rng.randint(0, 17, (3, 65))}
    for name, table in rows.items():
        content = "\n".join(",".join(map(str, row)) for row in table).encode()
        (tmp_path / "optdigits" / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(datasets._MD5, "optdigits", sums)
    data = datasets.load("optdigits", data_dir=tmp_path)
    assert np.array_equal(data.train.x.reshape(-1, 64), rows["optdigits.tra"][573:, :64])
    assert np.array_equal(data.val.y, rows["optdigits.tra"][:573, 64])
    assert np.array_equal(data.test.x, rows["optdigits.tes"][:, :64].reshape(3, 8, 8)) and data.test.y.dtype == np.int32


def test_tables_name_their_columns():
    assert datasets.load("diabetes").feature_names[:3] == ("age", "sex", "bmi") and not datasets.load("digits").feature_names


def test_what_normalised_the_inputs_can_be_done_and_undone():
    raw, once = datasets.load("wine"), datasets.load("wine", normalization="zscore")
    assert np.array_equal(once.scaling(raw.test.x), once.test.x)
    np.testing.assert_allclose(once.scaling.inverse(once.test.x), raw.test.x, rtol=1e-5)
    twice = datasets.normalize(once, "minmax")
    np.testing.assert_allclose(twice.scaling(raw.test.x), twice.test.x, rtol=1e-4, atol=1e-5)
