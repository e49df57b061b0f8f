"""What the documents say holds: their code runs, their links lead somewhere, and the files and tests that they name are there.

Blocks fenced as ```python run in order, those of one document as one program. ```python no-run shows other libraries.
"""

from __future__ import annotations

import ast
import pathlib
import re
import xml.etree.ElementTree as ElementTree

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
LOOPS = REPOSITORY / "loops"
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = [REPOSITORY / "README.md", *DOCS]
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def read(document):
    return document.read_text(encoding="utf-8")


def blocks(document, kind):
    """The blocks of one kind, each at the line where it stands in the document, so that a traceback points there."""
    text = read(document)
    return ["\n" * text.count("\n", 0, m.start("text")) + m["text"] for m in FENCE.finditer(text) if m["kind"] == kind]


def named(document):
    return document.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks(d, "python")], ids=named)
def test_the_code_runs_as_it_stands(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for block in blocks(document, "python"):
        exec(compile(block, str(document), "exec"), namespace)


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_block_is_a_command_or_python(document):
    assert {match["kind"] for match in FENCE.finditer(read(document))} <= {"bash", "python", "python no-run"}
    for block in blocks(document, "python no-run"):
        compile(block, str(document), "exec")


@pytest.mark.parametrize("document", DOCS, ids=named)
def test_links_lead_somewhere(document):
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", read(document)) if "://" not in target]
    assert targets
    for target in targets:
        assert (document.parent / target).exists(), target


def test_every_file_has_its_room():
    rooms = re.search(r"^## The rooms\n(.*?)^## ", read(REPOSITORY / "docs" / "design.md"), re.MULTILINE | re.DOTALL)[1]
    first_column = [line.split("|")[1] for line in rooms.splitlines() if line.startswith("|")]
    listed = {name for cell in first_column for name in re.findall(r"`([\w/]+\.py)`", cell)}
    there = {path.relative_to(LOOPS).as_posix() for path in LOOPS.rglob("*.py") if path.name != "__init__.py"}
    assert listed - there == set()
    assert {name for name in there - listed if not name.startswith("hooks/")} == set()


def test_every_test_that_keeps_a_promise_is_there():
    found = re.findall(r"`(tests/[\w/*]+\.py)(?:::(\w+))?`", read(REPOSITORY / "docs" / "design.md"))
    assert found
    for pattern, test in found:
        files = list(REPOSITORY.glob(pattern))
        assert files, pattern
        functions = {node.name for file in files for node in ast.walk(ast.parse(read(file))) if isinstance(node, ast.FunctionDef)}
        assert not test or test in functions, test


def test_the_drawing_names_files_that_are_there():
    drawing = ElementTree.parse(REPOSITORY / "docs" / "way-of-a-batch.svg")
    names = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text") if element.get("class", "").startswith("file")]
    assert len(names) > 5
    for name in names:
        assert (LOOPS / name).exists(), name


def imports(path):
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("importers", "strangers"),
    [
        ("loops/**/*.py", ("research", "scripts", "layers")),
        ("layers/**/*.py", ("research", "scripts", "loops")),
        ("research/**/*.py", ("scripts",)),
        ("loops/feeds/*.py", ("loops.task", "loops.train_loop", "loops.program", "loops.hooks")),
        ("loops/program.py", ("loops.hooks", "loops.train_loop")),
    ],
)
def test_dependencies_point_one_way(importers, strangers):
    paths = list(REPOSITORY.glob(importers))
    assert paths
    for path in paths:
        for name in imports(path):
            assert not any(name == stranger or name.startswith(f"{stranger}.") for stranger in strangers), f"{named(path)} imports {name}"
