"""Every config says what it is, names its study, and is found by its name."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from research import command_line
from scripts import train

NAMES = sorted(path.stem for path in command_line.CONFIGS.glob("*.py") if path.stem != "__init__")


def load(name, *more):
    return command_line.parse(train.define_flags, ["train.py", f"--config={name}", *more]).config


@pytest.mark.parametrize("name", NAMES)
def test_a_config_names_a_study_that_is_there_and_how_long_to_train(name):
    config = load(name)
    assert config.study == name and importlib.util.find_spec(f"research.studies.{name}")
    assert config.epochs >= 1


@pytest.mark.parametrize("line", command_line.list_configs().splitlines())
def test_a_config_says_in_a_line_what_it_is(line):
    name, _, said = line.partition(" ")
    assert name in NAMES and said.strip().endswith(".") and len(line) <= 160


def test_a_config_is_found_by_its_name_and_its_fields_can_be_changed():
    assert load("deep_mlp", "--config.variant=selu").variant == "selu"
    assert load(str(command_line.CONFIGS / "deep_mlp.py")).study == "deep_mlp"


def test_the_list_is_shown_without_starting_tensorflow():
    program = (
        "import sys; from scripts import train; from research import command_line\n"
        "assert command_line.run(train.main, train.define_flags, ['train.py', '--list']) == 0\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    root = command_line.CONFIGS.parents[1]
    shown = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=True)
    assert [line.split()[0] for line in shown.stdout.splitlines()] == NAMES
