"""Trained models as files, in every form that Keras and TensorFlow have.

    weights        weights.weights.h5     values by layer: for a model that code or `architecture.json` makes
    checkpoint     checkpoint/weights     the same as a TensorFlow checkpoint: `tf.train.Checkpoint(variables=model.weights)`
    architecture   architecture.json      layers and how they are connected, no values
    keras          model.keras            both, and the optimizer
    h5             model.h5               both, in Keras's older form
    saved_model    saved_model/           a program without Python: signature `serving_default`, inputs as they are stored

`research.exports.check` reads each of them again in a fresh process; `research.exports.load` is the safe way back. To go on with training
none of them will do: that takes the whole state of the run, which `scripts/train.py --resume` reads from the workdir.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

from research.exports.inputs import prepared, specs_of
from research.study import InputError, Study

__all__ = ["FORMS", "NotPossible", "write"]


class NotPossible(Exception):
    """A model cannot be written in a form. The message says why, in a sentence."""


def write(study: Study, folder: str | os.PathLike[str], forms: Iterable[str]) -> dict[str, pathlib.Path | NotPossible]:
    """Writes a study's model; what is there already is replaced.

    Args:
        study: its model has the weights to write; its `preprocessing` goes into the SavedModel.
        folder: is made if it is not there.
        forms: names in `FORMS`.

    Returns:
        Form -> what was written, or why it could not be.

    Raises:
        InputError: for a form that does not exist, or a folder that cannot be written.
    """
    forms, folder = list(forms), pathlib.Path(folder)
    if unknown := [form for form in forms if form not in FORMS]:
        raise InputError(f"There is no form {unknown[0]!r} to export to; choose from {', '.join(FORMS)}.")
    written: dict[str, pathlib.Path | NotPossible] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form in forms:
            file, save = FORMS[form]
            try:
                save(study, folder / file)
                written[form] = folder / file
            except NotPossible as reason:
                written[form] = reason
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}).") from error
    return written


def _save_weights(study: Study, path: pathlib.Path) -> None:
    study.model.save_weights(path)


def _save_checkpoint(study: Study, path: pathlib.Path) -> None:
    # A list of variables: the names that a whole model would give them leave out layers that are held in lists.
    tf.train.Checkpoint(variables=[v.value for v in study.model.weights]).write(str(path))


def _save_architecture(study: Study, path: pathlib.Path) -> None:
    _refuse_code(study.model)
    try:
        described = json.loads(study.model.to_json())
        # How it was trained, which may name functions that no file can hold.
        described.pop("compile_config", None)
        path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    except (NotImplementedError, TypeError, ValueError) as error:
        raise NotPossible(f"{type(study.model).__name__} cannot be described without its code ({_first_line(error)})") from error


def _save_whole(study: Study, path: pathlib.Path) -> None:
    _refuse_code(study.model)
    try:
        study.model.save(path)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise NotPossible(f"{type(study.model).__name__} cannot be saved in this form ({_first_line(error)})") from error


def _save_program(study: Study, path: pathlib.Path) -> None:
    model, specs = study.model, specs_of(study)

    def serve(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = prepared(study, keras.tree.pack_sequence_as(specs, list(inputs)))
        outputs = keras.tree.flatten(model(x, training=False))
        return {"predictions" if len(outputs) == 1 else f"predictions_{i}": output for i, output in enumerate(outputs)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    # Tables of words in the preprocessing have to be found from one object; its layers by themselves need not be built.
    holder = tf.Module()
    holder.parts = [part for part in getattr(study.preprocessing, "__dict__", {}).values() if isinstance(part, keras.layers.Layer)]
    archive.track(holder)
    archive.add_endpoint("serving_default", serve, keras.tree.flatten(specs))
    if path.exists():
        shutil.rmtree(path)
    archive.write_out(str(path), verbose=False)


def _refuse_code(model: keras.Model) -> None:
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Lambda):
            raise NotPossible(f"nobody could load it safely, for the Lambda layer {layer.name!r} is Python code; make it a layer class")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


#: Form -> what it is called in the folder, and how it is written.
FORMS: dict[str, tuple[str, Callable[[Study, pathlib.Path], None]]] = {
    "weights": ("weights.weights.h5", _save_weights),
    "checkpoint": ("checkpoint/weights", _save_checkpoint),
    "architecture": ("architecture.json", _save_architecture),
    "keras": ("model.keras", _save_whole),
    "h5": ("model.h5", _save_whole),
    "saved_model": ("saved_model", _save_program),
}
