"""Runs the programs of `scripts/` in the process of the test, and reads what they printed and wrote."""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import h5py
import numpy as np

from research import command_line

REPOSITORY = pathlib.Path(__file__).parents[2]


def called(program: Callable[[list[str]], int], name: str, *arguments: Any) -> tuple[int, str, str]:
    """The exit code of a program that takes its command line, what it printed, and what it wrote to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program([name, *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def run(script: ModuleType, *arguments: Any) -> tuple[int, str, str]:
    """The same of a module in `scripts/` with `main` and `define_flags`."""
    name = f"{script.__name__.rpartition('.')[2]}.py"
    return called(functools.partial(command_line.run, script.main, script.define_flags), name, *arguments)


def row(output: str, name: str) -> list[float]:
    """Numbers in the line of the table that begins with `name`."""
    line = re.search(rf"^{name}\s+(.*)$", output, re.MULTILINE)
    assert line, output
    return [float(cell) for cell in line[1].split()]


def weights(workdir: pathlib.Path, which: str = "last") -> dict[str, np.ndarray]:
    """The model's weights by name, without the optimizer's variables that Keras writes beside them."""
    found: dict[str, np.ndarray] = {}
    with h5py.File(workdir / "checkpoints" / f"{which}.weights.h5") as file:
        file["layers"].visititems(lambda name, node: found.update({name: node[()]}) if isinstance(node, h5py.Dataset) else None)
    return found
