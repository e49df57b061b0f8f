"""Flags that cannot be used are answered with one sentence and exit code 2."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from research import command_line
from research.study import InputError

CONFIG = pathlib.Path(__file__).parents[2] / "research" / "configs" / "classification.py"


def define(values, argv):
    command_line.define_config(values, argv, CONFIG)
    flags.DEFINE_enum("compile", "auto", ["auto", "xla"], "How.", flag_values=values)


def test_config_fields_are_changed_from_the_command_line():
    values = command_line.parse(define, ["x.py", "--config.optimizer.learning_rate=0.5", "--config.hidden=(7,)", "--compile=xla"])
    assert values.config.optimizer.learning_rate == 0.5
    assert values.config.hidden == (7,)
    assert values.compile == "xla"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.optimizer.lr=1", r"--config.optimizer.lr names a field that the config does not have; it has .*optimizer.learning_rate"),
        ("--config.optimzer.learning_rate=1", "--config.optimzer.learning_rate names a field that the config does not have"),
        ("--config.epochz=3", "epochs"),
        ("--config.epochs=many", "epochs"),
        ("--config=no/such_config.py", "There is no config file 'no/such_config.py'"),
        ("--compile=fast", "auto|xla"),
        ("--comple=xla", "compile"),
        ("--config=deepmlp", "no config of that name; --list shows all. Did you mean deep_mlp"),
        ("--config.epoch=3", r"--config.epoch names a field .* Did you mean epochs\?"),
        ("--config.optimizer=adam", r"holds several fields \(.*\): set one of them, as in --config.optimizer.name=adam"),
        ("--epochs=3", r"Unknown command line flag 'epochs'. Did you mean --config.epochs\?"),
        ("--config", "Missing value for flag --config"),
        ("deep_mlp", "as in --config=deep_mlp"),
        ("digits", "'digits'"),
    ],
)
def test_what_cannot_be_used_is_answered_with_one_sentence(argument, said, capsys):
    code = command_line.run(lambda values: 0, define, ["x.py", argument])
    errors = capsys.readouterr().err
    assert code == command_line.EXIT_REFUSED
    assert errors.startswith("x.py: ") and errors.count("\n") == 1
    with pytest.raises(InputError, match=said):
        command_line.parse(define, ["x.py", argument])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "deep_mlp", "--config.epochs", "3", "--compile", "xla"],
        ["-config", "deep_mlp", "--config.epochs=3", "--compile=xla"],
        ["--config=deep_mlp.py", "--config.epochs=3", "--compile=xla"],
    ],
)
def test_a_blank_may_stand_for_the_equals_sign(arguments):
    values = command_line.parse(define, ["x.py", *arguments])
    assert (values.config.study, values.config.epochs, values.compile) == ("deep_mlp", 3, "xla")


def test_negative_numbers_are_values():
    assert command_line.parse(define, ["x.py", "--config.optimizer.learning_rate", "-0.5"]).config.optimizer.learning_rate == -0.5


def test_a_config_without_a_value_is_refused_before_it_takes_a_flag_for_one():
    with pytest.raises(InputError, match="Missing value for flag --config, before '--compile=xla'"):
        command_line.parse(define, ["x.py", "--config", "--compile=xla"])


def test_a_mistake_inside_a_config_file_keeps_its_traceback(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config():\n    return undefined_name\n")
    with pytest.raises(NameError):
        command_line.parse(define, ["x.py", f"--config={tmp_path / 'broken.py'}"])


def test_help_lists_the_flags(capsys):
    assert command_line.run(lambda values: 1, define, ["x.py", "--help"]) == 0
    assert "--compile" in capsys.readouterr().out


def test_input_that_a_program_refuses_ends_with_code_2(capsys):
    def main(values):
        raise InputError("The moon is not round enough.")

    assert command_line.run(main, define, ["x.py"]) == command_line.EXIT_REFUSED
    assert capsys.readouterr().err == "x.py: The moon is not round enough.\n"


def test_start_up_noise_is_held_back_and_everything_else_passed_on():
    program = (
        "import os, sys\n"
        "from research import command_line\n"
        "with command_line.quiet_tensorflow():\n"
        "    os.write(2, b'I0000 00:00:1.2 3 port.cc:153] oneDNN custom operations are on.\\n')\n"
        "    os.write(2, b'disk is full\\n')\n"
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=CONFIG.parents[2], capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stderr, done.stdout) == ("disk is full\n", "2\n")


def test_of_several_processes_one_prints_and_all_show_errors(capsys):
    for speaks in (True, False):
        with command_line.only_printing_if(speaks):
            print("a table")
            print("an error", file=sys.stderr)
    assert capsys.readouterr() == ("a table\n", "an error\nan error\n")
