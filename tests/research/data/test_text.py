"""A text is read once, in streams that go on from batch to batch, and a file that is not the original is named."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from research.data import text
from research.study import InputError


@pytest.mark.parametrize(("n", "count", "length"), [(9, 2, 3), (100, 1, 7), (101, 10, 10), (257, 16, 5), (8, 7, 1), (50, 3, 100)])
def test_every_character_is_the_target_of_one_place_and_follows_the_one_before(n, count, length):
    numbers = np.arange(n)
    x, y, begins = text.streams(numbers, count=count, length=length)
    assert x.shape == y.shape == (len(begins), length) and len(begins) % count == 0
    assert sorted(y[y >= 0]) == list(range(1, n))
    assert np.array_equal(x[y >= 0] + 1, y[y >= 0])
    assert begins.tolist() == [True] * count + [False] * (len(begins) - count)


@pytest.mark.parametrize(("n", "count", "length"), [(100, 1, 7), (101, 10, 10), (257, 16, 5)])
def test_a_stream_goes_on_in_the_same_row_of_the_next_batch(n, count, length):
    x, y, _ = text.streams(np.arange(n), count=count, length=length)
    for stream in range(count):
        read = [x[k][y[k] >= 0] for k in range(stream, len(x), count)]
        assert np.array_equal(np.diff(np.concatenate(read)), np.ones(sum(map(len, read)) - 1))


def test_the_parts_make_up_the_text():
    corpus = text.load("handbook")
    whole = np.concatenate([corpus.train, corpus.val, corpus.test])
    assert len(corpus.train) == len(whole) * 90 // 100 and abs(len(corpus.val) - len(corpus.test)) <= 1
    assert np.array_equal(corpus.encode(corpus.decode(whole)), whole)
    assert set(corpus.decode(whole)) == set(corpus.vocabulary)


def test_a_file_that_is_not_the_original_is_named(tmp_path):
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text("Now is the winter")
    with pytest.raises(InputError, match=r"input.txt is damaged or not the original file \(md5"):
        text.load("tinyshakespeare", data_dir=tmp_path)


def test_without_the_file_it_is_downloaded_and_checked(tmp_path, monkeypatch):
    (tmp_path / "other.txt").write_text("Now is the winter")
    asked = []
    monkeypatch.setattr(keras.utils, "get_file", lambda name, origin, file_hash: asked.append(origin) or str(tmp_path / "other.txt"))
    with pytest.raises(InputError, match="other.txt is damaged"):
        text.load("tinyshakespeare", data_dir=tmp_path)
    assert asked == ["https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"]


def test_offline_it_says_what_would_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.delenv("TAPELOOPS_DATA", raising=False)
    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(InputError, match="could not be downloaded .*put input.txt in a folder tinyshakespeare/ below --data_dir"):
        text.load("tinyshakespeare")
    with pytest.raises(InputError, match=f"put input.txt in {tmp_path / 'tinyshakespeare'}"):
        text.load("tinyshakespeare", data_dir=tmp_path)
