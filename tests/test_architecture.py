"""The plan of the rooms: imports run one way, nothing imports in a circle, private names of TensorFlow and Keras stay in two files.

Everything is read from the source with `ast`, imports for annotations included.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("loops", "layers", "research", "scripts")

#: Top to bottom: a module imports from its own room and from those below it. The longest prefix decides.
ROOMS = (
    ("scripts",),
    ("research",),
    ("layers", "loops"),  # neither imports the other, see FORBIDDEN
    ("loops.estimators",),
    ("loops.api", "loops.testing"),
    ("loops.train_loop",),
    ("loops.hooks",),
    ("loops.run",),
    ("loops.hooks.base",),
    ("loops.triggers",),
    ("loops.summaries",),
    ("loops.engine",),
    ("loops.tasks",),
    ("loops.feeds",),
    ("loops.cluster",),
    ("loops.snapshots",),
    ("loops.xla",),
    ("loops.graphs",),
    ("loops.user_errors",),
    ("loops.choices", "loops.files", "loops.json_values", "loops.fault_points", "loops.messages", "loops._private_api"),
    ("loops.errors",),
)
FORBIDDEN = (("loops", "layers"), ("layers", "loops"))
PRIVATE_APIS = ("loops._private_api", "layers._private_api")  # a module, or a package with its modules
PRIVATE_MODULES = ("tensorflow.python", "tensorflow.core", "tensorflow.compiler", "keras.src")
MAX_LINES = 350
MAX_FILES_BESIDE_ROOMS = 12


class Import(NamedTuple):
    file: pathlib.Path
    line: int
    importer: str
    imported: str
    name: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.importer} imports {self.name} of {self.imported}"


def modules() -> dict[str, pathlib.Path]:
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()
SOURCES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}


def imports_of(module: str, tree: ast.Module) -> Iterator[Import]:
    """The imports of modules of this project; `from room import module` is one of the module."""
    file = MODULES[module]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield Import(file, node.lineno, module, alias.name, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}:{node.lineno}: write imports in full"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in MODULES or node.module in MODULES:
                    yield Import(file, node.lineno, module, whole if whole in MODULES else node.module, alias.name)


def rank(module: str) -> int:
    ranks = {prefix: i for i, room in enumerate(ROOMS) for prefix in room}
    parts = module.split(".")
    return next(ranks[prefix] for n in range(len(parts), 0, -1) if (prefix := ".".join(parts[:n])) in ranks)


def room(module: str) -> str:
    prefixes = {prefix for group in ROOMS for prefix in group}
    parts = module.split(".")
    return next(prefix for n in range(len(parts), 0, -1) if (prefix := ".".join(parts[:n])) in prefixes)


def runs_upwards(found: Import) -> bool:
    same = room(found.importer) == room(found.imported)
    apart = any(found.importer.split(".")[0] == a and found.imported.split(".")[0] == b for a, b in FORBIDDEN)
    # A name that a package's `__init__` hands on comes from the package's own room.
    return apart or (not same and rank(found.imported) <= rank(found.importer))


def circle_in(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, in order; empty if there are none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for other in sorted(edges.get(module, ())):
                if circle := visit(other, [*path, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in sorted(edges) if (circle := visit(module, []))), [])


def all_imports() -> list[Import]:
    return [found for name, tree in SOURCES.items() for found in imports_of(name, tree)]


def test_imports_run_downwards():
    upwards = [str(found) for found in all_imports() if runs_upwards(found)]
    assert not upwards, "\n".join(upwards)


def test_a_turned_import_is_found():
    tree = ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from loops.run.epochs import Epochs\n")
    (found,) = imports_of("loops.engine.execution", tree)
    assert runs_upwards(found) and str(found).endswith("engine/execution.py:3: loops.engine.execution imports Epochs of loops.run.epochs")
    (between,) = imports_of("loops.feeds.base", ast.parse("import layers.base"))
    assert runs_upwards(between)
    (fine,) = imports_of("loops.run.epochs", ast.parse("from loops.hooks.base import Hook"))
    assert not runs_upwards(fine)


def test_no_modules_import_each_other_in_a_circle():
    edges: dict[str, set[str]] = {}
    for found in all_imports():
        edges.setdefault(found.importer, set()).add(found.imported)
    assert not (circle := circle_in(edges)), " -> ".join(circle)
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


OURS = {"self", "cls", "super()", "os", "sys", "_private_api"}


def private_names(module: str, tree: ast.Module) -> Iterator[str]:
    """Uses of what TensorFlow and Keras do not promise: their inner modules, and underscore attributes of objects that are not ours."""
    stored = [node for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store)]
    defined = {node.id if isinstance(node, ast.Name) else node.attr for node in stored}
    defined |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        modules = [
            *([node.module or ""] if isinstance(node, ast.ImportFrom) else []),
            *([alias.name for alias in node.names] if isinstance(node, ast.Import) else []),
            *([node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []),
        ]
        attribute = attribute_in(node)
        underscore = attribute.startswith("_") and not attribute.startswith("__") and attribute not in defined
        if underscore or attribute == "__internal__" or any(name.startswith(PRIVATE_MODULES) for name in modules):
            yield f"{MODULES[module].relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"


def attribute_in(node: ast.AST) -> str:
    """The attribute that a node asks of an object that may be of TensorFlow or Keras, also by `getattr`; else nothing."""
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in OURS:
        return node.attr
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr") and ast.unparse(node.args[0]) not in OURS:
        name = node.args[1] if len(node.args) > 1 else None
        return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else ""
    return ""


def test_private_names_of_tensorflow_and_keras_stay_in_one_file():
    checked = {name: tree for name, tree in SOURCES.items() if name.startswith(("loops", "layers")) and not name.startswith(PRIVATE_APIS)}
    found = [use for name, tree in checked.items() for use in private_names(name, tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "from tensorflow.python.eager import context",
        "import keras.src.utils",
        "import tensorflow as tf\ntf.__internal__.autograph",
        "def layers_of(model):\n    return model._flatten_layers()",
        "found = 'tensorflow.python.ops.gen_nn_ops'",
        "def compiles(model):\n    return getattr(model, '_jit_compile', None)",
    ],
)
def test_a_private_name_is_found(code):
    assert list(private_names("loops.engine.step", ast.parse(code)))


def test_files_are_of_a_size_to_read():
    lines = {MODULES[name].relative_to(ROOT): len(MODULES[name].read_text(encoding="utf-8").splitlines()) for name in MODULES}
    assert not {file: n for file, n in lines.items() if n > MAX_LINES}


def test_the_ground_floor_of_loops_is_not_crowded():
    beside = [p.name for p in (ROOT / "loops").iterdir() if p.is_file()]
    assert len(beside) <= MAX_FILES_BESIDE_ROOMS, beside
    assert not [p for p in (ROOT / "loops").rglob("*.py") if len(p.relative_to(ROOT).parts) > 3]
