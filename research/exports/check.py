"""Whether exported models can be read again: fresh processes read them and compare their predictions with those of the model."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping

import keras
import numpy as np
import tensorflow as tf

from research.exports import fresh_process
from research.exports.inputs import example_inputs, prepared, specs_of
from research.exports.write import NotPossible, write
from research.study import Study

__all__ = ["check"]

_PACKAGES = pathlib.Path(__file__).resolve().parents[2]


def check(study: Study, written: Mapping[str, pathlib.Path | NotPossible], *, modules: Iterable[str] = ()) -> dict[str, float | str]:
    """Reads what was written in fresh processes, and compares predictions with those of the study's model.

    The SavedModel is read by a process that cannot import our packages and is given inputs as they are stored, all others by a second one.

    Args:
        study: whose model was written.
        written: what `research.exports.write.write` returned.
        modules: what has to be imported for the model's own layers to be known.

    Returns:
        Form -> largest difference of a prediction, relative to the largest prediction; or, for what could not be read or is not equal, a
        sentence. Forms that were not written are left out.
    """
    raw = example_inputs(study)
    x = prepared(study, keras.tree.map_structure(tf.convert_to_tensor, raw))
    expected = [np.asarray(t) for t in keras.tree.flatten(study.model(x, training=False))]
    found: dict[str, float | str] = {}
    files = {form: str(path.resolve()) for form, path in written.items() if isinstance(path, pathlib.Path)}
    alone = {form: path for form, path in files.items() if form == "saved_model"}
    names = [spec.name for spec in keras.tree.flatten(specs_of(study))]
    with tempfile.TemporaryDirectory() as folder:
        # Values are read into a model that has to be made first.
        made = write(study, folder, ["architecture"])["architecture"]
        others = {"architecture": str(made)} if isinstance(made, pathlib.Path) else {}
        others |= {form: path for form, path in files.items() if form not in alone}
        for job, inputs, isolated in ((others, x, False), (alone, raw, True)):
            if job.keys() & files.keys():
                given = pathlib.Path(folder, "given.npz")
                fresh_process.save(given, keras.tree.flatten(inputs), expected)
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
    command = [sys.executable, *(["-I"] if isolated else []), fresh_process.__file__]
    done = subprocess.run(command, input=order, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {form: f"the process that was to read it ended with code {done.returncode} ({reason})" for form in files}
    return dict(json.loads(done.stdout.splitlines()[-1]))
