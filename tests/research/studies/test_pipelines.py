"""The pipelines study: what is written as CSV, TFRecord and PNG files comes back bit for bit, in the same batches, and trains the same."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import tensorflow as tf

import loops
from research import runner, study
from research.configs import pipelines as config_file
from research.data import record_files, tables
from research.studies import heart, pipelines
from research.study import InputError


def config(tmp_path, **changes):
    made = config_file.get_config()
    made.update({"files": str(tmp_path / "files"), "epochs": 1, "hidden": (16,), **changes})
    return made


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small part of the digits, written once."""
    whole = pipelines.examples_of("digits", hidden=(8,))
    rows = {"train": slice(0, 90), "val": slice(0, 20), "test": slice(0, 20)}
    columns = {part: {"image": whole.columns[part]["image"][at]} for part, at in rows.items()}
    target = {part: whole.target[part][at] for part, at in rows.items()}
    few = pipelines.Examples(columns, target, whole.sources, whole.encode, whole.make_model, whole.loss, "Few digits.")
    folder = tmp_path_factory.mktemp("digits")
    pipelines.write_sources(folder, few)
    return few, folder


@pytest.fixture
def patients(monkeypatch):
    """Made-up patients with gaps, numbers that have no short decimal form, and words."""
    rng = np.random.RandomState(0)
    columns = {name: (rng.normal(50, 10, 60) / 3).astype(np.float32) for name in heart._NUMERIC}
    columns |= {name: rng.randint(0, 3, 60).astype(np.float32) for name in heart._CATEGORIES}
    columns["thal"] = np.array(["fixed", "normal", "reversible", ""])[rng.randint(0, 4, 60)]
    columns["ca"][::7] = np.nan
    table = tables.Table(columns, rng.randint(0, 2, 60).astype(np.int32), ("healthy", "ill"), "Made up.")
    monkeypatch.setattr(tables, "heart_disease", lambda data_dir=None: table)
    return table


def passes(dataset: tf.data.Dataset, count: int = 1) -> list:
    return [batch for _ in range(count) for batch in dataset.as_numpy_iterator()]


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in tf.nest.flatten(tree)]


def test_csv_tfrecord_and_images_give_equal_batches_in_every_pass(digits):
    few, folder = digits
    read = {
        source: passes(record_files.batches(pipelines.open_source(source, "train", folder, few.specs), 32, shuffle=90, seed=5), 2)
        for source in few.sources
    }
    assert set(read) == {"csv", "tfrecord", "images"}
    assert [len(target) for _, target in read["csv"]] == [32, 32, 26] * 2
    for source in ("tfrecord", "images"):
        for one, other in zip(read["csv"], read[source], strict=True):
            assert tf.nest.map_structure(lambda a: (a.dtype, a.shape), one) == tf.nest.map_structure(lambda a: (a.dtype, a.shape), other)
            assert bits(one) == bits(other)
    assert bits(read["csv"][0]) != bits(read["csv"][3])


@pytest.mark.parametrize("source", ["csv", "tfrecord", "images"])
def test_what_is_read_is_what_was_written(digits, source):
    few, folder = digits
    (columns, target) = passes(record_files.batches(pipelines.open_source(source, "val", folder, few.specs), 20))[0]
    assert bits(columns["image"]) == bits(few.columns["val"]["image"]) and bits(target) == bits(few.target["val"])


@pytest.mark.parametrize("source", ["csv", "tfrecord"])
def test_words_gaps_and_numbers_without_a_short_form_come_back_bit_for_bit(patients, tmp_path, source):
    examples = pipelines.examples_of("heart_disease", hidden=(8,))
    pipelines.write_sources(tmp_path, examples)
    columns, target = passes(record_files.batches(pipelines.open_source(source, "train", tmp_path, examples.specs), 1_000))[0]
    for name, values in examples.columns["train"].items():
        expected = np.char.encode(values) if name == "thal" else values
        np.testing.assert_array_equal(columns[name], expected)
    assert np.isnan(columns["ca"]).any() and b"" in columns["thal"]
    assert np.array_equal(target, examples.target["train"])


def test_a_csv_file_is_a_table_that_others_can_read(digits):
    few, folder = digits
    rows = list(csv.DictReader((folder / "val.csv").read_text().splitlines()))
    assert list(rows[0])[:2] == ["image_0", "image_1"] and len(rows[0]) == 65
    assert np.array_equal([[float(row[f"image_{i}"]) for i in range(64)] for row in rows], few.columns["val"]["image"].reshape(-1, 64))


def test_files_are_written_anew_only_if_the_data_is_another(digits, tmp_path):
    few, _ = digits
    pipelines.write_sources(tmp_path, few)
    (tmp_path / "val.csv").write_text("left alone")
    pipelines.write_sources(tmp_path, few)
    assert (tmp_path / "val.csv").read_text() == "left alone"
    other = {**few.target, "val": few.target["val"][::-1]}
    pipelines.write_sources(
        tmp_path, pipelines.Examples(few.columns, other, few.sources, few.encode, few.make_model, few.loss, few.description)
    )
    assert (tmp_path / "val.csv").read_text().startswith("image_0")


def test_training_from_each_source_ends_in_the_same_weights(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipelines, "examples_of", lambda *_, **__: digits[0])
    settings = config(tmp_path)
    runs = runner.train(study.build(settings), settings, workdir=tmp_path / "run", compile="eager")
    weights = [run.study.model.get_weights() for run in runs.values()]
    assert len(weights) == 3 and bits(weights[0]) == bits(weights[1]) == bits(weights[2])
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "The 3 training batches of each source are the same, bit for bit; the weights after training are the same, bit for bit" in printed
    )


def test_patients_train_from_both_sources(patients, tmp_path):
    made = study.build(config(tmp_path, dataset="heart_disease"))
    ended = []
    for source in ("csv", "tfrecord"):
        part = made.make(source, {}, seed=0)
        loops.TrainLoop(part.task, part.train, compile="eager").run(epochs=1)
        ended.append(bits(part.model.get_weights()))
    assert ended[0] == ended[1]


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(InputError, match="digits or heart_disease"):
        study.build(config(tmp_path, dataset="wine"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        study.build(config(tmp_path, files=str(tmp_path / "file")))
    with pytest.raises(InputError, match="no file"):
        pipelines.open_source("csv", "train", tmp_path, {})
    with pytest.raises(InputError, match="no images"):
        pipelines.open_source("images", "train", tmp_path, {"image": tf.TensorSpec([8, 8], tf.float32)})
