"""How the programs in `scripts/` read their flags, greet TensorFlow and say what went wrong: in a sentence, not in a stack of frames.

It knows flags and exit codes, nothing of training.
"""

from __future__ import annotations

import ast
import contextlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from ml_collections import config_dict, config_flags

from research.study import InputError

__all__ = ["CONFIGS", "EXIT_INTERRUPTED", "EXIT_REFUSED", "define_config", "list_configs", "parse", "quiet_tensorflow", "run"]

CONFIGS = pathlib.Path(__file__).resolve().parent / "configs"

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# What TensorFlow writes to stderr while it starts on a machine without a GPU; none of it asks for anything to be done.
_START_UP_NOISE = re.compile(r"WARNING: All log messages before absl::InitializeLog|[IW]0000 |E0000 .*(cuda|cuInit|cuDNN|cuBLAS|cuFFT)")


def run(main: Callable[[flags.FlagValues], int], define: Callable[[flags.FlagValues, list[str]], None], argv: Sequence[str]) -> int:
    """Parses `argv` with the flags that `define` declares and calls `main` with them.

    Args:
        main: the program; takes the parsed flags, returns the exit code.
        define: declares the program's flags. They live in an object of their own, so programs can be run side by side in one process.
        argv: command line, the program's name first.

    Returns:
        The exit code: what `main` returned, 0 after `--help`, 2 if flags or input were refused (one sentence on stderr),
        130 after Ctrl-C.
    """
    try:
        values = parse(define, argv)
        if values.help:
            print(f"{(main.__globals__.get('__doc__') or '').strip()}\n\nFlags:\n{values.get_help()}")
            return 0
        return main(values)
    except InputError as error:
        print(f"{pathlib.Path(argv[0]).name}: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def define_config(values: flags.FlagValues, argv: list[str], default: pathlib.Path) -> None:
    """Declares `--config=FILE` (or `--config=NAME` for one in `research/configs/`) and `--config.FIELD=VALUE`."""
    for i, argument in enumerate(argv):
        name = re.fullmatch(r"--?config=(\w+)", argument)
        if name and name[1] in _configs():
            argv[i] = f"--config={CONFIGS / name[1]}.py"
    config_flags.DEFINE_config_file(
        "config",
        str(default),
        "File with get_config(), or the name of one in research/configs; --config.FIELD=VALUE changes a field of it.",
        flag_values=values,
        sys_argv=argv,
    )


def list_configs() -> str:
    """The configs in `research/configs/`, a line each: the name, and the first line of what the file says of itself. Runs none of them."""
    first = {
        name: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0] for name, path in _configs().items()
    }
    width = max(map(len, first))
    return "\n".join(f"{name:<{width}}  {line}".rstrip() for name, line in first.items())


def _configs() -> dict[str, pathlib.Path]:
    return {path.stem: path for path in sorted(CONFIGS.glob("*.py")) if path.stem != "__init__"}


def parse(define: Callable[[flags.FlagValues, list[str]], None], argv: Sequence[str]) -> flags.FlagValues:
    """The flags of `argv`.

    Raises:
        InputError: for an unknown flag or config field, a value of the wrong type, or a config file that is not there.
    """
    values, arguments = flags.FlagValues(), list(argv)
    try:
        define(values, arguments)
        flags.DEFINE_bool("help", False, "Show this text.", short_name="h", flag_values=values)
        surplus = values(arguments)[1:]
        if "config" in values:
            # A config file that could not be loaded shows at the first access only.
            values.config.to_dict()
    except flags.Error as error:
        raise InputError(f"{str(error).rstrip('.')}; see --help.") from error
    except (AttributeError, KeyError) as error:
        raise _unknown_field(define, arguments, error) from error
    except OSError as error:
        raise InputError(f"There is no config file {values['config'].config_filename!r} below {os.getcwd()}.") from error
    if surplus:
        raise InputError(f"Cannot make sense of {surplus[0]!r}: every argument is a flag, --NAME=VALUE; see --help.")
    return values


def _unknown_field(define: Callable[[flags.FlagValues, list[str]], None], argv: list[str], error: Exception) -> Exception:
    """The sentence for `--config.FIELD` with a FIELD that the config does not have; any other error as it is."""
    name = re.match(r"\W*(\w+)", str(error))
    given = [a for a in argv[1:] if name and re.match(rf"--?config\.(\w+\.)*{name[1]}\b", a)]
    if not given:
        return error
    config = parse(define, [a for a in argv if not re.match(r"--?config\.", a)]).config
    fields = ", ".join(_fields(config))
    return InputError(f"{given[0].split('=')[0]} names a field that the config does not have; it has {fields}.")


def _fields(config: config_dict.ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Holds back what TensorFlow logs while it starts; everything else that was written to stderr meanwhile is passed on.

    Does nothing if the user has set `TF_CPP_MIN_LOG_LEVEL`.

    Example:
        >>> with quiet_tensorflow():
        ...     import tensorflow
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    # TensorFlow writes from C++, past sys.stderr: only the file descriptor can be held.
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not _START_UP_NOISE.match(line):
                    print(line, file=sys.stderr)
