"""What `import loops` loads: read from the source, so that it costs no start of TensorFlow."""

from __future__ import annotations

import ast
import sys

import pytest

import loops
from loops import hooks
from tests.test_architecture import SOURCES

# What few runs need, or none: loaded when it is asked for.
LATER = (
    "loops.estimators",
    "loops.hooks.mlflow",
    "loops.hooks.model_checkpoint",
    "loops.hooks.tensorboard",
    "loops.hooks.wandb",
    "loops.run.choose_mode",
    "loops.run.workdir",
    "loops.snapshots.store",
    "loops.summaries.writer",
    "loops.xla.replaced_ops",
)
OTHERS = {"keras", "ml_dtypes", "numpy", "tensorflow"}  # Keras and TensorFlow have loaded all of these


def loaded_by(module: str) -> tuple[set[str], set[str]]:
    """The modules of the project, and the packages of others, that are loaded when a module is imported."""
    ours, theirs, to_visit = set[str](), set[str](), [module]
    while to_visit:
        name = to_visit.pop()
        if name in ours or name not in SOURCES:
            continue
        ours.add(name)
        to_visit.append(name.rpartition(".")[0])  # a package comes before its modules
        for node in statements(SOURCES[name].body):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            to_visit += names
            theirs |= {one.partition(".")[0] for one in names if one.partition(".")[0] != "loops"}
    return ours, theirs - set(sys.stdlib_module_names)


def statements(body: list[ast.stmt]) -> list[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is imported: not those in functions, and not those for type checkers."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, ast.If):
            found += statements(node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else [*node.body, *node.orelse])
        elif isinstance(node, (ast.Try, ast.With)):
            found += statements(node.body)
    return found


def test_import_loops_loads_what_most_runs_need():
    ours, theirs = loaded_by("loops")
    assert {"loops.train_loop", "loops.engine.program", "loops.hooks.base"} <= ours  # the walk follows imports
    assert not [module for module in sorted(ours) if module.startswith(LATER)]
    assert theirs == OTHERS


@pytest.mark.parametrize("package", [loops, hooks])
def test_what_is_loaded_later_is_there_and_known_to_type_checkers(package):
    tree = SOURCES[package.__name__]
    for_checkers = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {name: home if "." in home else f"{package.__name__}.{home}" for name, home in package._MODULES.items()}
    assert {alias.name: node.module for node in for_checkers.body for alias in node.names} == homes
    assert homes.keys() <= set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__.rpartition(".")[2] == name
    with pytest.raises(AttributeError, match="has no attribute 'EarlyStoping'"):
        _ = package.EarlyStoping
