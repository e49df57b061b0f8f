"""How the programs in `scripts/` read their flags, greet TensorFlow and say what went wrong: in a sentence, not in a stack of frames.

It knows flags and exit codes, nothing of training.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

from absl import flags
from ml_collections import config_dict, config_flags

from research.study import InputError

__all__ = [
    "CONFIGS",
    "EXIT_INTERRUPTED",
    "EXIT_REFUSED",
    "define_config",
    "list_configs",
    "only_printing_if",
    "parse",
    "quiet_tensorflow",
    "run",
]

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
    """Declares `--config=FILE` (or `--config=NAME` for one in `research/configs/`) and `--config.FIELD=VALUE`.

    As with other flags a blank may stand for the `=`.

    Raises:
        InputError: for a name that is no config.
    """
    argv[:] = [_with_path(argument) for argument in _joined(argv)]
    config_flags.DEFINE_config_file(
        "config",
        str(default),
        "File with get_config(), or the name of one in research/configs; --config.FIELD=VALUE changes a field of it.",
        flag_values=values,
        sys_argv=argv,
    )


def _joined(argv: Sequence[str]) -> list[str]:
    """The arguments with `--config NAME` and `--config.FIELD VALUE` written with a `=`."""
    joined: list[str] = []
    for argument in argv:
        waits = bool(joined) and re.fullmatch(r"--?config(\.[\w.]+)?", joined[-1]) is not None
        if waits and re.match(r"-(?![\d.])", argument) is None:
            joined[-1] += f"={argument}"
        elif waits and joined[-1].strip("-") == "config":
            raise InputError(f"Missing value for flag --config, before {argument!r}; see --help.")
        else:
            joined.append(argument)
    return joined


def _with_path(argument: str) -> str:
    """An argument with the path of a config in the place of its name."""
    given = re.fullmatch(r"--?config=(.*)", argument)
    if given is None or os.path.exists(given[1]):
        return argument
    name = pathlib.PurePath(given[1]).name.removesuffix(".py")
    if name in _configs() and given[1].removesuffix(".py") == name:
        return f"--config={CONFIGS / name}.py"
    near = _did_you_mean(name, _configs())
    raise InputError(f"There is no config file {given[1]!r} below {os.getcwd()}, and no config of that name; --list shows all.{near}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f" Did you mean {near[0]}?" if near else ""


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
    except flags.UnrecognizedFlagError as error:
        raise InputError(f"{_unknown_flag(define, error)}; see --help.") from error
    except flags.Error as error:
        group = re.match(r"flag --(config\.[\w.]+)=(.*?): Failed to parse .* as a ConfigDict", str(error), re.DOTALL)
        if group is not None:
            raise InputError(_group_of_fields(define, arguments, group[1], group[2])) from error
        raise InputError(f"{str(error).rstrip('.')}; see --help.") from error
    except (AttributeError, KeyError) as error:
        raise _unknown_field(define, arguments, error) from error
    except OSError as error:
        path = next((a.partition("=")[2] for a in arguments if re.match(r"--?config=", a)), "")
        raise InputError(f"The config file {path!r} cannot be read ({error.strerror or error}).") from error
    if surplus:
        meant = f", as in --config={surplus[0]}" if "config" in values and surplus[0] in _configs() else ""
        raise InputError(f"Cannot make sense of {surplus[0]!r}: every argument is a flag, --NAME=VALUE{meant}; see --help.")
    return values


def _unknown_flag(define: Callable[[flags.FlagValues, list[str]], None], error: flags.UnrecognizedFlagError) -> str:
    """What absl says, with the field of the config that was meant, if there is one."""
    values = flags.FlagValues()
    define(values, ["program"])
    said = str(error).rstrip(". ").replace("Did you mean: ", "Did you mean --").removesuffix(" ?")
    if "config" not in values:
        return said
    values(["program"])
    fields = [field for field in _fields(values.config) if field.rpartition(".")[2] == error.flagname]
    return f"{said}. Did you mean --config.{fields[0]}?".rstrip("?") + "?" if fields else said


def _config_of(define: Callable[[flags.FlagValues, list[str]], None], argv: list[str]) -> config_dict.ConfigDict:
    """The config as its file has it."""
    return parse(define, [a for a in argv if not re.match(r"--?config\.", a)]).config


def _group_of_fields(define: Callable[[flags.FlagValues, list[str]], None], argv: list[str], group: str, value: str) -> str:
    """The sentence for `--config.GROUP=VALUE`, where GROUP holds fields."""
    fields = [field for field in _fields(_config_of(define, argv), "config.") if field.startswith(f"{group}.")]
    meant = f"{group}.name" if f"{group}.name" in fields else fields[0] if fields else group
    return f"--{group} holds several fields ({', '.join(fields)}): set one of them, as in --{meant}={value or '...'}."


def _unknown_field(define: Callable[[flags.FlagValues, list[str]], None], argv: list[str], error: Exception) -> Exception:
    """The sentence for `--config.FIELD` with a FIELD that the config does not have; any other error as it is."""
    name = re.match(r"\W*(\w+)", str(error))
    given = [a for a in argv[1:] if name and re.match(rf"--?config\.(\w+\.)*{name[1]}\b", a)]
    if not given:
        return error
    fields = list(_fields(_config_of(define, argv)))
    flag = given[0].split("=")[0]
    wanted = flag.lstrip("-").removeprefix("config.")
    return InputError(f"{flag} names a field that the config does not have; it has {', '.join(fields)}.{_did_you_mean(wanted, fields)}")


def _fields(config: config_dict.ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@contextlib.contextmanager
def quiet_tensorflow(level: int = 2) -> Iterator[None]:
    """Holds back what TensorFlow logs while it starts; everything else that was written to stderr meanwhile is passed on.

    Does nothing if the user has set `TF_CPP_MIN_LOG_LEVEL`.

    Args:
        level: what TensorFlow logs from then on: 2 errors, 3 only what ends the process. When a worker process is gone, each operation that
            waited for it logs errors, of which the exception says all.

    Example:
        >>> with quiet_tensorflow():
        ...     import tensorflow
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = str(level)
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


@contextlib.contextmanager
def only_printing_if(speaks: bool) -> Iterator[None]:
    """Drops what is printed in its block, unless `speaks`: of several processes that do the same, one speaks. Errors stay, on stderr.

    Args:
        speaks: whether this process is the one.
    """
    if speaks:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
