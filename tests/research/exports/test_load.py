"""Loading a model runs no code that its file brings, and what is no model is named."""

from __future__ import annotations

import json
import pickle
import zipfile

import keras
import numpy as np
import pytest

from research.exports import fresh_process
from research.exports.load import load
from research.study import InputError


@pytest.mark.parametrize("ending", ["keras", "h5", "json"])
def test_a_file_with_a_lambda_layer_is_refused_with_one_sentence(tmp_path, ending):
    lambda_model = keras.Sequential([keras.Input([2]), keras.layers.Lambda(lambda x: x + 1, name="plus"), keras.layers.Dense(1)])
    path = tmp_path / f"model.{ending}"
    path.write_text(lambda_model.to_json()) if ending == "json" else lambda_model.save(path)
    with pytest.raises(InputError, match="Lambda layer: loading it would run Python code") as refusal:
        load(path)
    assert "\n" not in str(refusal.value)


def test_a_file_cannot_name_a_function_to_be_called(tmp_path):
    path, called = tmp_path / "model.json", tmp_path / "called"
    path.write_text(json.dumps({"module": "os", "class_name": "system", "config": {"command": f"touch {called}"}, "registered_name": None}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load(path)
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
        fresh_process._read(str(tmp_path / "given.npz"))
    for name in ("model.keras", "model.h5", "model.json"):
        (tmp_path / name).write_bytes(pickle.dumps(_Trap(str(called))))
        with pytest.raises(InputError):
            load(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("config.json", keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).to_json())
        archive.writestr("metadata.json", json.dumps({"keras_version": keras.__version__}))
        archive.write(tmp_path / "given.npz", "model.weights.npz")
    with pytest.raises(InputError):
        load(tmp_path / "model.keras")
    assert not called.exists()


@pytest.mark.parametrize(
    ("name", "said"), [("none.keras", "There is no file"), ("model.txt", "none of the endings"), ("layer.json", "holds a Dense, no model")]
)
def test_what_is_no_model_is_named(tmp_path, name, said):
    (tmp_path / "model.txt").write_text("")
    (tmp_path / "layer.json").write_text(json.dumps(keras.saving.serialize_keras_object(keras.layers.Dense(1))))
    with pytest.raises(InputError, match=said):
        load(tmp_path / name)
