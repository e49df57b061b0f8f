"""Trained models as files, in every form that Keras and TensorFlow have, and the safe way back.

    weights        weights.weights.h5     values by layer: for a model that code or `architecture.json` makes
    checkpoint     checkpoint/weights     the same as a TensorFlow checkpoint: `tf.train.Checkpoint(variables=model.weights)`
    architecture   architecture.json      layers and how they are connected, no values
    keras          model.keras            both, and the optimizer
    h5             model.h5               both, in Keras's older form
    saved_model    saved_model/           a program without Python: signature `serving_default`, inputs as they are stored

That each can be read again is checked in fresh processes, by `research/export_check.py`. To go on with training none of them will do: that
takes the whole state of the run, which `scripts/train.py --resume` reads from the workdir.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from loops.feeds import Position
from research import export_check
from research.study import InputError, Study

__all__ = ["FORMS", "NotPossible", "check", "example_inputs", "load", "write"]

_PACKAGES = pathlib.Path(__file__).resolve().parent.parent


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


def load(path: str | os.PathLike[str]) -> keras.Model:
    """Reads a model from `.keras`, `.h5` or `.json`, running no code that the file brings.

    Layers of one's own are found if the modules that define them have been imported. (A SavedModel is a program: load one only from
    somebody whose programs you would run.)

    Args:
        path: the file, which need not be trusted.

    Raises:
        InputError: if it is not there, is no model, needs a class that is not known, or holds Python code, as a Lambda layer does.

    Example:
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.keras"
        >>> keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).save(path)
        >>> load(path).count_params()
        3
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        if path.suffix == ".json":
            model = keras.saving.deserialize_keras_object(json.loads(path.read_text(encoding="utf-8")), safe_mode=True)
        elif path.suffix in (".keras", ".h5"):
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        else:
            raise InputError(f"{path} has none of the endings .keras, .h5 and .json.")
    except InputError:
        raise
    except Exception as error:  # whatever a file that somebody made up can bring about
        reason = str(error).strip() or type(error).__name__
        if "lambda" in reason.lower():
            raise InputError(
                f"{path} has a Lambda layer: loading it would run Python code that the file brings, so it is refused."
            ) from error
        raise InputError(f"{path} cannot be loaded as a model ({reason.splitlines()[0][:200].rstrip('.')}).") from error
    if not isinstance(model, keras.Model):
        raise InputError(f"{path} holds a {type(model).__name__}, no model.")
    return model


def example_inputs(study: Study, count: int = 32) -> Any:
    """Inputs for a study, as they are stored: its `examples`; else those of its first test batch, if they fit its model; else random ones.

    Args:
        study: what to find inputs for.
        count: how many of a batch to take, or to draw.

    Returns:
        Arrays `[n, ...]`, in the structure that the study's preprocessing takes.

    Raises:
        InputError: if there is a preprocessing, but neither `examples` nor an inverse of it.
    """
    if study.examples is not None:
        return keras.tree.map_structure(np.asarray, study.examples)
    inverse = getattr(study.preprocessing, "inverse", None)
    if study.preprocessing is not None and inverse is None:
        raise InputError("This study has a preprocessing of inputs that it shows no examples of; give its Study some.")
    x = _model_inputs(study, count)
    return x if inverse is None else keras.tree.map_structure(lambda a: np.asarray(inverse(a), np.float32), x)


def _model_inputs(study: Study, count: int) -> Any:
    feed = study.test if study.test is not None else study.train
    batch = next(iter(feed.blocks(Position()))).tensors
    x = tf.nest.map_structure(lambda t: t[0].numpy()[:count], batch[0] if isinstance(batch, (tuple, list)) else batch)
    specs = _inputs_of(study.model)
    if specs is None:
        return x
    arrays = keras.tree.flatten(x)
    wanted = keras.tree.flatten(specs)
    if len(arrays) == len(wanted) and all(_fits(a, s) for a, s in zip(arrays, wanted, strict=True)):
        return keras.tree.pack_sequence_as(specs, arrays)
    random = np.random.default_rng(0)

    def drawn(spec: tf.TensorSpec) -> np.ndarray:
        shape, dtype = [count, *(8 if n is None else n for n in spec.shape[1:])], spec.dtype.as_numpy_dtype
        return random.normal(size=shape).astype(dtype) if spec.dtype.is_floating else np.ones(shape, dtype)

    return keras.tree.map_structure(drawn, specs)


def check(study: Study, written: Mapping[str, pathlib.Path | NotPossible], *, modules: Iterable[str] = ()) -> dict[str, float | str]:
    """Reads what was written in fresh processes, and compares predictions with those of the study's model.

    The SavedModel is read by a process that cannot import our packages and is given inputs as they are stored, all others by a second one.

    Args:
        study: whose model was written.
        written: what `write` returned.
        modules: what has to be imported for the model's own layers to be known.

    Returns:
        Form -> largest difference of a prediction, relative to the largest prediction; or, for what could not be read or is not equal, a
        sentence. Forms that were not written are left out.
    """
    raw = example_inputs(study)
    x = _prepared(study, keras.tree.map_structure(tf.convert_to_tensor, raw))
    expected = [np.asarray(t) for t in keras.tree.flatten(study.model(x, training=False))]
    found: dict[str, float | str] = {}
    files = {form: str(path.resolve()) for form, path in written.items() if isinstance(path, pathlib.Path)}
    alone = {form: path for form, path in files.items() if form == "saved_model"}
    names = [spec.name for spec in keras.tree.flatten(_specs(study))]
    with tempfile.TemporaryDirectory() as folder:
        # Values are read into a model that has to be made first.
        made = write(study, folder, ["architecture"])["architecture"]
        others = {"architecture": str(made)} if isinstance(made, pathlib.Path) else {}
        others |= {form: path for form, path in files.items() if form not in alone}
        for job, inputs, isolated in ((others, x, False), (alone, raw, True)):
            if job.keys() & files.keys():
                given = pathlib.Path(folder, "given.npz")
                export_check.save(given, keras.tree.flatten(inputs), expected)
                found |= _in_fresh_process(job, given, [] if isolated else list(modules), names, isolated)
    return {form: found[form] for form in files}


def _in_fresh_process(
    files: Mapping[str, str], given: pathlib.Path, modules: list[str], names: list[str], isolated: bool
) -> dict[str, float | str]:
    order = json.dumps({"files": dict(files), "given": str(given), "modules": modules, "names": names, "isolated": isolated})
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_PACKAGES), os.environ.get("PYTHONPATH", "")]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    # -I: without the folder of the script and PYTHONPATH.
    command = [sys.executable, *(["-I"] if isolated else []), export_check.__file__]
    done = subprocess.run(command, input=order, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {form: f"the process that was to read it ended with code {done.returncode} ({reason})" for form in files}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _inputs_of(model: keras.Model) -> Any:
    """The specs of a model's inputs in their structure; None for a subclassed model that was not built from symbols."""
    structure = getattr(model, "_inputs_struct", None) if not isinstance(model, keras.Sequential) else None
    inputs = structure if structure is not None else getattr(model, "inputs", None)
    if inputs is None:
        return None
    if isinstance(inputs, list) and len(inputs) == 1:
        inputs = inputs[0]
    return keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype, t.name), inputs)


def _specs(study: Study) -> Any:
    """What an exported program takes: specs in the structure of the study's inputs, each with the name that the program knows it by."""
    specs = _inputs_of(study.model) if study.preprocessing is None and study.examples is None else None
    if specs is None:
        tensors = keras.tree.map_structure(tf.convert_to_tensor, example_inputs(study))
        specs = keras.tree.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), tensors)
    named = keras.tree.flatten_with_path(specs)
    names = [spec.name or "_".join(map(str, path)) for path, spec in named] if len(named) > 1 else ["inputs"]
    return keras.tree.pack_sequence_as(
        specs, [tf.TensorSpec(spec.shape, spec.dtype, name) for name, (_, spec) in zip(names, named, strict=True)]
    )


def _prepared(study: Study, x: Any) -> Any:
    """Tensors as they are stored, as the model takes them."""
    return x if study.preprocessing is None else study.preprocessing(x)


def _fits(array: np.ndarray, spec: tf.TensorSpec) -> bool:
    return spec.shape.is_compatible_with(array.shape) and tf.as_dtype(array.dtype).is_floating == spec.dtype.is_floating


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
    model, specs = study.model, _specs(study)

    def serve(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        x = _prepared(study, keras.tree.pack_sequence_as(specs, list(inputs)))
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
