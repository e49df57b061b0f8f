"""What the README says works: its commands, its flags, its code, its links."""

from __future__ import annotations

import pathlib
import re
import shlex

import pytest

from research import command_line
from scripts import evaluate, runs, train

REPOSITORY = pathlib.Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SCRIPTS = {"scripts/train.py": train, "scripts/evaluate.py": evaluate}


def commands():
    lines = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&")]


def test_the_two_commands_to_set_up_are_there_as_the_continuous_check_runs_them():
    set_up = [line for line in README.splitlines() if line.startswith("pip install")]
    assert set_up == [
        'pip install -e ".[research]" && python scripts/train.py --workdir=runs/first',
        'pip install -e ".[test]" && pytest',
    ]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python ")])
def test_every_flag_in_a_command_exists(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    _, script, *arguments = shlex.split(command, comments=True)
    if script == "scripts/runs.py":
        assert len(runs.COMMANDS[arguments[0]]) == len(arguments) - 1
        return
    values = command_line.parse(SCRIPTS[script].define_flags, [script, *arguments])
    assert values.workdir.startswith("runs/")


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_the_code_runs_as_it_stands(code, capsys):
    namespace: dict = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), namespace)
    losses = namespace["history"].history["loss"]
    assert len(losses) > 1 and losses[-1] < losses[0]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (REPOSITORY / target).exists(), target
