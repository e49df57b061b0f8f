"""The safe way back: a model from a file that need not be trusted."""

from __future__ import annotations

import json
import os
import pathlib

import keras

from research.study import InputError

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> keras.Model:
    """Reads a model from `.keras`, `.h5` or `.json`, running no code that the file brings.

    Layers of one's own are found if the modules that define them have been imported. (A SavedModel is a program: load one only from
    somebody whose programs you would run.)

    Args:
        path: the file, which need not be trusted.

    Raises:
        InputError: if it is not there, is no model, needs a class that is not known, or holds Python code, as a Lambda layer does.

    Example:
        >>> import tempfile
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
