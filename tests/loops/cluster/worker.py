"""One of two worker processes that play scenarios for the tests: reads names from its input, writes what each gave to a file.

    python -m tests.loops.cluster.worker FOLDER        with TF_CONFIG set

A line of the input is `number name`; the result of it goes to `FOLDER/<number>-<worker>.pickle`.
"""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import sys
import traceback


def main() -> None:
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    from loops.cluster import Cluster
    from tests.loops.cluster import scenarios

    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    folder = pathlib.Path(sys.argv[1])
    (folder / f"ready-{index}").touch()
    cluster = Cluster.of(strategy)
    for line in sys.stdin:
        number, name = line.split()
        try:
            result = scenarios.play(name, strategy, folder)
        except BaseException as error:
            result = {"error": type(error).__name__, "message": str(error), "code": getattr(error, "code", None)}
            traceback.print_exc()
        result["ends"] = not cluster.whole
        written = folder / f"{number}-{index}.part"
        written.write_bytes(pickle.dumps(result))
        written.rename(written.with_suffix(".pickle"))
        if result.get("ends"):  # nothing can be exchanged any more: the tests start another pair
            sys.exit(result.get("code") or 1)


if __name__ == "__main__":
    main()
