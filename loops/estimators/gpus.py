"""What is said where joblib's worker processes would share a GPU."""

from __future__ import annotations

import multiprocessing
import os

import tensorflow as tf

__all__ = ["refuse_shared_gpus"]


def refuse_shared_gpus() -> None:
    """Refuses to train in a worker process (`n_jobs=2`) on a GPU of which TensorFlow would take all the memory for the first worker.

    Raises:
        RuntimeError: if that is so.
    """
    if not _in_worker() or os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH", "").lower() == "true":
        return
    gpus = tf.config.list_physical_devices("GPU")
    if any(not tf.config.experimental.get_memory_growth(gpu) for gpu in gpus):
        raise RuntimeError(
            "This fit runs in one of several worker processes (n_jobs), which would share a GPU, and the first would take all its memory: "
            "give n_jobs=1, or set the environment variable TF_FORCE_GPU_ALLOW_GROWTH=true, or CUDA_VISIBLE_DEVICES=-1 to use the cores."
        )


def _in_worker() -> bool:
    return multiprocessing.parent_process() is not None or multiprocessing.current_process().name.startswith("Loky")
