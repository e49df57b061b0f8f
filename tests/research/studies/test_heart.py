"""The heart study: gaps filled from training rows alone, each kind of column encoded as it should be, every patient tested once."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics, preprocessing

import loops
from research import runner, study
from research.configs import heart as config_file
from research.data import tables
from research.studies import heart
from research.study import InputError

ALL = heart.KINDS
FROM_FILES = tables.heart_disease


def config(**changes):
    made = config_file.get_config()
    made.update({"epochs": 2, "folds": 2, "hidden": (8,), **changes})
    return made


@pytest.fixture(scope="module")
def patients():
    """90 made-up patients; disease follows from `cp` and `thal`, some values are missing."""
    rng = np.random.RandomState(0)
    n = 90
    columns = {name: rng.normal(50, 10, n).astype(np.float32) for name in heart._NUMERIC}
    columns |= {name: rng.randint(0, 3, n).astype(np.float32) for name in heart._CATEGORIES}
    columns["thal"] = np.array(["fixed", "normal", "reversible"])[rng.randint(0, 3, n)]
    target = ((columns["cp"] == 2) | (columns["thal"] == "reversible")).astype(np.int32)
    columns["ca"][[3, 40]] = np.nan
    columns["thal"][[5, 60]] = ""
    table = tables.Table(columns, target, ("healthy", "ill"), "Made up.")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tables, "heart_disease", lambda data_dir=None: table)
        yield table


@pytest.fixture(scope="module")
def encoder(patients):
    """Adapted to the training rows of the first of two folds."""
    return heart.Encoder(patients.columns, heart.folds(patients.target, 2, 0)[0][0], ALL, crossing=64)


def test_gaps_are_filled_from_the_training_rows_alone(patients, encoder):
    rows = heart.folds(patients.target, 2, 0)[0][0]
    filled = {name: np.asarray(values) for name, values in encoder.inputs(patients.columns).items()}
    assert filled["ca"][3] == filled["ca"][40] == np.float32(np.nanmedian(patients.columns["ca"][rows]))
    assert filled["ca"][40] != np.float32(np.nanmedian(patients.columns["ca"]))
    assert np.flatnonzero(filled["ca_missing"]).tolist() == [3, 40] and "age_missing" not in filled
    assert filled["thal"][[5, 60]].tolist() == [b"missing", b"missing"] and filled["cp"].dtype == np.int32
    known = ~np.isnan(patients.columns["ca"])
    np.testing.assert_array_equal(filled["ca"][known], patients.columns["ca"][known])


def test_each_kind_of_column_is_encoded_as_its_formula_says(patients, encoder):
    rows = heart.folds(patients.target, 2, 0)[0][0]
    raw = encoder.inputs(patients.columns)
    encoded = {name: np.asarray(values) for name, values in encoder(patients.columns).items()}

    chol = patients.columns["chol"][:, None]
    np.testing.assert_allclose(encoded["chol"], preprocessing.StandardScaler().fit(chol[rows]).transform(chol), atol=1e-4)
    assert (encoded["cp"].sum(1) == 1).all() and encoded["cp"].shape == (90, 4)  # three values that occur, and one place for others
    assert len({tuple(row) for row in encoded["cp"]}) == 3
    groups = encoded["age_group"].argmax(1)
    assert encoded["age_group"].shape[1] == 10 and (np.diff(groups[np.argsort(patients.columns["age"])]) >= 0).all()
    words = [word.decode() for word in raw["thal"].numpy()]
    vocabulary = encoder.space.preprocessors["thal_index"].get_vocabulary()
    assert {"fixed", "normal", "reversible"} < set(vocabulary)
    assert [vocabulary[i] for i in encoded["thal_index"][:, 0]] == [word if word in vocabulary else "[UNK]" for word in words]
    crossed = encoded["age_group_X_thal"]
    assert crossed.shape == (90, 64) and (crossed.sum(1) == 1).all()
    pairs: dict = {}
    for group, word, place in zip(groups, words, crossed.argmax(1), strict=True):
        assert pairs.setdefault((group, word), place) == place
    assert len(set(pairs.values())) > 5


def test_a_pipeline_encodes_as_arrays_are_encoded(patients, encoder):
    whole = encoder(patients.columns)
    batches = list(tf.data.Dataset.from_tensor_slices(dict(patients.columns)).batch(30).map(encoder))
    for name, values in whole.items():
        np.testing.assert_array_equal(tf.concat([batch[name] for batch in batches], 0), values)


def test_every_patient_is_tested_once_and_no_row_is_in_two_parts(patients):
    made = heart.folds(patients.target, 5, 0)
    assert sorted(np.concatenate([test for _, _, test in made])) == list(range(90))
    for train, val, test in made:
        assert sorted(np.concatenate([train, val, test])) == list(range(90))
        for part in (train, val, test):
            assert abs(patients.target[part].mean() - patients.target.mean()) < 0.06


def test_folds_are_trained_and_scored_as_scikit_learn_has_it(patients, tmp_path, capsys):
    settings = config(epochs=8, batch_size=64, columns=("indicator", "embedding"), optimizer={"name": "adam", "learning_rate": 0.1})
    runs = runner.train(study.build(settings), settings, workdir=tmp_path / "run", compile="eager")
    printed = capsys.readouterr().out
    every = np.empty(90)
    for (name, run), (_, _, test) in zip(runs.items(), heart.folds(patients.target, 2, 0), strict=True):
        every[test] = loops.PredictLoop(run.study.task, compile="eager").run(run.study.test)[:, 0]
        right = metrics.accuracy_score(patients.target[test], every[test] > 0.5)
        auc = metrics.roc_auc_score(patients.target[test], every[test])
        assert re.search(rf"^{name} +{right:.4f}  {auc:.4f}$", printed, re.MULTILINE)
        assert run.test["accuracy"] == pytest.approx(right, abs=1e-6) and run.test["auc"] == pytest.approx(auc, abs=0.02)
    assert f"{metrics.roc_auc_score(patients.target, every):.4f}" in printed
    assert metrics.accuracy_score(patients.target, every > 0.5) > 0.85
    assert (tmp_path / "run" / "plots" / "roc.png").exists()


def test_the_table_as_it_is_stored_can_be_given_to_what_is_exported(patients):
    made = study.build(config()).parts["fold1"]({})
    rows = heart.folds(patients.target, 2, 0)[0][2]
    np.testing.assert_array_equal(made.examples["ca"], patients.columns["ca"][rows])
    x, _ = next(iter(made.test.blocks(loops.Position()))).tensors
    for name, values in made.preprocessing(made.examples).items():
        np.testing.assert_array_equal(values[:16], x[name][0][:16])


@pytest.mark.parametrize("kinds", [("numeric",), ("embedding",), ("indicator", "discretized")])
def test_kinds_of_columns_can_be_left_out(patients, kinds):
    made = study.build(config(columns=kinds)).parts["fold1"]({})
    x, _ = next(iter(made.test.blocks(loops.Position()))).tensors
    assert np.isfinite(made.model(tf.nest.map_structure(lambda stacked: stacked[0], x))).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"columns": ("numbers",)}, "numeric, indicator"),
        ({"columns": ()}, "one or more"),
        ({"columns": ("crossed", "numeric")}, "discretized"),
        ({"folds": 1}, "config.folds is 1"),
        ({"folds": 80}, "config.folds is 80"),
    ],
)
def test_what_cannot_be_used_is_named(patients, changes, said):
    with pytest.raises(InputError, match=said):
        study.build(config(**changes))


def test_without_data_one_sentence_says_what_belongs_where(tmp_path, monkeypatch):
    import keras

    def offline(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(tables, "heart_disease", FROM_FILES)
    monkeypatch.setattr(keras.utils, "get_file", offline)
    with pytest.raises(InputError, match="processed.cleveland.data or heart.csv"):
        study.build(config(), data_dir=tmp_path)
