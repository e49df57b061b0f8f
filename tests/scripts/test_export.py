"""`export.py` writes the best weights of a run in every form, and fresh processes find the same predictions in them."""

from __future__ import annotations

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from research import runner, study
from research.configs import classification
from research.data import datasets
from research.exports import check
from research.exports.inputs import example_inputs
from research.exports.write import FORMS
from scripts import export
from tests.scripts.programs import run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained run, and what the program said when it exported it."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    keras.utils.clear_session(free_memory=False)
    settings = classification.get_config()
    settings.update_from_flattened_dict({"epochs": 1, "hidden": (20,), "optimizer.name": "adam"})
    runner.train(study.build(settings), settings, workdir=workdir, compile="graph")
    return workdir, *run(export, f"--workdir={workdir}")


def test_every_form_is_read_in_a_fresh_process_and_predicts_the_same(exported):
    _, code, output, errors = exported
    assert code == 0, output + errors
    assert len(re.findall("the same predictions", output)) == 5 and "architecture.json: the same layers" in output


def test_weights_are_read_back_without_a_warning_about_their_optimizer(exported):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.restore(exported[0])


def test_the_forms_can_be_read_by_what_keras_and_tensorflow_have(exported):
    folder, made = exported[0] / "export", runner.restore(exported[0])[""]
    x = example_inputs(made)
    expected = made.model.predict(x, verbose=0)
    described = keras.models.model_from_json((folder / "architecture.json").read_text())
    described.load_weights(folder / "weights.weights.h5")
    restored = keras.models.model_from_json((folder / "architecture.json").read_text())
    tf.train.Checkpoint(variables=[v.value for v in restored.weights]).read(str(folder / "checkpoint" / "weights")).assert_consumed()
    whole, legacy = (keras.models.load_model(folder / name) for name in ("model.keras", "model.h5"))
    for model in (described, restored, whole, legacy):
        np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


def test_the_saved_model_serves_inputs_as_they_are_stored(exported):
    serving = tf.saved_model.load(str(exported[0] / "export" / "saved_model")).signatures["serving_default"]
    raw, normalized = datasets.load("digits").test, datasets.load("digits", normalization="zscore").test
    served = serving(inputs=tf.constant(raw.x))["predictions"].numpy()
    model = runner.restore(exported[0])[""].model
    np.testing.assert_allclose(served, model.predict(normalized.x, verbose=0), rtol=1e-4, atol=1e-6)
    assert not np.allclose(served, serving(inputs=tf.constant(normalized.x))["predictions"].numpy(), atol=1e-2)


def test_exporting_again_replaces_what_is_there(exported, monkeypatch):
    monkeypatch.setattr(check, "check", lambda study, written, **_: dict.fromkeys(written, 0.0))
    folder = exported[0] / "export"
    before = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    code, output, _ = run(export, f"--workdir={exported[0]}")
    assert code == 0 and {path.relative_to(folder).parts[0] for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--workdir"),
        (["--workdir={run}", "--forms=onnx"], "--forms is 'onnx'"),
        (["--workdir={run}", "--forms="], "--forms is ''"),
        (["--workdir={run}", "--format=keras"], "format"),
        (["--workdir={empty}"], "is no workdir"),
        (["--workdir={bare}"], "has not finished an epoch"),
        (["--workdir={run}", "--to={run}/config.json/export"], "cannot be written"),
    ],
)
def test_wrong_flags_and_missing_weights_are_refused_with_one_sentence(exported, tmp_path, arguments, said):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((exported[0] / "config.json").read_text())
    places = {"run": exported[0], "empty": tmp_path, "bare": tmp_path / "bare"}
    code, _, errors = run(export, *(argument.format(**places) for argument in arguments))
    assert code == 2 and said in errors and errors.count("\n") == 1


def test_the_program_names_the_forms_that_there_are():
    assert tuple(FORMS) == export._FORMS
