"""What the documents say holds: code runs, flags exist, links lead somewhere, and the files and tests that they name are there.

Blocks fenced as ```python run: each of the README by itself, those of another document in order, as one program. ```python no-run shows
other libraries.
"""

from __future__ import annotations

import ast
import pathlib
import re
import shlex
import xml.etree.ElementTree as ElementTree

import pytest

from research import command_line
from research.search.space import take_flags
from scripts import benchmark_workers, evaluate, launch, runs, search, train

REPOSITORY = pathlib.Path(__file__).parents[1]
LOOPS = REPOSITORY / "loops"
README = REPOSITORY / "README.md"
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md", *DOCS]
SCRIPTS = {"scripts/train.py": train, "scripts/evaluate.py": evaluate, "scripts/search.py": search}
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def read(document):
    return document.read_text(encoding="utf-8")


def blocks(document, kind):
    """The blocks of one kind, each at the line where it stands in the document, so that a traceback points there."""
    text = read(document)
    return ["\n" * text.count("\n", 0, m.start("text")) + m["text"] for m in FENCE.finditer(text) if m["kind"] == kind]


def named(document):
    return document.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("document", [d for d in DOCS if blocks(d, "python")], ids=named)
def test_the_code_runs_as_it_stands(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for block in blocks(document, "python"):
        exec(compile(block, str(document), "exec"), namespace)


@pytest.mark.parametrize("block", blocks(README, "python"), ids=lambda block: f"line {len(block) - len(block.lstrip()) + 1}")
def test_each_example_of_the_readme_runs_by_itself_and_learns(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    exec(compile(block, str(README), "exec"), namespace)
    losses = namespace["history"].history["loss"]
    assert len(losses) > 1 and losses[-1] < losses[0]


def readme_commands():
    lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&")]


def test_the_two_commands_to_set_up_are_there_as_the_continuous_check_runs_them():
    set_up = [line for line in read(README).splitlines() if line.startswith("pip install")]
    assert set_up == [
        'pip install -e ".[research]" && python scripts/train.py --workdir=runs/first',
        'pip install -e ".[test]" && pytest',
    ]


@pytest.mark.parametrize("command", [command for command in readme_commands() if command.startswith("python ")])
def test_every_flag_in_a_command_of_the_readme_exists(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    _, script, *arguments = shlex.split(command, comments=True)
    if script == "scripts/runs.py":
        assert len(runs.COMMANDS[arguments[0]]) == len(arguments) - 1
        return
    arguments, space = take_flags(arguments)  # of a search; other programs have none
    assert (script == "scripts/search.py") == bool(space)
    values = command_line.parse(SCRIPTS[script].define_flags, [script, *arguments])
    assert values.workdir.startswith("runs/")


def test_every_flag_in_a_command_that_starts_several_processes_exists():
    lines = [line.strip() for block in blocks(REPOSITORY / "docs" / "scaling.md", "bash") for line in block.splitlines()]
    launches = [shlex.split(line)[1:] for line in lines if line.startswith("python scripts/launch.py ")]
    commands = [shlex.split(line.partition("python ")[2]) for line in lines if "python scripts/train.py " in line]
    assert len(launches) > 1 and commands
    for launched in launches:
        own, command = launch.split(launched)
        assert command_line.parse(launch.define_flags, own).workers == 2
        commands += [command] * (command[0] != "-m")
    for command in commands:
        if command[0] == "scripts/benchmark_workers.py":
            command_line.parse(benchmark_workers.define_flags, command)
        else:
            assert command_line.parse(train.define_flags, command).strategy == "multi_worker"


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_block_is_a_command_or_python_or_for_kubernetes(document):
    assert {match["kind"] for match in FENCE.finditer(read(document))} <= {"bash", "python", "python no-run", "yaml"}
    for block in blocks(document, "python no-run"):
        compile(block, str(document), "exec")


def anchors(document):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_links_lead_somewhere(document):
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", read(document)) if "://" not in target]
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        page = document.parent / path if path else document
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), target


def test_every_room_is_in_the_plan():
    plan = re.search(r"^## The rooms\n(.*?)^## ", read(REPOSITORY / "docs" / "design.md"), re.MULTILINE | re.DOTALL)[1]
    first_column = [line.split("|")[1] for line in plan.splitlines() if line.startswith("| `")]
    listed = {name for cell in first_column for name in re.findall(r"`(\w+(?:\.py|/))`", cell)}
    there = {path.name for path in LOOPS.iterdir() if path.name != "__init__.py" and (path.suffix == ".py" or list(path.glob("*.py")))}
    assert {name.rstrip("/") for name in listed} == there


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
        assert list(LOOPS.rglob(name)) or (LOOPS / name).exists(), name
