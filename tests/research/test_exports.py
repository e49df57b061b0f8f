"""An exported model predicts what the trained one does, wherever it is loaded, and loading runs no code that a file brings."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import pickle
import re
import subprocess
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from ml_collections import config_dict

from loops import Position
from research import datasets, export_check, exports, runner, study
from research.configs import (
    autodiff,
    callbacks,
    char_gru,
    classification,
    custom_layer,
    custom_losses,
    functional_graphs,
    imbalanced,
    mnist_tape,
    partial_updates,
    transfer,
)
from research.study import InputError
from scripts import export
from tests.scripts.test_train import run


def small(module=classification, **changes) -> config_dict.ConfigDict:
    made = module.get_config()
    made.update_from_flattened_dict({"epochs": 1, **changes})
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained run, and what the program said when it exported it."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    keras.utils.clear_session(free_memory=False)
    settings = small(hidden=(20,), **{"optimizer.name": "adam"})
    runner.train(study.build(settings), settings, workdir=workdir)
    return workdir, *run(export, f"--workdir={workdir}")


@pytest.fixture(scope="module")
def lambda_model():
    return keras.Sequential([keras.Input([2]), keras.layers.Lambda(lambda x: x + 1, name="plus"), keras.layers.Dense(1)])


def with_model(model: keras.Model) -> study.Study:
    """A study of which only the model matters."""
    return dataclasses.replace(study.build(small()), model=model, preprocessing=None)


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
    x = exports.example_inputs(made)
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


@pytest.mark.parametrize(
    ("module", "part", "changes"),
    [
        (callbacks, None, {}),
        (custom_layer, None, {"units": 10}),
        (custom_losses, "subclass", {}),
        (custom_losses, "layer", {}),
        (functional_graphs, "residual-2", {"width": 8}),
        (imbalanced, "tf_data", {}),
        (mnist_tape, None, {}),
        (partial_updates, "policy", {}),
        (transfer, "source-0", {}),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else "").rpartition(".")[2],
)
def test_a_study_of_scaled_inputs_is_served_inputs_as_they_are_stored(module, part, changes, tmp_path):
    settings = small(module, **changes)
    if "normalize" in settings:
        settings.normalize = "zscore"
    built = study.build(settings)
    made = built if part is None else built.make(part, {}, seed=0)
    scaled = next(iter(made.test.blocks(Position()))).tensors[0]
    expected = made.model(tf.nest.map_structure(lambda stacked: stacked[0], scaled))
    raw = exports.example_inputs(made)
    np.testing.assert_allclose(raw, np.rint(raw), atol=1e-5, err_msg="digits are stored as whole numbers")
    assert 15 < raw.max() < 17
    path = exports.write(made, tmp_path, ["saved_model"])["saved_model"]
    served = tf.saved_model.load(str(path)).signatures["serving_default"](inputs=tf.constant(raw))["predictions"]
    np.testing.assert_allclose(served, expected[: len(raw)], rtol=1e-4, atol=1e-5)


def test_exporting_again_replaces_what_is_there(exported, monkeypatch):
    monkeypatch.setattr(exports, "check", lambda study, written, **_: dict.fromkeys(written, 0.0))
    folder = exported[0] / "export"
    before = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    code, output, _ = run(export, f"--workdir={exported[0]}")
    assert code == 0 and {path.relative_to(folder).parts[0] for path in folder.rglob("*")} == before


def test_a_file_that_predicts_otherwise_or_cannot_be_read_is_named(exported, tmp_path):
    made = runner.restore(exported[0])[""]
    written = exports.write(made, tmp_path, ["weights", "keras", "h5"])
    other = keras.models.clone_model(made.model)
    other.save_weights(written["weights"])
    written["keras"].write_bytes(b"no zip")
    found = exports.check(made, written)
    assert "differ" in found["weights"] and "cannot be loaded" in found["keras"] and found["h5"] <= export_check.TOLERANCE


def test_the_process_that_reads_the_saved_model_cannot_import_our_packages(tmp_path):
    export_check.save(tmp_path / "given.npz", [], [])
    order = {"files": {}, "given": str(tmp_path / "given.npz"), "modules": [], "names": [], "isolated": True}
    program = "import sys; sys.path.insert(0, sys.argv[1]); import export_check; export_check.main(); import research"
    folder = pathlib.Path(export_check.__file__).parent
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, folder], input=json.dumps(order), capture_output=True, text=True, check=False
    )
    assert done.stdout == "{}\n" and "import of research halted" in done.stderr


def test_a_model_with_several_inputs_and_outputs_is_served_by_their_names(tmp_path):
    made = study.build(small(char_gru, units=8, embedding=4))
    path = exports.write(made, tmp_path, ["saved_model"])["saved_model"]
    x = exports.example_inputs(made, 3)
    assert [a.shape for a in x] == [(3, 8), (3, 8)] and x[0].dtype == np.int32
    serving = tf.saved_model.load(str(path)).signatures["serving_default"]
    outputs = serving(characters=tf.constant(x[0]), state=tf.constant(x[1]))
    for i, expected in enumerate(made.model([tf.constant(a) for a in x])):
        np.testing.assert_allclose(outputs[f"predictions_{i}"], expected, rtol=1e-5, atol=1e-6)
    assert (
        export_check.compare(
            [np.asarray(t) for t in made.model([tf.constant(a) for a in x])], export_check._serve(str(path), ["characters", "state"], x)
        )
        < 1e-5
    )


class Columns:
    """A preprocessing with a table of words in it, which has to come along."""

    def __init__(self):
        self.lookup = keras.layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")

    def __call__(self, columns):
        return tf.concat([tf.cast(self.lookup(columns["colour"]), tf.float32), columns["weight"][:, None]], -1)


def test_tables_of_the_preprocessing_are_served_too(tmp_path):
    model = keras.Sequential([keras.Input([4]), keras.layers.Dense(2)])
    columns = {"colour": np.array(["green", "blue", "red"]), "weight": np.array([1.0, 2.0, 3.0], "float32")}
    made = dataclasses.replace(with_model(model), preprocessing=Columns(), examples=columns)
    found = exports.check(made, exports.write(made, tmp_path, ["saved_model"]))
    assert found["saved_model"] <= export_check.TOLERANCE
    words = np.array([[0, 0, 1, 1], [1, 0, 0, 2], [0, 1, 0, 3]], "float32")
    serving = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    served = serving(**{name: tf.constant(column) for name, column in columns.items()})["predictions"]
    np.testing.assert_allclose(served, model(words), rtol=1e-5)


def test_a_preprocessing_without_examples_is_refused(tmp_path):
    with pytest.raises(InputError, match="no examples"):
        exports.write(
            dataclasses.replace(with_model(keras.Sequential([keras.Input([4])])), preprocessing=Columns()), tmp_path, ["saved_model"]
        )


def test_every_part_of_a_comparison_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "check", lambda study, written, **_: dict.fromkeys(written, 0.0))
    settings = small(autodiff, hidden=(4,))
    runner.train(study.build(settings), settings, workdir=tmp_path / "run")
    assert run(export, f"--workdir={tmp_path / 'run'}", "--forms=keras", f"--to={tmp_path / 'to'}")[0] == 0
    assert run(export, f"--workdir={tmp_path / 'run' / 'plain'}", "--forms=keras")[0] == 0
    plain, penalized, again = (
        exports.load(path / "model.keras").get_weights()
        for path in (tmp_path / "to" / "plain", tmp_path / "to" / "penalized", tmp_path / "run" / "plain" / "export")
    )
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(plain, penalized, strict=True))


def test_a_lambda_layer_is_exported_as_numbers_and_as_a_program_only(lambda_model, tmp_path):
    written = exports.write(with_model(lambda_model), tmp_path, exports.FORMS)
    refused = {form: str(reason) for form, reason in written.items() if isinstance(reason, exports.NotPossible)}
    assert set(refused) == {"architecture", "keras", "h5"} and all("'plus'" in reason for reason in refused.values())


@pytest.mark.parametrize("ending", ["keras", "h5", "json"])
def test_a_file_with_a_lambda_layer_is_refused_with_one_sentence(lambda_model, tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    path.write_text(lambda_model.to_json()) if ending == "json" else lambda_model.save(path)
    with pytest.raises(InputError, match="Lambda layer: loading it would run Python code") as refusal:
        exports.load(path)
    assert "\n" not in str(refusal.value)


def test_a_file_cannot_name_a_function_to_be_called(tmp_path):
    path, called = tmp_path / "model.json", tmp_path / "called"
    path.write_text(json.dumps({"module": "os", "class_name": "system", "config": {"command": f"touch {called}"}, "registered_name": None}))
    with pytest.raises(InputError, match="cannot be loaded"):
        exports.load(path)
    assert not called.exists()


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_is_unpickled(tmp_path):
    called = tmp_path / "called"
    trap = np.empty(1, object)
    trap[0] = _Trap(str(called))
    np.savez(tmp_path / "given.npz", in0=trap)
    with pytest.raises(ValueError, match="pickle"):
        export_check._read(str(tmp_path / "given.npz"))
    for name in ("model.keras", "model.h5", "model.json"):
        (tmp_path / name).write_bytes(pickle.dumps(_Trap(str(called))))
        with pytest.raises(InputError):
            exports.load(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).to_json())
        archive.writestr("metadata.json", json.dumps({"keras_version": keras.__version__}))
        archive.write(tmp_path / "given.npz", "model.weights.npz")
    with pytest.raises(InputError):
        exports.load(tmp_path / "model.keras")
    assert not called.exists()


@pytest.mark.parametrize(
    ("name", "said"), [("none.keras", "There is no file"), ("model.txt", "none of the endings"), ("layer.json", "holds a Dense, no model")]
)
def test_what_is_no_model_is_named(tmp_path, name, said):
    (tmp_path / "model.txt").write_text("")
    (tmp_path / "layer.json").write_text(json.dumps(keras.saving.serialize_keras_object(keras.layers.Dense(1))))
    with pytest.raises(InputError, match=said):
        exports.load(tmp_path / name)


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
    assert tuple(exports.FORMS) == export._FORMS


def test_what_normalised_the_inputs_can_be_done_and_undone():
    raw, once = datasets.load("wine"), datasets.load("wine", normalization="zscore")
    assert np.array_equal(once.scaling(raw.test.x), once.test.x)
    np.testing.assert_allclose(once.scaling.inverse(once.test.x), raw.test.x, rtol=1e-5)
    twice = datasets.normalize(once, "minmax")
    np.testing.assert_allclose(twice.scaling(raw.test.x), twice.test.x, rtol=1e-4, atol=1e-5)
